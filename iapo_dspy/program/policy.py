"""The policy with the evidence that it rests on, and its saved form."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.compound.chosen import as_called, with_compounds
from iapo_dspy.bandit.confidence.confidence_map import ConfidenceMap
from iapo_dspy.bandit.confidence.promise import with_promises
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.bandit.named import read_algorithm, saved_algorithm
from iapo_dspy.bandit.outcome import HeldOut, Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import StopMode, with_stops
from iapo_dspy.errors import StateError, UnknownPreference, one_line
from iapo_dspy.preferences import Preference
from iapo_dspy.program.evidence.caps import check_known
from iapo_dspy.program.evidence.columns import MOST, check_ranges, dumped, loaded, packed, plain, rounded, unpacked
from iapo_dspy.program.evidence.reprice import at_prices
from iapo_dspy.program.evidence.saved_arms import read_arm, saved_arm
from iapo_dspy.prompts.prompt import PromptState, shared_parts
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.sampling.spending.pricing import Price
from iapo_dspy.scoring.strategies import Strategy, columns_of
from iapo_dspy.types import Arm, Contexts, Observations, Policy

FORMAT = "iapo_dspy.policy"
# 2: the unit of costs; overheads beside costs. 3: the algorithm "auto". 4: models as arms, stops, and the resources
# that calls take. 5: the evidence is packed; the results of the run. 6: cascades and mixtures.
VERSION = 6
T = TypeVar("T")
_MEASURED = TypeAdapter(tuple[HeldOut | None, ...])


@dataclass(frozen=True, kw_only=True)
class CompiledPolicy:
    """The result of `compile`: the arm of each preference, and the evidence that answers for any other preference.

    Attributes:
        preferences: The compiled preferences, each with a name.
        arms: Their arms, in the same order.
        default: Name of the preference used where a call names none.
        prompts: The prompt set P.
        max_n: Largest scale.
        n_queries: Training queries.
        cost_scale: Utility of one raw unit of `cost` (an output token by default) at cost weight 1.
        algorithm: The algorithm that ran.
        stopping: How calls may stop early: "confidence", "exact", or None.
        compound: Whether calls may combine several prompts.
        strategy: The strategy as JSON data.
        evidence: The observations, round by round.
        spent: Completions, tokens, dollars and the like that the run took.
        cost: The unit of costs.
        measured: The compiled arms by completions that had no part in the choice, in the same order; None where these
            were not paid for.
        calibrations: How sure the answers of the compiled arms are, in the same order; None where that is not known.
    """

    preferences: tuple[Preference, ...]
    arms: tuple[Arm, ...]
    default: str
    prompts: tuple[PromptState, ...]
    max_n: int
    n_queries: int
    cost_scale: float
    algorithm: Algorithm
    stopping: StopMode | None
    strategy: Mapping[str, Any]
    evidence: tuple[Observations, ...] = field(repr=False)
    spent: Mapping[str, Any]
    cost: Cost
    measured: tuple[HeldOut | None, ...] | None = None
    compound: bool = False
    calibrations: tuple[ConfidenceMap | None, ...] | None = None

    @functools.cached_property
    def prompt_costs(self) -> dict[str, list[float | None]]:
        """Mean raw costs of each prompt: "fixed" per query and "per_completion" [P]; None without evidence."""
        costs = AffineCosts(len(self.prompts))
        for observations in self.evidence:
            costs.update(observations)
        parts = {"fixed": costs.fixed, "per_completion": costs.per_completion}
        return {name: [None if v != v else float(f"{v:.9g}") for v in part.tolist()] for name, part in parts.items()}

    def named(self, name: str) -> Preference:
        """Return the compiled preference of this name.

        Raises:
            UnknownPreference: There is none.
        """
        for preference in self.preferences:
            if preference.name == name:
                return preference
        names = [p.name for p in self.preferences]
        raise UnknownPreference(
            f"No preference is called {name!r}; this program was compiled with {names}. Use one of them, or pass "
            "Preference(cost=...) to have another one solved from the stored evidence."
        )

    def arm(self, preference: Preference) -> Arm | None:
        """Return the compiled arm of a preference that wishes the same, whatever its name."""
        for known, arm in zip(self.preferences, self.arms, strict=True):
            if known.wishes == preference.wishes:
                return arm
        return None

    def measurement(self, preference: Preference, arm: Arm) -> HeldOut | None:
        """Return the compiled arm of a preference as measured after the choice; None where it was not."""
        for known, chosen, found in zip(self.preferences, self.arms, self.measured or (), strict=False):
            if known.wishes == preference.wishes and chosen == arm:
                return found
        return None

    def calibration(self, preference: Preference, arm: Arm) -> ConfidenceMap | None:
        """Return how sure the answers of the compiled arm of a preference are; None where that is not known."""
        for known, chosen, found in zip(self.preferences, self.arms, self.calibrations or (), strict=False):
            if known.wishes == preference.wishes and chosen == arm:
                return found
        return None

    def charges(self, preference: Preference) -> Charges:
        """Return the charges of calls, by the stored evidence, as one preference prices and caps them.

        Raises:
            ConfigurationError: It prices or caps something that was not measured.
        """
        check_known(preference, self.evidence)
        contexts = Contexts.from_preferences([preference], sorted(preference.weights or ["any"]))
        charges = Charges(contexts, len(self.prompts), self.max_n)
        for observations in self.evidence:
            charges.update(observations)
        return charges

    def solve(self, preferences: Sequence[Preference], strategy: Strategy, *, apart: bool = False) -> Outcome:
        """Solve any preferences from the stored evidence, without LM calls.

        Args:
            preferences: The preferences.
            strategy: The strategy that the policy was compiled with.
            apart: Whether each of them gets the arm that it would get alone; see `with_stops`.

        Raises:
            ConfigurationError: One of them prices or caps something that was not measured.
        """
        for preference in preferences:
            check_known(preference, self.evidence)
        problem = self.problem(preferences, strategy)
        outcome = self.algorithm.solve(problem, self.evidence)
        if self.stopping is not None:
            outcome = with_stops(problem, outcome, mode=self.stopping, apart=apart)
        if self.compound:
            outcome = with_compounds(problem, outcome)
        return with_promises(problem, outcome, compound=self.compound)

    def problem(self, preferences: Sequence[Preference], strategy: Strategy) -> Problem:
        """Return the problem of any preferences over the stored prompts."""
        return Problem(
            n_prompts=len(self.prompts),
            n_queries=self.n_queries,
            max_n=self.max_n,
            contexts=Contexts.from_preferences(preferences, strategy.objectives, columns_of(strategy)),
            aggregator=strategy.aggregator(),
            cost_scale=self.cost_scale,
            parts=shared_parts(self.prompts),
        )

    def outcome(self, strategy: Strategy) -> Outcome:
        """Return the compiled arms with their estimates by the stored evidence.

        Arms that would be chosen otherwise today have the estimates of `as_called`.
        """
        found = self.solve(self.preferences, strategy)
        stops = None
        if found.stops is not None:
            chosen = zip(self.arms, found.stops, strict=True)
            problem = self.problem(self.preferences, strategy)
            stops = tuple(s if s.arm == arm else as_called(problem, found, c, arm) for c, (arm, s) in enumerate(chosen))
        return replace(found, policy=Policy(self.arms), stops=stops, measured=self.measured)

    def repriced(self, cost: Cost, prices: Sequence[Price], strategy: Strategy) -> tuple[CompiledPolicy, Outcome]:
        """Return the policy at other prices of tokens, from the stored evidence.

        Args:
            cost: The unit of costs, with the new prices. The scale stays: a dollar is worth as much utility as before.
            prices: Of each prompt's LM [P].
            strategy: The strategy.

        Raises:
            ConfigurationError: The evidence does not say how many tokens calls took.
        """
        policy = replace(self, cost=cost, evidence=rounded([at_prices(o, cost, prices) for o in self.evidence]))
        outcome = policy.solve(self.preferences, strategy)
        return replace(policy, arms=outcome.policy.arms, measured=None, calibrations=None), outcome

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "preferences": [{**p.to_dict(), **saved_arm(a)} for p, a in zip(self.preferences, self.arms, strict=True)],
            "default": self.default,
            "prompts": [p.to_dict() for p in self.prompts],
            "max_n": self.max_n,
            "n_queries": self.n_queries,
            "cost": self.cost.to_dict(),
            "cost_scale": self.cost_scale,
            "prompt_costs": self.prompt_costs,
            **saved_algorithm(self.algorithm),
            "stopping": self.stopping,
            "compound": self.compound,
            "strategy": dict(self.strategy),
            "spent": dict(self.spent),
            "evidence": packed([dumped(o) for o in self.evidence]),
            **({} if self.measured is None else {"measured": plain(self.measured)}),
            **(
                {}
                if self.calibrations is None
                else {"calibrations": [None if c is None else c.to_dict() for c in self.calibrations]}
            ),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompiledPolicy:
        """Read data that `to_dict` wrote.

        Raises:
            StateError: The data are not a policy, or they are of a newer version.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or not isinstance(data.get("version"), int):
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise StateError(f"This is not a saved policy: its format is {found!r}, not {FORMAT!r}.")
        if data["version"] > VERSION:
            raise StateError(
                f"The saved policy has version {data['version']}; this iapo_dspy reads up to {VERSION}. Upgrade it."
            )
        with part("its numbers"):
            max_n, n_queries = (_whole(data, name, 1, MOST) for name in ("max_n", "n_queries"))
            cost_scale = float(data["cost_scale"])
            if not 0 <= cost_scale < math.inf:
                raise ValueError(f"cost_scale={cost_scale}: it must be a finite number >= 0")
            if data.get("stopping") not in (None, *get_args(StopMode)):  # up to version 3, all N were drawn at once
                raise ValueError(f"stopping={data['stopping']!r}: known are {get_args(StopMode)} and null")
        with part("prompts"):
            prompts = tuple(PromptState.from_dict(p) for p in data["prompts"])
        preferences, arms = [], []
        for i, saved in enumerate(_listed(data, "preferences")):
            with part(f"preferences[{i}]"):
                preferences.append(Preference.from_dict(saved))
                arms.append(read_arm(saved, len(prompts), max_n))
        with part("evidence"):  # up to version 4, it was not packed
            rounds = data["evidence"] if isinstance(data["evidence"], list) else unpacked(data["evidence"])
        evidence = []
        for i, saved in enumerate(_listed({"evidence": rounds}, "evidence")):
            with part(f"evidence[{i}]"):
                evidence.append(loaded(saved))
                check_ranges(evidence[-1], len(prompts), n_queries)
        with part("its settings"):
            if data["default"] not in [p.name for p in preferences] or len({o.score.shape[1] for o in evidence}) > 1:
                raise ValueError(f"default={data['default']!r} is not the name of a preference, or scores differ in K")
            return cls(
                preferences=tuple(preferences),
                arms=tuple(arms),
                prompts=prompts,
                algorithm=read_algorithm(data),
                stopping=data.get("stopping"),
                compound=bool(data.get("compound", False)),  # up to version 5, there was nothing but single prompts
                evidence=tuple(evidence),
                # Version 1 always counted output tokens.
                cost=Cost.from_dict(data["cost"]) if "cost" in data else Cost(),
                max_n=max_n,
                n_queries=n_queries,
                cost_scale=cost_scale,
                default=data["default"],
                strategy={**data["strategy"]},
                spent={**data["spent"]},
                measured=_measured(data, len(preferences)),
                calibrations=_calibrations(data, len(preferences)),
            )


