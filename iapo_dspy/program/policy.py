"""The policy with all it rests on, as one DSPy parameter that survives saving, loading and nesting."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
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
MOST_SOLVED = 256  # ad hoc preferences whose arms are remembered
THIN_EVIDENCE = 8  # blocks below which the estimate of an arm that was never compiled for deserves a warning


@dataclass(frozen=True, kw_only=True)
class PromptState:
    """A prompt in its saved form.

    Attributes:
        state: Predictor name -> its DSPy state (instructions, demos), without an LM.
        decoding: Settings that override the LM's own.
        candidate: Position in the user's list of candidates.
        label: A short text for tables.
        lms: Predictor name -> model string of the LM that it brought of its own; the LM itself is not saved.
    """

    state: Mapping[str, Any]
    decoding: Decoding
    candidate: int
    label: str
    lms: Mapping[str, str]

    @classmethod
    def of(cls, prompt: Prompt, student: dspy.Module) -> PromptState:
        """Save a prompt."""
        plain = {name: p.lm for name, p in student.named_predictors()}
        own = {name: p.lm for name, p in prompt.program.named_predictors() if p.lm is not plain.get(name)}
        return cls(
            state=program_state(prompt.program),
            decoding=prompt.decoding,
            candidate=prompt.candidate,
            label=prompt.label,
            lms={name: lm.model for name, lm in own.items() if lm is not None},
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
                    "lms": dict(p.lms),
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
                        lms=p["lms"],
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


def _compare(given: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse another strategy; functions are compared by name only, and only with a warning."""

    def split(data: Mapping[str, Any]) -> tuple[Any, Any]:
        objectives = [{k: v for k, v in o.items() if k != "score"} for o in data.get("objectives", ())]
        names = [data.get("normalize"), *(o.get("score") for o in data.get("objectives", ()))]
        rest = {k: v for k, v in data.items() if k not in ("objectives", "normalize")}
        return [rest, objectives, data.get("normalize") is None], names

    (mine, my_names), (theirs, their_names) = split(given), split(saved)
    if mine != theirs:
        raise StateError(
            f"The program was compiled with the strategy {dict(saved)}, but was given {dict(given)}. Pass the strategy "
            "it was compiled with."
        )
    if my_names != their_names:
        logger.warning("The program was compiled with the functions %s; it now uses %s.", their_names, my_names)


