"""The compiled programs and their policy as one DSPy parameter that survives saving, loading and nesting."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import numpy as np
from cachetools import FIFOCache
from dspy.predict.parameter import Parameter

from iapo_dspy.errors import ConfigurationError, StateError
from iapo_dspy.preferences import Preference
from iapo_dspy.program.caps import check_caps, tokens_of_each
from iapo_dspy.program.policy import FORMAT, VERSION, CompiledPolicy
from iapo_dspy.program.solver import MOST_SOLVED, THIN_EVIDENCE, WIDE_ERROR, Chosen
from iapo_dspy.prompts.lms import LMs, ModelName, Pool
from iapo_dspy.prompts.prompt import Prompt, clone, output_fields, program_state, restore
from iapo_dspy.sampling.spending.pricing import Price, price_of
from iapo_dspy.scoring.strategies import Calibrates, Strategy, fitted
from iapo_dspy.scoring.strategies.saved import functions_of, rebuilt, without_functions
from iapo_dspy.types import Arm

logger = logging.getLogger(__name__)

__all__ = ["PolicyTable", "strategy_from_dict"]


def strategy_from_dict(data: Mapping[str, Any]) -> Strategy:
    """Rebuild a strategy that needs no code of the user's.

    Raises:
        StateError: It has callables (objectives, a custom `normalize`), which JSON cannot hold.
    """
    strategy = rebuilt(data)
    if strategy is not None:
        return strategy
    names = functions_of(data) or [str(data.get("kind"))]
    raise StateError(
        f"The program was compiled with functions of yours ({names}), which plain JSON cannot hold. Pass the same "
        "strategy again: CompiledProgram(student, strategy=...)."
    )


def _is(lm: Any, name: ModelName) -> bool:
    """Whether an LM that is there anyway, the student's or the configured one, is of this name."""
    return isinstance(lm, dspy.BaseLM) and ModelName(lm.model) == name


def _ways(name: ModelName) -> str:
    order = "" if name.nth == 1 else ", all of this model string in the order of IAPO(lms=...)"
    return (
        f"Give it: CompiledProgram(student, lms=[dspy.LM({name.model!r}), ...]){order}. Or configure it with "
        "dspy.configure(lm=...). Or run every arm on one LM of your choice: program.set_lm(lm)."
    )


