"""The compiled programs and their policy as one DSPy parameter that survives saving, loading and nesting."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.predict.parameter import Parameter

from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.errors import ConfigurationError, StateError
from iapo_dspy.preferences import Preference
from iapo_dspy.program.evidence.caps import tokens_of_each
from iapo_dspy.program.policy import FORMAT, VERSION, CompiledPolicy, part
from iapo_dspy.program.results import CompileResult
from iapo_dspy.program.results.compile_result import solved_result
from iapo_dspy.program.results.saved_results import read_result, result_to_dict
from iapo_dspy.program.solver import Chosen, Solver
from iapo_dspy.prompts.copies import program_state
from iapo_dspy.prompts.lms import LMs
from iapo_dspy.prompts.plain_student import described
from iapo_dspy.prompts.programs import Programs, ways
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.student import Student
from iapo_dspy.sampling.spending.pricing import Price, price_of
from iapo_dspy.scoring.strategies import Calibrates, Strategy, columns_of, fitted
from iapo_dspy.scoring.strategies.saved import Given, functions_of, rebuilt, recipes_of, without_functions

logger = logging.getLogger(__name__)


class PolicyTable(Parameter):  # type: ignore[misc]  # dspy ships no types
    """A `CompiledPolicy` and its programs as a DSPy parameter.

    DSPy saves and loads parameters by name wherever they are nested, which it does not do for a module's own
    `dump_state`. The table therefore holds everything that the compiled program needs.

    It is made of the arguments of `CompiledProgram`.

    Attributes:
        default: The preference of calls that name none; None is the policy's own default.
        programs: The program of every prompt.
    """

    def __init__(
        self,
        student: dspy.Module,
        strategy: Strategy | None = None,
        data: CompiledPolicy | None = None,
        programs: Sequence[dspy.Module] | None = None,
        preference_field: str | None = "preference",
        lms: Sequence[LMs] = (),
        others: Sequence[dspy.Module] = (),
        adapters: Sequence[dspy.Adapter] = (),
        rewriters: Sequence[Rewriter] = (),
    ) -> None:
        self.default: str | Preference | None = None
        self.preference_field = preference_field
        self.programs = Programs(student, lms, others, adapters, rewriters)
        self._given_strategy = strategy
        self._solver: Solver | None = None
        self._results: Any = None
        self._without_results = False  # whether the policy is from a file that has none, as up to version 4
        if data is not None:
            self._adopt(data, programs)

    @property
    def solver(self) -> Solver:
        """The policy with its answers.

        Raises:
            ConfigurationError: Nothing has been compiled or loaded yet.
        """
        if self._solver is None:
            raise ConfigurationError("This program has no policy yet: compile it with IAPO, or load a saved one.")
        return self._solver

    @property
    def empty(self) -> bool:
        """Whether nothing has been compiled or loaded yet."""
        return self._solver is None

    @property
    def ready(self) -> CompiledPolicy:
        """The policy; raises as `solver` does."""
        return self.solver.policy

    @property
    def strategy(self) -> Strategy:
        """The strategy; raises as `solver` does."""
        return self.solver.strategy

    @property
    def results(self) -> Any:
        """The results of the run that made the policy; None where they were not kept.

        Those of a file without results are what its evidence says, worked out when they are first asked for.
        """
        if self._without_results:
            programs = self.programs.as_saved(self.ready.prompts)
            self._results, self._without_results = solved_result(self.ready, self.strategy, programs), False
        return self._results

    @results.setter
    def results(self, results: Any) -> None:
        self._results, self._without_results = results, False

    @property
    def student(self) -> dspy.Module:
        """The program that was compiled, without a candidate's instructions."""
        return self.programs.student

    def tokens_of_each(self, preference: Preference, chosen: Chosen) -> dict[int, int]:
        """Return prompt -> output tokens that each of its completions may take, at the prices of today."""
        prices = {prompt: self._price(prompt) for prompt in chosen.uses}
        rewritten = [prompt for prompt in chosen.uses if self.ready.prompts[prompt].rewriter is not None]
        return tokens_of_each(preference, chosen.uses, prices, rewritten)

    def _price(self, prompt: int) -> Price | None:
        """Return the price of a prompt's tokens; None where it is not known, or predictors have several."""
        lms = [p.lm or dspy.settings.lm for _, p in self.programs.of(prompt).named_predictors()]
        prices = {price_of(lm, self.ready.cost.prices) if isinstance(lm, dspy.BaseLM) else None for lm in lms}
        return prices.pop() if len(prices) == 1 else None

    def __deepcopy__(self, memo: dict[int, Any]) -> PolicyTable:
        """Copy the programs; policies are frozen and strategies hold the user's functions, so they are shared."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.programs = copy.deepcopy(self.programs, memo)
        return twin

    def with_default(self, preference: str | Preference) -> PolicyTable:
        """Return a table of the same programs with another default preference."""
        view = copy.copy(self)
        view.default = preference
        view.programs = self.programs.view()  # loading into the view must not change this table
        return view

    def replace_data(self, data: CompiledPolicy, outcome: Outcome) -> None:
        """Take another policy over the same prompts; the programs stay as they are, also where they were changed."""
        self.programs.use(_in_use(data))
        if isinstance(self.results, CompileResult):
            self.results = self.results.solved_anew(data, outcome)
        self._solver = Solver(data, self.strategy)

    def _adopt(
        self,
        data: CompiledPolicy,
        measured: Sequence[dspy.Module] | None = None,
        strategy: Strategy | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        strategy = strategy or self._given_strategy or _rebuilt(data.strategy, Given())
        strategy = fitted(strategy, Student(self.student).output_fields)
        _compare(strategy.to_dict(), data.strategy)
        if isinstance(strategy, Calibrates) and data.strategy.get("calibration"):
            strategy = strategy.restore(data.strategy["calibration"])  # the scales of the run, whatever was given
        programs = self.programs.as_saved(data.prompts)
        found = None if results is None else read_result(results, data, strategy, programs)
        self.programs.load(data.prompts, _in_use(data), measured)
        self._solver, self._results = Solver(data, strategy), found

    # -- the interface of a DSPy parameter

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the policy as JSON data, with the arms as they are now (another optimizer may have changed them)."""
        if self._solver is None:
            return {"format": FORMAT, "version": VERSION, "empty": True}
        state = self.ready.to_dict()
        for prompt, arm in zip(self.programs.in_use, self.programs.arms, strict=True):
            state["prompts"][prompt] |= {"state": program_state(arm), "label": self.programs.label(prompt)}
        default = self.default
        state["student"] = _fields(self.student)
        if plain := described(self.student):
            state["plain_student"] = plain
        if not self._without_results:
            state["results"] = result_to_dict(self._results) if isinstance(self._results, CompileResult) else None
        if recipes := recipes_of(self.strategy):
            state["objectives"] = recipes
        state["calls"] = {
            "default": default.to_dict() if isinstance(default, Preference) else default,
            "preference_field": self.preference_field,
        }
        return state

    def load_state(self, state: Mapping[str, Any], *, trusted: bool = False) -> None:
        """Read a state that `dump_state` wrote. Nothing is changed where it cannot be read.

        Args:
            state: The state, perhaps from a file that somebody else wrote.
            trusted: Whether to use the addresses of reward models and embeddings in it.

        Raises:
            StateError: It is not a policy, is newer than this package, or does not fit the student or the strategy; the
                message says where.
        """
        if isinstance(state, Mapping) and state.get("empty"):
            self._solver, self.default, self.results = None, None, None
            self.programs.clear()
            return
        data = CompiledPolicy.from_dict(state)
        with part("calls"):
            calls = state.get("calls", {})
            default = calls.get("default")
            default = Preference.from_dict(default) if isinstance(default, Mapping) else default
            if isinstance(default, str):
                data.named(default)
            name = calls.get("preference_field", self.preference_field)
            if not (default is None or isinstance(default, str | Preference)) or not isinstance(name, str | None):
                raise TypeError(f"default={default!r}, preference_field={name!r}")
        with part("strategy"):
            strategy = self._fitting(state, data, trusted)
        with part("prompts"):
            self._adopt(data, strategy=strategy, results=state.get("results"))
        self._without_results = "results" not in state
        self._warn()
        self.default, self.preference_field = default, name

    def _fitting(self, state: Mapping[str, Any], data: CompiledPolicy, trusted: bool) -> Strategy:
        """Return the strategy, once the student is known to fit it and to have the fields of the one compiled."""
        student = Student(self.student)
        _compare_fields(_fields(self.student), state.get("student") or _described(data))
        direct = student.input_fields is not None  # others may make predictions with fields of their own
        strategy = self._given_strategy
        if strategy is None:
            lms = [lm for e in self.programs.lms for lm in (e.values() if isinstance(e, Mapping) else [e])]
            given = Given(recipes=state.get("objectives") or {}, lms=lms, trusted=trusted, strict=direct)
            strategy = _rebuilt(data.strategy, given)
        if direct or self._given_strategy is not None:
            try:
                strategy.check_student(student.input_fields or sorted(_inputs(student)), student.output_fields)
            except ConfigurationError as error:
                raise StateError(f"The student does not fit the strategy of the saved program. {error}") from error
        columns = {o.score.shape[1] for o in data.evidence}
        if columns - {len(columns_of(strategy))}:
            raise StateError(
                f"The saved policy is damaged at evidence: it has {sorted(columns)} columns of scores; the strategy "
                f"has {list(columns_of(strategy))}."
            )
        return strategy

    def reset(self) -> None:
        """Forget the LM that was set; keep the policy, as `Predict` keeps its instructions.

        Optimizers such as BootstrapFewShot start from `reset_copy()`; without its policy the copy could not run.
        """
        self.programs.lm = None

    def _warn(self) -> None:
        """Say which LMs the compiled arms lack."""
        for name, prompts in self.programs.lacking().items():
            arms = zip(self.ready.preferences, self.ready.arms, strict=True)
            logger.warning(
                "The preferences %s run on the LM %s, which a saved program does not hold and which was not given. %s",
                [str(p.name) for p, arm in arms if prompts & {*arm.prompts}], name, ways(name),
            )  # fmt: skip