class PolicyTable(Parameter):  # type: ignore[misc]  # dspy ships no types
    """A `CompiledPolicy` and its programs as a DSPy parameter.

    DSPy saves and loads parameters by name wherever they are nested, which it does not do for a module's own
    `dump_state`. The table therefore holds everything that the compiled program needs.

    Args:
        student: The program that was compiled, or a fresh one of its class; it is copied.
        strategy: The strategy; None for one that the saved state describes completely.
        data: The policy; None before one is loaded.
        programs: The program of every prompt, as it was measured; None makes them from the student and the policy.
        preference_field: The keyword by which a call chooses its preference, or None.

    Attributes:
        default: The preference of calls that name none; None is the policy's own default.
    """

    def __init__(
        self,
        student: dspy.Module,
        strategy: Strategy | None = None,
        data: CompiledPolicy | None = None,
        programs: Sequence[dspy.Module] | None = None,
        preference_field: str | None = "preference",
    ) -> None:
        self.student = clone(student)
        self.strategy = strategy
        self.default: str | Preference | None = None
        self.preference_field = preference_field
        self._measured = tuple(programs) if programs is not None else None
        self._given_strategy = strategy
        self.data: CompiledPolicy | None = None
        self.arms: list[dspy.Module] = []  # the programs of the compiled arms, in the order of `in_use`
        self.in_use: tuple[int, ...] = ()
        self._others: dict[int, dspy.Module] = {}
        self._solved: OrderedDict[Preference, Arm] = OrderedDict()
        self._lock = threading.Lock()
        if data is not None:
            self._adopt(data)

    def __deepcopy__(self, memo: dict[int, Any]) -> PolicyTable:
        """Copy the programs; policies are frozen and strategies hold the user's functions, so they are shared."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.student = clone(self.student)
        twin.strategy, twin._given_strategy, twin.data = self.strategy, self._given_strategy, self.data
        twin.default, twin.preference_field, twin._measured = self.default, self.preference_field, self._measured
        twin.arms = memo[id(self.arms)] if id(self.arms) in memo else [clone(a) for a in self.arms]
        memo[id(self.arms)] = twin.arms
        twin.in_use = self.in_use
        twin._others = {}
        twin._solved = copy.copy(self._solved)
        twin._lock = threading.Lock()
        return twin

    def with_default(self, preference: str | Preference) -> PolicyTable:
        """Return a table of the same programs with another default preference."""
        view = copy.copy(self)
        view.default = preference
        view.arms = list(self.arms)  # loading into the view must not change this table
        return view

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, which cannot be pickled."""
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _adopt(self, data: CompiledPolicy) -> None:
        strategy = self._given_strategy or strategy_from_dict(data.strategy)
        _compare(strategy.to_dict(), data.strategy)
        in_use = tuple(sorted({arm.prompt for arm in data.arms}))
        programs = [self._make(data, p) for p in in_use]
        self.strategy, self.data, self.in_use = strategy, data, in_use
        self.arms[:] = programs  # in place: the module shares this list
        self._others.clear()
        self._solved.clear()

    def _make(self, data: CompiledPolicy, prompt: int) -> dspy.Module:
        """Return a new copy of a prompt's program: the one that was measured, or one with its saved state."""
        if self._measured is not None:
            return clone(self._measured[prompt])
        program = restore(self.student, data.prompts[prompt].state)
        for name, predictor in program.named_predictors():
            model = data.prompts[prompt].lms.get(name)
            if model is not None and (predictor.lm is None or predictor.lm.model != model):
                logger.warning(
                    "Prompt %d was measured with the LM %r for its predictor %r, which a saved program does not hold: "
                    "set it.", prompt, model, name,
                )  # fmt: skip
        return program

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
            if len(self._solved) > MOST_SOLVED:
                self._solved.popitem(last=False)
        return arm

    def program_of(self, prompt: int) -> dspy.Module:
        """Return the program of a prompt; for one without a compiled arm it is made when first needed."""
        if prompt in self.in_use:
            return self.arms[self.in_use.index(prompt)]
        with self._lock:
            if prompt not in self._others:
                self._others[prompt] = self._make(self.ready, prompt)
            program = self._others[prompt]
            own = self._own_lms()
            models = [arm for arm, index in zip(self.arms, self.in_use, strict=True) if index not in own]
            if prompt not in own and models:  # set_lm reaches the compiled arms only
                lms = {name: p.lm for name, p in models[0].named_predictors()}
                for name, predictor in program.named_predictors():
                    predictor.lm = lms[name]
            return program

    def _own_lms(self) -> frozenset[int]:
        """Prompts that brought LMs of their own; they keep them. A loaded program has none of those LMs."""
        return frozenset(i for i, p in enumerate(self.ready.prompts) if p.lms and self._measured is not None)

    def label_of(self, prompt: int) -> str:
        """Return a prompt in words, as it is now: another optimizer may have changed an arm."""
        if prompt not in self.in_use:
            return self.ready.prompts[prompt].label
        decoding = self.ready.prompts[prompt].decoding
        return Prompt(program=self.program_of(prompt), decoding=decoding, candidate=0).label

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the policy as JSON data, with the arms as they are now (another optimizer may have changed them)."""
        if self.data is None:
            return {"format": FORMAT, "version": VERSION, "empty": True}
        state = self.data.to_dict()
        for position, prompt in enumerate(self.in_use):
            state["prompts"][prompt] |= {"state": program_state(self.arms[position]), "label": self.label_of(prompt)}
        default = self.default
        state["calls"] = {
            "default": default.to_dict() if isinstance(default, Preference) else default,
            "preference_field": self.preference_field,
        }
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Read what `dump_state` wrote.

        Raises:
            StateError: It is no policy, is newer than this package, or does not fit the student or the strategy.
        """
        if state.get("empty"):
            self._clear()
        else:
            data = CompiledPolicy.from_dict(state)
            measured, self._measured = self._measured, None
            try:
                self._adopt(data)
            except BaseException:
                self._measured = measured
                raise
            calls = state.get("calls", {})
            default = calls.get("default")
            self.default = Preference.from_dict(default) if isinstance(default, Mapping) else default
            self.preference_field = calls.get("preference_field", self.preference_field)

    def reset(self) -> None:
        """Do what DSPy's `reset` does: keep what the program is, as `Predict` keeps its instructions.

        Optimizers such as BootstrapFewShot start from `reset_copy()`; without its policy the copy could not run.
        """
        self._solved.clear()

    def _clear(self) -> None:
        self.data, self.in_use, self._measured, self.default = None, (), None, None
        self.strategy = self._given_strategy
        self.arms.clear()
        self._others.clear()
        self._solved.clear()
