"""The compiled program: an ordinary DSPy module that knows its prompt and its N for each preference."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dspy

from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.confidence.learning import calibrated
from iapo_dspy.errors import ConfigurationError, StateError, nearest, one_line, storing, whole_file
from iapo_dspy.preferences import Preference
from iapo_dspy.program.call import Call
from iapo_dspy.program.call_report import CallReport
from iapo_dspy.program.evidence.reprice import prices_of
from iapo_dspy.program.explain import Explanation, explain, report_of
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.program.results import ArmEstimate, CompileResult
from iapo_dspy.program.stages import Drawable, Drawn
from iapo_dspy.program.streaming import asend, asked_for_listeners, send, winner_chunks
from iapo_dspy.program.table import PolicyTable
from iapo_dspy.program.using_preference import current_preference
from iapo_dspy.prompts.adapter_names import read_adapters
from iapo_dspy.prompts.harvest import Alternatives
from iapo_dspy.prompts.lms import LMs, read_lms
from iapo_dspy.prompts.rewriters.rewriter import Rewriter, read_rewriters
from iapo_dspy.prompts.student import Student
from iapo_dspy.report.html import table_html
from iapo_dspy.report.tabular import Line, Table
from iapo_dspy.sampling.concurrency.loop import await_on_loop, run_on_loop
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.types import Arm

if TYPE_CHECKING:  # langchain-core is optional
    from iapo_dspy.program.langchain import ProgramRunnable

_LARGEST = 1 << 28  # bytes of a saved program; a million completions of evidence take a tenth of it


class CompiledProgram(Alternatives):
    """A program with one arm (prompt and N) for each preference.

    `IAPO.compile` returns it. To load a saved one, make it from a fresh student and call `load`:

        program = CompiledProgram(dspy.ChainOfThought("question -> answer"))
        program.load("math.json")

    A saved program holds no LM. One that chooses between several is given them: `CompiledProgram(student, lms=[...])`.
    It holds no code either. One whose prompts are programs of several classes is given a fresh one of each of the
    others: `CompiledProgram(dspy.ChainOfThought(task), others=[dspy.Predict(task), TwoSteps()])`.

    A call draws the arm's completions, at once or in waves until enough is known, and returns the winner with the
    student's fields, all successful completions in `completions` (winner first), and a `CallReport` in `iapo`.

    Args:
        student: The program that was compiled, or a fresh one of its class; it is copied.
        strategy: Needed for loading where the strategy has functions of yours (objectives, `normalize`).
        policy: The policy; None before one is loaded.
        preference_field: The keyword by which a call chooses its preference; None if the student has an input field
            of that name, then `with_preference` is the only way. A loaded program has its own.
        programs: The program of every prompt, as it was measured; None makes them from the student and the policy.
        lms: LMs for arms that were measured with LMs of their own (`IAPO(lms=...)`): LMs, or mappings from predictor
            names to LMs, found by model string; several of one model string by their order in `IAPO(lms=...)`. The
            student's LM or the configured one serves arms of its model too.
        others: Fresh programs of the classes beside the student's that prompts are of, made as the candidates were.
        adapters: Adapters for arms that were measured with adapters of their own (`IAPO(adapters=...)`), found by class
            and settings. DSPy's own and those of `iapo_dspy.adapters` are made again from the file; give those of other
            classes.
        rewriters: Rewriters for arms that were measured with them (`IAPO(rewriters=...)`). Others are made again from
            the file, with the LM of their model string in `lms`, or under `{"rewriter": lm}` in it.
    """

    def __init__(
        self,
        student: dspy.Module,
        strategy: Strategy | None = None,
        policy: CompiledPolicy | None = None,
        *,
        preference_field: str | None = "preference",
        programs: Sequence[dspy.Module] | None = None,
        lms: Sequence[LMs] | None = None,
        others: Sequence[dspy.Module] = (),
        adapters: Sequence[dspy.Adapter] | None = None,
        rewriters: Sequence[Rewriter] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(student, dspy.Module):
            raise ConfigurationError(f"CompiledProgram needs the student, a dspy.Module; got {student!r}.")
        if isinstance(others, dspy.Module) or not all(isinstance(other, dspy.Module) for other in others):
            raise ConfigurationError("others= is not a list of programs: give one such as [dspy.Predict(...)].")
        given = read_lms(lms), others, read_adapters(adapters), read_rewriters(rewriters)
        self.policy = PolicyTable(student, strategy, policy, programs, preference_field, *given)
        self.arms = self.policy.programs.arms

    # -- the interface of a DSPy module

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Return the policy and the predictors of the compiled arms; to stream listeners, the arms are one program."""
        found: list[tuple[str, Any]] = [("policy", self.policy)]
        if asked_for_listeners():
            return found + list(self.policy.student.named_parameters())
        for i, arm in enumerate(self.arms):
            for name, predictor in arm.named_parameters():
                found.append((f"arms[{i}]" if name == "self" else f"arms[{i}].{name}", predictor))
        return found

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the policy; it holds the arms."""
        return {"policy": self.policy.dump_state(json_mode=json_mode)}

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Read a state that `dump_state` wrote; no LM is ever part of it.

        Args:
            state: The state.
            allow_unsafe_lm_state: Whether to use the addresses of reward models and embeddings in it.

        Raises:
            StateError: It is not a compiled program, or does not fit the student or the strategy.
        """
        if not isinstance(state, Mapping) or "policy" not in state:
            found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise StateError(f"This is not a saved CompiledProgram: it has {found}, and no 'policy'.")
        self.policy.load_state(state["policy"], trusted=allow_unsafe_lm_state)

    def load(
        self, path: str | os.PathLike[str], allow_pickle: bool = False, allow_unsafe_lm_state: bool = False
    ) -> None:
        """Load a program that `save` wrote. Where that cannot be, this one stays as it is.

        Args:
            path: The file, `.json`.
            allow_pickle: See `dspy.Module.load`; a pickle runs the code that is in it.
            allow_unsafe_lm_state: Whether to send completions to addresses that stand in the file.

        Raises:
            StateError: It is not a saved program, is damaged, or does not fit the student or the strategy; the message
                says where.
            StorageError: The file cannot be read.
        """
        path = Path(path)
        try:
            with storing(path, "read"):
                size = path.stat().st_size
                if size > _LARGEST:
                    raise StateError(f"It has {size:,} bytes; a saved program has at most {_LARGEST:,}.")
                super().load(path, allow_pickle, allow_unsafe_lm_state)
        except StateError as error:
            raise StateError(f"{path} cannot be loaded. {error}") from error
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, RecursionError) as error:
            where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise StateError(
                f"{path} cannot be loaded. It is damaged{where}, or is not a saved program: {one_line(error)}."
            ) from error

    def save(
        self, path: str | os.PathLike[str], save_program: bool = False, modules_to_serialize: list[Any] | None = None
    ) -> None:
        """Save the program; see `dspy.Module.save`. A file that is there is replaced as a whole or not at all.

        Raises:
            StorageError: The file cannot be written.
        """
        path = Path(path)
        with storing(path, "written"):
            if save_program or path.suffix not in (".json", ".pkl"):
                super().save(path, save_program, modules_to_serialize)
                return
            with whole_file(path) as part:
                super().save(part)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledProgram:
        """Copy the arms; the policy and the results of the run are shared."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in self.__getstate__().items():
            shared = name in ("arms", "policy")
            twin.__dict__[name] = value if shared else copy.deepcopy(value, memo)
        twin.policy = copy.deepcopy(self.policy, memo)
        twin.arms = twin.policy.programs.arms
        twin.history, twin.callbacks = [], list(self.callbacks)
        return twin

    def set_lm(self, lm: dspy.BaseLM | None) -> None:
        """Run every arm on this LM, whatever it was measured with; None goes back to the arms' own."""
        super().set_lm(lm)
        self.policy.programs.lm = lm

    @property
    def models(self) -> tuple[str, ...]:
        """Model strings of the LMs that belong to its prompts: `lms` must hold them when it is loaded."""
        prompts = self.policy.ready.prompts
        names = [name for p in prompts for name in (*p.lms.values(), *([p.rewriter.lm] if p.rewriter else []))]
        return tuple({str(name): name.model for name in names}.values())

    @property
    def detailed_results(self) -> Any:
        """The `CompileResult` of the run, also after loading; None with `track_stats=False`.

        Other optimizers may put results of their own here; those are not saved.
        """
        return self.policy.results

    @detailed_results.setter
    def detailed_results(self, results: Any) -> None:
        self.policy.results = results

    # -- preferences

    @property
    def preferences(self) -> tuple[Preference, ...]:
        """The compiled preferences."""
        return self.policy.ready.preferences

    def with_preference(self, preference: str | Preference) -> CompiledProgram:
        """Return this program with another default preference; the arms are shared.

        Raises:
            UnknownPreference: No preference of that name was compiled.
            ConfigurationError: It is neither a name nor a Preference, or it weighs unknown objectives.
        """
        self._resolve(preference)
        twin = copy.copy(self)
        twin.history, twin.callbacks = [], list(self.callbacks)
        twin.policy = self.policy.with_default(preference)
        twin.arms = twin.policy.programs.arms
        return twin

    def solve(self, preference: str | Preference | None = None) -> Arm:
        """Return the arm that a call with this preference draws; unseen ones are solved without LM calls."""
        return self.policy.solver.choose(self._resolve(preference)).arm

    def with_arm(self, found: ArmEstimate) -> CompiledProgram:
        """Return a program that draws this arm in every call, whatever was compiled.

            result = program.detailed_results
            cheap = program.with_arm(result.at(usd=0.001))

        Args:
            found: An arm of this program's results, with the preference that its calls report.

        Raises:
            ConfigurationError: The arm is not one of this program's.
        """
        data, arm = self.policy.ready, found.arm
        largest = max(share.n for stage in arm.stages for share in stage.shares)
        if max(arm.prompts) >= len(data.prompts) or largest > data.max_n:
            raise ConfigurationError(
                f"with_arm: {arm_in_words(arm)} is not an arm of this program, which has {len(data.prompts)} prompts "
                f"and N up to {data.max_n}: take one of its own results."
            )
        preference = replace(found.preference, name=found.preference.name or "chosen")
        fixed = replace(data, preferences=(preference,), arms=(arm,), default=str(preference.name), measured=None)
        outcome = fixed.outcome(self.policy.strategy)
        confidence = calibrated(fixed.problem([preference], self.policy.strategy), outcome)
        twin = copy.deepcopy(self)
        twin.policy.replace_data(
            replace(fixed, calibrations=tuple(None if c is None else c.map for c in confidence)), outcome
        )
        twin.policy.default = None
        return twin

    def reprice(self, usd_per_million: tuple[float, float] | Mapping[str, tuple[float, float]]) -> CompiledProgram:
        """Return this program at other prices of tokens: every preference solved anew, without LM calls.

        The exchange rate between dollars and utility does not change. With the default `Cost()`, which counts tokens,
        dollars matter only to preferences that price or cap them.

        Args:
            usd_per_million: Dollars per million tokens (input, output), or a mapping from model strings to such pairs.

        Raises:
            ConfigurationError: A price is missing, or the evidence does not say how many tokens were used.
        """
        data = self.policy.ready
        lm = dspy.settings.lm
        model = lm.model if isinstance(lm, dspy.BaseLM) else None
        cost = data.cost.repriced(usd_per_million)
        programs = [self.policy.programs.of(prompt) for prompt in range(len(data.prompts))]
        policy, outcome = data.repriced(cost, prices_of(data.prompts, programs, cost, model), self.policy.strategy)
        twin = copy.deepcopy(self)
        twin.policy.replace_data(policy, outcome)
        return twin

    def explain(
        self, call: dspy.Prediction | CallReport | None = None, *, preference: str | Preference | None = None
    ) -> Explanation:
        """Say why a call draws its arm: the preference, the arm with its estimates, and the alternatives.

        Everything is solved from the stored evidence, without LM calls.

        Args:
            call: A prediction of this program, or its `iapo` report, to explain that call.
            preference: Or a preference, as for `solve`; None is the one that a call would use now.

        Raises:
            ConfigurationError: Both were given, or the prediction is not of a compiled program.
            UnknownPreference: No preference of that name was compiled.
        """
        report = report_of(call)
        if report is not None and preference is not None:
            raise ConfigurationError("explain(call, preference=...): give one of them, not both.")
        asked = self._resolve(preference) if report is None else Preference.from_dict(report.asked)
        return explain(self.policy, asked, report)

    def as_runnable(
        self, preference: str | Preference | None = None, *, output: Literal["fields", "prediction"] = "fields"
    ) -> ProgramRunnable:
        """Return this program as a LangChain `Runnable`; see `ProgramRunnable`.

        Args:
            preference: The preference of calls that name none; None leaves it to the program.
            output: "fields" for a dictionary of the output fields, "prediction" for the `dspy.Prediction`.

        Raises:
            ImportError: langchain-core is not installed.
            ConfigurationError: The preference does not exist.
        """
        try:
            from iapo_dspy.program.langchain import ProgramRunnable
        except ImportError as error:
            raise ImportError("as_runnable needs langchain-core: pip install 'iapo_dspy[langchain]'.") from error
        return ProgramRunnable(self, preference, output=output)

    def _resolve(self, preference: Any) -> Preference:
        data = self.policy.ready
        if preference is None:
            preference = current_preference()
        if preference is None:
            preference = self.policy.default if self.policy.default is not None else data.default
        if isinstance(preference, str):
            return data.named(preference)
        if isinstance(preference, Preference):
            preference.vector(self.policy.strategy.objectives)
            return preference
        raise ConfigurationError(
            f"preference={preference!r}: give the name of a compiled preference "
            f"({[p.name for p in data.preferences]}) or a Preference(cost=...)."
        )

    def _repr_html_(self) -> str | None:
        """Return the arms for a notebook: the results of the run, or what the policy says where these are not kept.

        None before it is compiled: then the notebook shows its text.
        """
        if isinstance(self.detailed_results, CompileResult):
            return self.detailed_results._repr_html_()
        if self.policy.empty:
            return None
        data = self.policy.ready
        lines = (
            Line(cells=(str(p), str(arm.n), data.prompts[arm.prompt].label))
            for p, arm in zip(data.preferences, data.arms, strict=True)
        )
        return table_html(Table(columns=("preference", "N", "prompt"), rows=tuple(lines), numbers=frozenset({"N"})))

    # -- calls

    def forward(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        """Draw, aggregate and return; see the class.

        Raises:
            UnknownPreference: No preference of that name was compiled.
            ConfigurationError: The arm's LM is not there; the message says how to give it.
            AllCompletionsFailed: No completion could be used; the message has the causes.
        """
        call = self._prepare(args, kwargs)
        drawn = run_on_loop(call.draw())
        prediction = call.conclude(drawn)
        if dspy.settings.send_stream is not None:
            send(self._chunks(drawn, prediction))
        return prediction

    async def aforward(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        """Do the same as `forward` without blocking the event loop."""
        # Solving and scoring take time, so they run in a thread: the event loop stays free.
        call = await asyncio.to_thread(self._prepare, args, kwargs)
        drawn = await await_on_loop(call.draw())
        prediction = await asyncio.to_thread(call.conclude, drawn)
        if dspy.settings.send_stream is not None:
            await asend(self._chunks(drawn, prediction))
        return prediction

    def _chunks(self, drawn: Drawn, prediction: dspy.Prediction) -> list[Any]:
        report: CallReport = prediction.iapo
        if report.abstained or report.winner is None:  # the answer is withheld
            return []
        return winner_chunks(self.policy.programs, report.prompt, drawn.rollouts[report.winner].trace)

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        table = self.policy
        asked = kwargs.pop(table.preference_field, None) if table.preference_field else None
        preference = self._resolve(asked)
        if args:
            kwargs = {**_names(table.student, args), **kwargs}
        inputs = _keywords(table.student)
        known = {*(inputs or ()), *([table.preference_field] if table.preference_field else [])}
        for name in kwargs.keys() - known if inputs is not None else ():
            if near := nearest(name, known - kwargs.keys(), least=0.8):
                raise ConfigurationError(f"The program has no input {name!r}.{near}")
        chosen = table.solver.choose(preference)
        tokens_each = table.tokens_of_each(preference, chosen)
        programs = table.programs
        drawables = {
            prompt: Drawable(
                prompt=prompt,
                label=programs.label(prompt),
                program=programs.runnable(prompt),
                decoding=table.ready.prompts[prompt].decoding,
                adapter=programs.adapter_of(prompt),
                rewriter=programs.rewriter_of(prompt),
                tokens_each=tokens_each.get(prompt),
            )
            for prompt in chosen.arm.prompts
        }
        return Call(
            preference=preference,
            arm=chosen.arm,
            drawables=drawables,
            inputs=kwargs,
            outputs=tuple(Student(table.student).output_fields),
            strategy=table.strategy,
            cost=table.ready.cost,
            calibration=chosen.calibration,
            student=table.student,
        )


def _keywords(student: dspy.Module) -> set[str] | None:
    """Return the names that a call of the student knows; None where its `forward` takes any name."""
    forward = inspect.signature(type(student).forward).parameters
    fields = Student(student).input_fields
    if fields is None and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in forward.values()):
        return None
    return {*forward, *(fields or ())} - {"self"}


def _names(student: dspy.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """Name positional arguments as the student's `forward` does."""
    signature = inspect.signature(type(student).forward)
    parameters = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    if len(args) > len(parameters):
        raise ConfigurationError(
            f"{len(args)} positional arguments given, but {type(student).__name__}.forward names {parameters}. Pass "
            "inputs by name, e.g. program(question=...)."
        )
    return dict(zip(parameters, args, strict=False))