def _in_use(data: CompiledPolicy) -> list[int]:
    return sorted({prompt for arm in data.arms for prompt in arm.prompts})


def _inputs(student: Student) -> set[str]:
    return {name for p in student.predictors.values() for name in p.signature.input_fields}


def _fields(student: dspy.Module) -> dict[str, Any]:
    """Return predictor -> names of its input and its output fields."""
    signatures = {name: p.signature for name, p in student.named_predictors()}
    return {n: {"inputs": list(s.input_fields), "outputs": list(s.output_fields)} for n, s in signatures.items()}


def _described(data: CompiledPolicy) -> dict[str, Any]:
    """Return predictor -> its fields as far as DSPy's state tells, for programs that were saved without their names.

    DSPy describes a field as "${name}" unless the user does; None stands for a field of another description.
    """
    states = data.prompts[0].state if data.prompts else {}
    found = {}
    for name, state in states.items():
        texts = [str(f.get("description")) for f in state.get("signature", {}).get("fields", ())]
        found[name] = [t[2:-1] if t.startswith("${") and t[2:-1].isidentifier() else None for t in texts]
    return {name: fields for name, fields in found.items() if fields}


def _compare_fields(given: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse a student whose predictors have other fields; other predictors are refused where states are restored."""
    for name in given.keys() & saved.keys():
        mine, theirs = given[name], saved[name]
        if isinstance(theirs, list):
            names = [*mine["inputs"], *mine["outputs"]]
            fits = len(names) == len(theirs) and all(t in (None, n) for n, t in zip(names, theirs, strict=True))
        else:
            fits = mine == theirs
        if not fits:
            raise StateError(
                f"The saved program's predictor {name!r} has the fields {theirs}, and this student's has {mine}. Load "
                "it into the class of student that it was compiled from, or compile again."
            )


def _rebuilt(data: Mapping[str, Any], given: Given) -> Strategy:
    """Rebuild a strategy that needs no code of the user's; refuse others."""
    if (strategy := rebuilt(data, given)) is not None:
        return strategy
    names = functions_of(data) or [str(data.get("kind"))]
    raise StateError(
        f"The program was compiled with functions of yours ({names}), which plain JSON cannot hold. Pass the same "
        "strategy again: CompiledProgram(student, strategy=...)."
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