@contextlib.contextmanager
def part(place: str) -> Iterator[None]:
    """Turn an error that data from elsewhere raise into one that says where in them.

    Raises:
        StateError: The data cannot be used.
    """
    try:
        yield
    except StateError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise StateError(
            f"The saved policy is damaged at {place}: {one_line(error)}. Take another copy of it, or compile again."
        ) from error


def checked(adapter: TypeAdapter[T], data: Any) -> T:
    """Return data from elsewhere as the adapter's type.

    Raises:
        ValueError: They do not fit it; the message says where.
    """
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}, not {first['input']!r}"[:200]) from error


def _listed(data: Mapping[str, Any], name: str) -> list[Any]:
    with part(name):
        if isinstance(data[name], list):
            return list(data[name])
        raise TypeError(f"{name} must be a list")


def _whole(data: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = data[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}={value!r}: it must be a whole number from {least} to {most}")
    return value


def _measured(data: Mapping[str, Any], n_preferences: int) -> tuple[HeldOut | None, ...] | None:
    saved = data.get("measured")
    if saved is None:
        return None
    with part("measured"):
        # Up to version 4, an error that is not known was null.
        known = [m and {k: _or_nan(v) for k, v in m.items()} for m in saved]
        found = checked(_MEASURED, known)
        if len(found) != n_preferences:
            raise ValueError(f"there are {len(found)}, for {n_preferences} preferences")
        return found


def _calibrations(data: Mapping[str, Any], n_preferences: int) -> tuple[ConfidenceMap | None, ...] | None:
    saved = data.get("calibrations")
    if saved is None:
        return None
    with part("calibrations"):
        found = tuple(None if c is None else ConfidenceMap.from_dict(c) for c in saved)
        if len(found) != n_preferences:
            raise ValueError(f"there are {len(found)}, for {n_preferences} preferences")
        return found


def _or_nan(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_or_nan, value))
    return math.nan if value is None else value