def _compare(given: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse another strategy; functions are compared by name only, and only with a warning."""
    my_names, their_names = functions_of(given), functions_of(saved)
    if without_functions(given) != without_functions(saved):
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
        lms: LMs for prompts that have LMs of their own, found by model string.

    Attributes:
        default: The preference of calls that name none; None is the policy's own default.
        lm: The LM that every prompt runs on, whatever it was measured with; None is each prompt's own.
    """

    def __init__(
        self,
        student: dspy.Module,
        strategy: Strategy | None = None,
        data: CompiledPolicy | None = None,
        programs: Sequence[dspy.Module] | None = None,
        preference_field: str | None = "preference",
        lms: Sequence[LMs] = (),
    ) -> None:
        self.student = clone(student)
        self.strategy = strategy
        self.default: str | Preference | None = None
        self.preference_field = preference_field
        self.lm: dspy.BaseLM | None = None
        self._lms = Pool(lms)
        self._measured = tuple(programs) if programs is not None else None
        self._given_strategy = strategy
        self.data: CompiledPolicy | None = None
        self.arms: list[dspy.Module] = []  # the programs of the compiled arms, in the order of `in_use`
        self.in_use: tuple[int, ...] = ()
        self._others: dict[int, dspy.Module] = {}
        self._solved: FIFOCache[Preference, Chosen] = FIFOCache(MOST_SOLVED)
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
        twin.lm, twin._lms = self.lm, self._lms
        twin.arms = memo[id(self.arms)] if id(self.arms) in memo else [clone(a) for a in self.arms]
        memo[id(self.arms)] = twin.arms
        twin.in_use = self.in_use
        twin._others = {}
        twin._solved = FIFOCache(MOST_SOLVED)
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
        strategy = fitted(strategy, output_fields(self.student))
        if isinstance(strategy, Calibrates) and data.strategy.get("calibration"):
            strategy = strategy.restore(data.strategy["calibration"])  # the scales of the run, whatever was given
        in_use = tuple(sorted({arm.prompt for arm in data.arms}))
        programs = [self._make(data, p) for p in in_use]
        self.strategy, self.data, self.in_use = strategy, data, in_use
        self.arms[:] = programs  # in place: the module shares this list
        self._others.clear()
        self._solved.clear()

    def replace_data(self, data: CompiledPolicy) -> None:
        """Take another policy over the same prompts; the programs stay as they are, also where they were changed."""
        programs = {p: self.program_of(p) for p in sorted({arm.prompt for arm in data.arms})}
        self.data, self.in_use = data, tuple(programs)
        self.arms[:] = programs.values()
        self._others.clear()
        self._solved.clear()

    def _make(self, data: CompiledPolicy, prompt: int) -> dspy.Module:
        """Return a new copy of a prompt's program: the one that was measured, or one with its saved state."""
        if self._measured is not None:
            return clone(self._measured[prompt])
        program = restore(self.student, data.prompts[prompt].state)
        for name, predictor in program.named_predictors():
            predictor.lm = self._home(data, prompt, name)
        return program

    def _home(self, data: CompiledPolicy, prompt: int, predictor: str) -> dspy.BaseLM | None:
        """Return the LM that a prompt's predictor has unless somebody sets another one; None is the configured one."""
        name = data.prompts[prompt].lms.get(predictor)
        students: dspy.BaseLM | None = dict(self.student.named_predictors())[predictor].lm
        if name is None:
            return students
        found = self._lms.find(predictor, name)
        return students if found is None and _is(students, name) else found

    def _missing(self, data: CompiledPolicy, prompt: int, program: dspy.Module) -> dict[str, ModelName]:
        """Give predictors their LMs where these were taken away; return those whose LM is nowhere to be found."""
        missing = {}
        for predictor_name, predictor in program.named_predictors():
            name = data.prompts[prompt].lms.get(predictor_name)
            if predictor.lm is None and name is not None:
                predictor.lm = self._home(data, prompt, predictor_name)  # `reset_copy` takes LMs away
                if predictor.lm is None and not _is(dspy.settings.lm, name):
                    missing[predictor_name] = name
        return missing

    def _warn(self) -> None:
        """Say which LMs the compiled arms lack."""
        data = self.ready
        found: dict[ModelName, list[str]] = {}
        for prompt, program in zip(self.in_use, self.arms, strict=True):
            users = [str(p.name) for p, arm in zip(data.preferences, data.arms, strict=True) if arm.prompt == prompt]
            for name in set(self._missing(data, prompt, program).values()):
                found.setdefault(name, []).extend(users)
        for name, users in found.items():
            logger.warning(
                "The preferences %s run on the LM %s, which a saved program does not hold and nobody has given. %s",
                users, name, _ways(name),
            )  # fmt: skip

    def runnable(self, prompt: int) -> dspy.Module:
        """Return the program of a prompt, on its LMs.

        Raises:
            ConfigurationError: An LM that it was measured with is not there. It never runs on another one by itself.
        """
        program = self.program_of(prompt)
        for predictor, name in self._missing(self.ready, prompt, program).items():
            configured = dspy.settings.lm
            there = (
                f"the configured LM is {configured.model!r}" if isinstance(configured, dspy.BaseLM) else "none is set"
            )
            raise ConfigurationError(
                f"Prompt {prompt} ({self.label_of(prompt)}) was measured with the LM {name} for its predictor "
                f"{predictor!r}, which this program was not given ({there}). {_ways(name)}"
            )
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
        """Return the arm of any preference, solved from the evidence where it was not compiled.

        Raises:
            CapsTooTight: No arm keeps its caps.
            ConfigurationError: It prices or caps something that was not measured.
        """
        return self.chosen(preference).arm

    def chosen(self, preference: Preference) -> Chosen:
        """Return the arm of any preference, and what a call of it must limit; raises as `arm_of` does."""
        data = self.ready
        found = self._solved.get(preference)
        if found is None:
            arm = data.arm(preference)
            found = self._check(preference, arm if arm is not None else self._solve(preference))
            with self._lock:
                self._solved[preference] = found
        return found

    def _solve(self, preference: Preference) -> Arm:
        assert self.strategy is not None  # set together with the data
        outcome = self.ready.solve(preference, self.strategy)
        arm = outcome.policy[0]
        evidence = int(outcome.evidence[0])
        if evidence < THIN_EVIDENCE:
            logger.warning(
                "%s was solved from stored evidence; its arm (prompt %d, n=%d) rests on %d observations only. Compile "
                "with this preference for a firmer choice.", preference, arm.prompt, arm.n, evidence,
            )  # fmt: skip
        elif outcome.estimates.standard_error is not None:
            error = float(outcome.estimates.standard_error[0, arm.prompt, arm.n - 1])
            weights = preference.vector(self.strategy.objectives)
            scores = np.concatenate([o.score for o in self.ready.evidence]) @ weights
            if error > WIDE_ERROR * np.ptp(scores[~np.isnan(scores)]):
                logger.warning(
                    "%s was solved from stored evidence; the utility of its arm (prompt %d, n=%d) has a standard error "
                    "of %.3f, for the run drew that prompt on %d examples only. Compile with this preference for a "
                    "firmer choice.", preference, arm.prompt, arm.n, error, evidence,
                )  # fmt: skip
        return arm

    def _check(self, preference: Preference, arm: Arm) -> Chosen:
        if not preference.caps:
            return Chosen(arm=arm)
        charges = self.ready.charges(preference)
        check_caps(preference, arm, charges, self.label_of(arm.prompt))
        price = self._price_of(arm.prompt) if preference.max_usd is not None else None
        return Chosen(arm=arm, tokens_each=tokens_of_each(preference, arm, charges, price))

    def _price_of(self, prompt: int) -> Price | None:
        """Return the price of a prompt's LM; None where it is not known, or where its predictors have several."""
        lms = [p.lm or dspy.settings.lm for _, p in self.program_of(prompt).named_predictors()]
        prices = {price_of(lm, self.ready.cost.prices) if isinstance(lm, dspy.BaseLM) else None for lm in lms}
        return prices.pop() if len(prices) == 1 else None

    def program_of(self, prompt: int) -> dspy.Module:
        """Return the program of a prompt; for one without a compiled arm it is made when first needed."""
        if prompt in self.in_use:
            return self.arms[self.in_use.index(prompt)]
        with self._lock:
            if prompt not in self._others:
                self._others[prompt] = self._make(self.ready, prompt)
            program = self._others[prompt]
            for name, predictor in program.named_predictors():  # set_lm reaches the compiled arms only
                lm = self._set(name) or self._home(self.ready, prompt, name)
                if predictor.lm is not lm:
                    predictor.lm = lm
            return program

    def _set(self, predictor: str) -> dspy.BaseLM | None:
        """Return the LM that somebody has set for a predictor of all arms, such as an outer module's `set_lm`."""
        if self.lm is not None:
            return self.lm
        now = [dict(arm.named_predictors())[predictor].lm for arm in self.arms]
        if any(lm is not now[0] for lm in now):
            return None
        moved = any(self._home(self.ready, index, predictor) is not now[0] for index in self.in_use)
        return now[0] if moved else None

    def label_of(self, prompt: int) -> str:
        """Return a prompt in words, as it is now: another optimizer may have changed an arm."""
        if prompt not in self.in_use:
            return self.ready.prompts[prompt].label
        decoding = self.ready.prompts[prompt].decoding
        model = self.ready.prompts[prompt].model
        return Prompt(program=self.program_of(prompt), decoding=decoding, candidate=0, model=model).label

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
            self._warn()
            calls = state.get("calls", {})
            default = calls.get("default")
            self.default = Preference.from_dict(default) if isinstance(default, Mapping) else default
            self.preference_field = calls.get("preference_field", self.preference_field)

    def reset(self) -> None:
        """Do what DSPy's `reset` does: keep what the program is, as `Predict` keeps its instructions.

        Optimizers such as BootstrapFewShot start from `reset_copy()`; without its policy the copy could not run.
        """
        self._solved.clear()
        self.lm = None

    def _clear(self) -> None:
        self.data, self.in_use, self._measured, self.default = None, (), None, None
        self.strategy = self._given_strategy
        self.arms.clear()
        self._others.clear()
        self._solved.clear()
