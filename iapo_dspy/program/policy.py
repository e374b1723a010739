"""The policy with all it rests on, as one DSPy parameter that survives saving, loading and nesting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np
from dspy.predict.parameter import Parameter

from iapo_dspy.bandit.problem import Outcome, Problem
from iapo_dspy.bandit.replay import solve
from iapo_dspy.bandit.screening import Screening
from iapo_dspy.errors import ConfigurationError, StateError, UnknownPreference
from iapo_dspy.program.prompts import Prompt, clone, program_state, restore
from iapo_dspy.scoring.strategies import MajorityVote, Strategy
from iapo_dspy.types import Arm, Contexts, Decoding, Observations, Preference, Pulls

logger = logging.getLogger(__name__)

__all__ = ["CompiledPolicy", "PolicyTable", "PromptState", "strategy_from_dict"]

FORMAT = "iapo_dspy.policy"
VERSION = 1
THIN_EVIDENCE = 8  # blocks below which the estimate of an arm that was never compiled for deserves a warning


@dataclass(frozen=True, kw_only=True)
class PromptState:
    """A prompt in its saved form.

    Attributes:
        state: Predictor name -> its DSPy state (instructions, demos), without an LM.
        decoding: Settings that override the LM's own.
        candidate: Position in the user's list of candidates.
        label: A short text for tables.
    """

    state: Mapping[str, Any]
    decoding: Decoding
    candidate: int
    label: str

    @classmethod
    def of(cls, prompt: Prompt) -> PromptState:
        """Save a prompt."""
        return cls(
            state=program_state(prompt.program),
            decoding=prompt.decoding,
            candidate=prompt.candidate,
            label=prompt.label,
        )


@dataclass(frozen=True, kw_only=True)
class CompiledPolicy:
    """What `compile` learnt: the arm of each preference, and the evidence that answers for any other.

    Attributes:
        preferences: The compiled preferences, each with a name.
        arms: Their arms, in the same order.
        default: Name of the preference used where a call names none.
        prompts: The prompt set P.
        max_n: Largest scale.
        n_queries: Training queries.
        cost_scale: Utility of one output token at cost weight 1.
        algorithm: Name of the algorithm that ran.
        screening: Its Top-K screening, if any.
        strategy: The strategy as JSON data.
        evidence: What was observed, round by round.
        spent: Completions, tokens, dollars and the like that the run took.
    """

    preferences: tuple[Preference, ...]
    arms: tuple[Arm, ...]
    default: str
    prompts: tuple[PromptState, ...]
    max_n: int
    n_queries: int
    cost_scale: float
    algorithm: str
    screening: Screening | None
    strategy: Mapping[str, Any]
    evidence: tuple[Observations, ...] = field(repr=False)
    spent: Mapping[str, Any]

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
        """Return the compiled arm of a preference of the same weights, whatever its name."""
        for known, arm in zip(self.preferences, self.arms, strict=True):
            if (known.cost, known.weights) == (preference.cost, preference.weights):
                return arm
        return None

    def problem(self, contexts: Contexts, strategy: Strategy) -> Problem:
        """Return the run's bandit problem for other contexts."""
        return Problem(
            n_prompts=len(self.prompts),
            n_queries=self.n_queries,
            max_n=self.max_n,
            contexts=contexts,
            aggregator=strategy.aggregator(),
            cost_scale=self.cost_scale,
        )

    def solve(self, preference: Preference, strategy: Strategy) -> Outcome:
        """Solve a preference that was not compiled from the stored evidence, without LM calls."""
        contexts = Contexts.from_preferences([preference], strategy.objectives)
        return solve(self.problem(contexts, strategy), self.evidence, screening=self.screening)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "preferences": [
                {**p.to_dict(), "arm": [a.prompt, a.n]} for p, a in zip(self.preferences, self.arms, strict=True)
            ],
            "default": self.default,
            "prompts": [
                {
                    "state": dict(p.state),
                    "decoding": p.decoding.as_kwargs(),
                    "candidate": p.candidate,
                    "label": p.label,
                }
                for p in self.prompts
            ],
            "max_n": self.max_n,
            "n_queries": self.n_queries,
            "cost_scale": self.cost_scale,
            "algorithm": self.algorithm,
            "screening": {"k": self.screening.k, "rho": self.screening.rho} if self.screening else None,
            "strategy": dict(self.strategy),
            "spent": dict(self.spent),
            "evidence": [_dump(o) for o in self.evidence],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompiledPolicy:
        """Read what `to_dict` wrote.

        Raises:
            StateError: The data are no policy, or one of a newer version.
        """
        if data.get("format") != FORMAT or not isinstance(data.get("version"), int):
            raise StateError(f"This is no saved policy: its format is {data.get('format')!r}, not {FORMAT!r}.")
        if data["version"] > VERSION:
            raise StateError(
                f"The saved policy has version {data['version']}; this iapo_dspy reads up to {VERSION}. Upgrade it."
            )
        try:
            return cls(
                preferences=tuple(Preference.from_dict(p) for p in data["preferences"]),
                arms=tuple(Arm(*p["arm"]) for p in data["preferences"]),
                default=data["default"],
                prompts=tuple(
                    PromptState(
                        state=p["state"],
                        decoding=Decoding(**p["decoding"]),
                        candidate=p["candidate"],
                        label=p["label"],
                    )
                    for p in data["prompts"]
                ),
                max_n=data["max_n"],
                n_queries=data["n_queries"],
                cost_scale=data["cost_scale"],
                algorithm=data["algorithm"],
                screening=Screening(**data["screening"]) if data["screening"] else None,
                strategy=data["strategy"],
                evidence=tuple(_load(o) for o in data["evidence"]),
                spent=data["spent"],
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise StateError(f"The saved policy is damaged: {type(exc).__name__}: {exc}.") from exc


def _dump(observations: Observations) -> dict[str, Any]:
    """Numbers as text, row by row: DSPy writes JSON with one array element a line, which would be a line a number."""
    pulls, score = observations.pulls, observations.score
    return {
        "prompt": _text(pulls.prompt),
        "query": _text(pulls.query),
        "size": _text(pulls.size),
        "label": _text(observations.label),
        "score": [_text(column) for column in score.T],
        "cost": _text(observations.cost),
    }


def _text(values: np.ndarray[Any, Any]) -> str:
    return " ".join(f"{v:.9g}" for v in values.tolist())


def _numbers(text: str, dtype: type) -> np.ndarray[Any, Any]:
    return np.array(text.split(), dtype=float).astype(dtype)


def _load(data: Mapping[str, Any]) -> Observations:
    return Observations(
        pulls=Pulls(*(_numbers(data[k], np.int64) for k in ("prompt", "query", "size"))),
        label=_numbers(data["label"], np.int64),
        score=np.stack([_numbers(column, np.float64) for column in data["score"]], axis=1),
        cost=_numbers(data["cost"], np.float64),
    )


def rounded(observations: Sequence[Observations]) -> tuple[Observations, ...]:
    """Return the observations as they would be read back, so that a loaded program solves exactly like this one."""
    return tuple(_load(_dump(o)) for o in observations)


def strategy_from_dict(data: Mapping[str, Any]) -> Strategy:
    """Rebuild a strategy that needs no code of the user's.

    Raises:
        StateError: It has callables (objectives, a custom `normalize`), which JSON cannot hold.
    """
    if data.get("kind") == "majority_vote" and data.get("normalize") is None:
        return MajorityVote(data["field"], bounds=tuple(data["bounds"]), strict=False)
    names = [o["name"] for o in data.get("objectives", ())] or [data.get("normalize")]
    raise StateError(
        f"The program was compiled with functions of yours ({names}), which plain JSON cannot hold. Pass the same "
        "strategy again: CompiledProgram(student, strategy=...)."
    )


class PolicyTable(Parameter):  # type: ignore[misc]  # dspy ships no types
    """A `CompiledPolicy` and its programs as a DSPy parameter.

    DSPy saves and loads parameters by name wherever they are nested, which it does not do for a module's own
    `dump_state`. The table therefore holds everything that the compiled program needs.

    Args:
        student: The program that was compiled, or a fresh one of its class; it is copied.
        strategy: The strategy; None for one that the saved state describes completely.
        data: The policy; None before one is loaded.
    """

    def __init__(
        self, student: dspy.Module, strategy: Strategy | None = None, data: CompiledPolicy | None = None
    ) -> None:
        self.student = clone(student)
        self.strategy = strategy
        self._given_strategy = strategy
        self.data: CompiledPolicy | None = None
        self.arms: list[dspy.Module] = []  # the programs of the compiled arms, in the order of `in_use`
        self.in_use: tuple[int, ...] = ()
        self._others: dict[int, dspy.Module] = {}
        self._solved: dict[Preference, Arm] = {}
        self._lock = threading.Lock()
        if data is not None:
            self._adopt(data)

    def __deepcopy__(self, memo: dict[int, Any]) -> PolicyTable:
        """Copy the programs; policies are frozen and strategies hold the user's functions, so they are shared."""
        import copy

        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.student = clone(self.student)
        twin.strategy, twin._given_strategy, twin.data = self.strategy, self._given_strategy, self.data
        twin.arms = memo[id(self.arms)] if id(self.arms) in memo else [clone(a) for a in self.arms]
        memo[id(self.arms)] = twin.arms
        twin.in_use = self.in_use
        twin._others = {}
        twin._solved = copy.copy(self._solved)
        twin._lock = threading.Lock()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, which cannot be pickled."""
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _adopt(self, data: CompiledPolicy) -> None:
        strategy = self._given_strategy or strategy_from_dict(data.strategy)
        if strategy.to_dict() != data.strategy:
            raise StateError(
                f"The program was compiled with the strategy {dict(data.strategy)}, but was given "
                f"{strategy.to_dict()}. Pass the strategy it was compiled with."
            )
        in_use = tuple(sorted({arm.prompt for arm in data.arms}))
        programs = [restore(self.student, data.prompts[p].state) for p in in_use]
        self.strategy, self.data, self.in_use = strategy, data, in_use
        self.arms[:] = programs  # in place: the module shares this list
        self._others.clear()
        self._solved.clear()

    @property
    def ready(self) -> CompiledPolicy:
        """The policy.

        Raises:
            ConfigurationError: Nothing has been compiled or loaded yet.
        """
        if self.data is None:
            raise ConfigurationError("This program has no policy yet: compile it with IAPO, or load a saved one.")
        return self.data

    def arm_of(self, preference: Preference) -> Arm:
        """Return the arm of any preference, solved from the evidence where it was not compiled."""
        data = self.ready
        arm = data.arm(preference) or self._solved.get(preference)
        if arm is not None:
            return arm
        assert self.strategy is not None  # set together with the data
        outcome = data.solve(preference, self.strategy)
        arm = outcome.policy[0]
        evidence = int(outcome.evidence[0])
        if evidence < THIN_EVIDENCE:
            logger.warning(
                "%s was solved from stored evidence; its arm (prompt %d, n=%d) rests on %d observations only. Compile "
                "with this preference for a firmer choice.", preference, arm.prompt, arm.n, evidence,
            )  # fmt: skip
        with self._lock:
            self._solved[preference] = arm
        return arm

    def program_of(self, prompt: int) -> dspy.Module:
        """Return the program of a prompt; for one without a compiled arm it is made when first needed."""
        if prompt in self.in_use:
            return self.arms[self.in_use.index(prompt)]
        with self._lock:
            if prompt not in self._others:
                program = restore(self.student, self.ready.prompts[prompt].state)
                if self.arms:  # a later set_lm reached the compiled arms only
                    lms = {name: p.lm for name, p in self.arms[0].named_predictors()}
                    for name, predictor in program.named_predictors():
                        predictor.lm = lms[name]
                self._others[prompt] = program
            return self._others[prompt]

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the policy as JSON data, with the arms as they are now (another optimizer may have changed them)."""
        if self.data is None:
            return {"format": FORMAT, "version": VERSION, "empty": True}
        state = self.data.to_dict()
        for position, prompt in enumerate(self.in_use):
            state["prompts"][prompt]["state"] = program_state(self.arms[position])
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Read what `dump_state` wrote.

        Raises:
            StateError: It is no policy, is newer than this package, or does not fit the student or the strategy.
        """
        if state.get("empty"):
            self.reset()
        else:
            self._adopt(CompiledPolicy.from_dict(state))

    def reset(self) -> None:
        """Forget the policy."""
        self.data, self.in_use = None, ()
        self.strategy = self._given_strategy
        self.arms.clear()
        self._others.clear()
        self._solved.clear()
