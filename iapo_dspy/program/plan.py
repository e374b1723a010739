"""Everything that can be checked before the first LM call, and what a run needs afterwards."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
import pydantic

from iapo_dspy.bandit.auto import auto, auto_least
from iapo_dspy.bandit.coordinate import coordinate, coordinate_least
from iapo_dspy.bandit.problem import Algorithm, Outcome, Problem
from iapo_dspy.bandit.psst import psst, psst_least
from iapo_dspy.bandit.screening import Screening
from iapo_dspy.errors import ConfigurationError, LabelRequired, LMRefused, ReservedFieldName, ScoreError, one_line
from iapo_dspy.program.combinations import Combinations, prompt_set
from iapo_dspy.program.models import Decodings, LMs
from iapo_dspy.program.pipelines import Pipeline, inner_inputs
from iapo_dspy.program.prompts import Prompt, input_fields, output_fields, program_state
from iapo_dspy.sampling.batches import BatchAPI, check_program
from iapo_dspy.sampling.budget import Budget
from iapo_dspy.sampling.cost import Cost
from iapo_dspy.sampling.metered import Beside, refusing
from iapo_dspy.sampling.params import check_decoding, effective_temperature, generation_params, request_params
from iapo_dspy.sampling.pricing import Price, check_budget, price_of
from iapo_dspy.scoring.inner import MetricOnly
from iapo_dspy.scoring.labels import label_message
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.stand_in import StandIn
from iapo_dspy.scoring.strategies import Strategy, columns_of, fitted
from iapo_dspy.types import Contexts, Preference

__all__ = ["Plan", "check_preferences", "make_plan", "parse_algorithm"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has been checked: nothing in it has been paid for yet.

    Attributes:
        student: The program to optimize, as given; of a pipeline, the inner module.
        prompts: The prompt set P; `Combinations` are searched one coordinate at a time, and made as far as needed.
        examples: The training set X.
        held_out: The validation set: queries that have no part in the choice.
        problem: The bandit problem.
        strategy: How completions become one answer.
        algorithm: Its name.
        screening: Top-K screening, if any.
        budget: The limits.
        cost: What completions cost.
        seed: Root of the random streams.
        judged: Whether the metric or an objective asks LMs.
        batch: How rounds are drawn by batch jobs; None sends ordinary requests.
        pipeline: What is around the student, where that is a module inside of a pipeline.
    """

    student: dspy.Module
    prompts: Sequence[Prompt]
    examples: tuple[dspy.Example, ...]
    held_out: tuple[dspy.Example, ...]
    problem: Problem
    strategy: Strategy
    algorithm: str
    screening: Screening | None
    budget: Budget
    cost: Cost
    seed: int
    judged: bool = False
    batch: BatchAPI | None = None
    pipeline: Pipeline | None = None

    @property
    def shown(self) -> Sequence[Prompt]:
        """Prompts that have everything between them that can be chosen: all, unless they are too many to look at."""
        return self.prompts.star if isinstance(self.prompts, Combinations) else self.prompts

    def drawn(self, outcome: Outcome) -> Plan:
        """Return the plan with the prompts that a run has looked at, where it did not look at all of them."""
        if outcome.prompts is None:
            return self
        prompts = tuple(self.prompts[i] for i in outcome.prompts.tolist())
        return replace(self, prompts=prompts, problem=replace(self.problem, n_prompts=len(prompts)))

    def price_of(self, lm: dspy.BaseLM) -> Price | None:
        """Return what an LM's completions cost in this run; None where that is not known."""
        prices = self.cost.prices
        return price_of(lm, prices) if self.batch is None else self.batch.price_of(lm, prices)

    def start(self) -> Algorithm:
        """Return the algorithm's generator.

        Raises:
            BudgetTooSmall: The budget does not reach for it.
        """
        budget = self.budget.completions - self.reserved
        if isinstance(self.prompts, Combinations):
            return coordinate(self.problem, shape=self.prompts.shape, budget=budget, seed=self.seed)
        if self.algorithm == "auto":
            return auto(self.problem, budget=budget, seed=self.seed)
        return psst(self.problem, budget=budget, seed=self.seed, screening=self.screening)

    @property
    def reserved(self) -> int:
        """Completions that are kept for the validation set: a fifth of the budget, where there is one."""
        return self.budget.completions // HELD_OUT_SHARE if self.held_out else 0

    @property
    def least(self) -> int:
        """The smallest budget that the algorithm accepts, in completions."""
        if isinstance(self.prompts, Combinations):
            return coordinate_least(self.prompts.shape)
        if self.algorithm == "auto":
            return auto_least(self.problem)
        return psst_least(self.problem, self.screening)

    def settings(self, strategy: Strategy, preferences: Sequence[Preference]) -> dict[str, Any]:
        """Return what the run depends on, part by part, as JSON data without secrets."""
        costs = {} if self.cost == Cost() else {"cost": self.cost.to_dict()}  # so that older ledgers can be resumed
        held_out = {"held_out": _examples_digest(self.held_out)} if self.held_out else {}
        return {
            **costs,
            **held_out,
            **({"shape": list(self.prompts.shape)} if isinstance(self.prompts, Combinations) else {}),
            **(_pipeline_settings(self.pipeline) if self.pipeline is not None else {}),
            "student": type(self.student).__qualname__,
            "prompts": _digest([[program_state(p.program), p.decoding.as_kwargs()] for p in self.shown]),
            "adapter": _digest(dspy.settings.adapter),
            "examples": _examples_digest(self.examples),
            "lms": _digest([[public_params(lm) for lm in lms_of(p.program)] for p in self.shown]),
            "strategy": strategy.to_dict(),
            "preferences": [p.to_dict() for p in preferences],
            "max_n": self.problem.max_n,
            "completions": self.budget.completions,
            "algorithm": self.algorithm,
            "seed": self.seed,
        }


def _pipeline_settings(pipeline: Pipeline) -> dict[str, Any]:
    states = program_state(pipeline.outer)
    return {
        "pipeline": type(pipeline.outer).__qualname__,
        "inner": pipeline.path,
        "around": _digest({name: states[name] for name, _ in pipeline.around}),
        "around_lms": _digest([public_params(lm) for lm in lms_of(pipeline.outer, pipeline.around)]),
    }


def _examples_digest(examples: Sequence[dspy.Example]) -> str:
    return _digest([[dict(e.items()), sorted(e.inputs().keys())] for e in examples])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return JSON data that is the same for equal values in every process: no addresses, no order of sets."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_plain(v), sort_keys=True) for v in value)
    if isinstance(value, pydantic.BaseModel):
        return [type(value).__qualname__, _plain(value.model_dump(mode="json"))]
    if getattr(type(value), "__repr__", None) is not object.__repr__ and not hasattr(value, "__dict__"):
        return repr(value)
    attributes = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_") and not callable(v)}
    return [type(value).__qualname__, {k: _plain(v) for k, v in attributes.items() if _is_data(v)}]


def _is_data(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool, list, tuple, dict, set, frozenset))


def public_params(lm: dspy.BaseLM) -> dict[str, Any]:
    """Return what decides the LM's answers; not where it is served, and no secret."""
    return {"model": lm.model, "model_type": lm.model_type, **generation_params(lm.kwargs)}


def lms_of(program: dspy.Module, predictors: Sequence[tuple[str, Any]] | None = None) -> list[dspy.BaseLM]:
    """Return the LM of every predictor (or of these ones, with their names): its own, or the configured one.

    Raises:
        ConfigurationError: A predictor has none.
    """
    found = []
    for name, predictor in program.named_predictors() if predictors is None else predictors:
        lm = predictor.lm or dspy.settings.lm
        if not isinstance(lm, dspy.BaseLM):
            raise ConfigurationError(
                f"Predictor {name!r} has no LM (found {lm!r}): call dspy.configure(lm=dspy.LM('provider/model')) first."
            )
        found.append(lm)
    return found


def parse_algorithm(name: str) -> Screening | None:
    """Read an algorithm's name: "auto", "psst", or "psst+kK" for PSST with Top-K screening.

    Raises:
        ConfigurationError: There is no such algorithm.
    """
    match = re.fullmatch(r"auto|psst(?:\+k([1-9]\d*))?", name) if isinstance(name, str) else None
    if match is None:
        raise ConfigurationError(
            f"algorithm={name!r}: give 'auto', 'psst', or 'psst+k4' and the like for Top-K screening."
        )
    return Screening(k=int(match[1])) if match[1] else None


def check_preferences(preferences: Iterable[Preference] | None, objectives: Sequence[str]) -> tuple[Preference, ...]:
    """Return the preferences to compile.

    Raises:
        ConfigurationError: None, one without a name, two of one name, or one that weighs an unknown objective.
    """
    if isinstance(preferences, (Preference, str, Mapping)) or not isinstance(preferences, (Iterable, type(None))):
        raise ConfigurationError(f"preferences must be a list of Preference, got {preferences!r}.")
    found = tuple(preferences or ())
    if not found:
        raise ConfigurationError("No preferences: give at least one, e.g. [Preference('quality', cost=0.0)].")
    for i, preference in enumerate(found):
        if not isinstance(preference, Preference):
            raise ConfigurationError(f"preferences[{i}] is {preference!r}; give Preference('name', cost=...).")
        if preference.name is None:
            raise ConfigurationError(f"preferences[{i}] has no name; calls choose compiled preferences by name.")
        preference.vector(objectives)
    names = [p.name for p in found]
    twice = sorted({str(n) for n in names if names.count(n) > 1})
    if twice:
        raise ConfigurationError(f"Preference names must differ; given more than once: {twice}.")
    return found


def make_plan(
    student: Any,
    trainset: Any,
    candidates: Iterable[Any] | None,
    *,
    inner: str | None = None,
    joint_limit: int,
    valset: Any = None,
    strategy: Strategy,
    metric: Metric | None,
    preferences: Sequence[Preference],
    max_n: int,
    budget: Budget,
    cost: Cost,
    decodings: Decodings,
    algorithm: str,
    preference_field: str | None,
    seed: int,
    batch: BatchAPI | None = None,
    lms: Sequence[LMs] = (),
) -> Plan:
    """Check a run from end to end without an LM call.

    Raises:
        ConfigurationError: Anything that cannot work; a subclass where there is one.
        ScoreError: The metric or an objective returns no score for the first training example.
    """
    if not isinstance(student, dspy.Module):
        raise ConfigurationError(f"compile needs a program, a dspy.Module; got {student!r}.")
    pipeline = Pipeline.of(student, inner) if inner is not None else None
    whole, student = student, student if pipeline is None else pipeline.inner
    if not student.named_predictors():
        frozen = [name for name, m in student.named_sub_modules(dspy.Predict) if name != "self"]
        if frozen:
            raise ConfigurationError(
                f"The predictors of the student {type(student).__name__} belong to compiled sub-modules, which DSPy "
                f"freezes: {frozen}. Set `_compiled = False` on those sub-modules to let IAPO change them."
            )
        raise ConfigurationError(
            f"The student {type(student).__name__} has no predictors (dspy.Predict and the like), so there is no "
            "instruction to choose."
        )
    examples = _check_examples(trainset, whole)
    held_out = _check_examples(valset, whole, "valset") if valset is not None else ()
    inputs = sorted(examples[0].inputs().keys()) if pipeline is None else inner_inputs(student)
    _check_reserved_field(student, inputs, preference_field)
    outputs = output_fields(student)
    strategy.check_student(inputs, outputs)
    strategy = fitted(strategy, outputs)
    prompts = prompt_set(student, candidates, decodings, joint_limit, lms)
    some = prompts.star if isinstance(prompts, Combinations) else prompts
    _check_sampling(some, max_n, budget, cost)
    if pipeline is not None:
        _check_around(pipeline, budget, cost, batch)
    for prompt in some if batch is not None else ():
        check_program(prompt.program, dict(examples[0].inputs().items()), prompt.decoding)
    _check_resources(some, preferences, cost, batch)
    screening = parse_algorithm(algorithm)
    if isinstance(prompts, Combinations) and algorithm != "auto":
        raise ConfigurationError(
            f"The candidates have {len(prompts):,} combinations, more than joint_limit={joint_limit}, so that they are "
            f"searched one predictor at a time; algorithm={algorithm!r} cannot do that. Use algorithm='auto', or raise "
            "joint_limit to have it look at all of them."
        )
    problem = Problem(
        n_prompts=len(prompts),
        n_queries=len(examples),
        max_n=max_n,
        contexts=Contexts.from_preferences(preferences, strategy.objectives, columns_of(strategy)),
        aggregator=strategy.aggregator(),
    )
    plan = Plan(
        student=student,
        prompts=prompts,
        examples=examples,
        held_out=held_out,
        problem=problem,
        strategy=strategy,
        algorithm=algorithm,
        screening=screening,
        budget=budget,
        cost=cost,
        seed=seed,
        batch=batch,
        pipeline=pipeline,
    )
    plan.start().close()  # raises BudgetTooSmall
    tried = strategy if pipeline is None else MetricOnly(strategy)
    judges = _probe(tried, metric, examples, output_fields(whole), is_open=input_fields(whole) is None)
    for judge in judges:
        _check_judge(judge, budget, cost)
    return replace(plan, judged=any(getattr(judge, "billed", True) for judge in judges))


def _check_examples(trainset: Any, student: dspy.Module, name: str = "trainset") -> tuple[dspy.Example, ...]:
    try:
        examples = tuple(trainset)
    except TypeError:
        raise ConfigurationError(f"{name} must be a list of dspy.Example, got {trainset!r}.") from None
    if not examples:
        raise ConfigurationError(f"The {name} is empty: give at least one dspy.Example with inputs and labels.")
    fields = input_fields(student)
    keys: set[str] | None = None
    for i, example in enumerate(examples):
        if not isinstance(example, dspy.Example):
            raise ConfigurationError(f"{name}[{i}] is a {type(example).__name__}; give dspy.Example objects.")
        try:
            given = set(example.inputs().keys())
        except ValueError:
            raise ConfigurationError(
                f"{name}[{i}] does not say which fields are inputs: add .with_inputs('question') or the like."
            ) from None
        keys = keys or given
        missing = set(fields if fields is not None else keys) - given
        if missing or not given:
            raise ConfigurationError(f"{name}[{i}] lacks the input fields {sorted(missing)}; it has {sorted(given)}.")
        if fields is None:
            _check_forward(student, given, f"{name}[{i}]")
    return examples


def _check_forward(student: dspy.Module, inputs: set[str], example: str) -> None:
    """Refuse inputs that the student's own `forward` does not take."""
    forward = getattr(type(student), "forward", None)
    if forward is None:
        return
    try:
        inspect.signature(forward).bind(student, **dict.fromkeys(inputs))
    except TypeError as exc:
        raise ConfigurationError(
            f"{example} has the inputs {sorted(inputs)}, which {type(student).__name__}.forward does not take: "
            f"{exc}. Mark others with .with_inputs(...)."
        ) from None


def _check_around(pipeline: Pipeline, budget: Budget, cost: Cost, batch: BatchAPI | None) -> None:
    """Refuse what cannot work because of the steps around an inner module."""
    if batch is not None:
        raise ConfigurationError(
            "batch=... draws one request per completion, ahead of time; the inner module of a pipeline is asked with "
            "what the steps before it bring, and the metric needs the steps after it. Leave batch out, or inner."
        )
    limits = {"tokens": budget.tokens is not None, "usd": budget.usd is not None}
    lms = lms_of(pipeline.outer, pipeline.around)
    for lm, (_, predictor) in zip(lms, pipeline.around, strict=True):
        check_budget(lm, request_params(lm, predictor.config), **limits, prices=cost.prices)
        cost.check(lm)


def _check_reserved_field(student: dspy.Module, inputs: Iterable[str], preference_field: str | None) -> None:
    used = {*inputs, *(input_fields(student) or ())}
    if preference_field is not None and preference_field in used:
        raise ReservedFieldName(
            f"The student has an input field called {preference_field!r}, the keyword by which a call of the compiled "
            "program chooses its preference. Either rename the field, or build IAPO(..., preference_field=None): calls "
            "then pass the field to the student, and program.with_preference('name') chooses the preference."
        )
    if "iapo" in output_fields(student):
        raise ReservedFieldName(
            "The student has an output field called 'iapo', where a call's report is kept; rename it."
        )


def _check_judge(judge: dspy.BaseLM | Beside | None, budget: Budget, cost: Cost) -> None:
    if judge is None:
        raise ConfigurationError(
            "The metric asks the configured LM, and there is none: call dspy.configure(lm=dspy.LM('provider/model')), "
            "or give the metric an LM of its own, metered(dspy.LM(...))."
        )
    if not isinstance(judge, dspy.BaseLM):
        judge.check_budget(budget, cost.prices)
        return
    limits = {"tokens": budget.tokens is not None, "usd": budget.usd is not None}
    try:
        check_budget(judge, judge.kwargs, **limits, prices=cost.prices)
    except ConfigurationError as exc:
        raise ConfigurationError(f"The metric asks an LM, whose calls count in the budget. {exc}") from exc


def _check_sampling(prompts: Sequence[Prompt], max_n: int, budget: Budget, cost: Cost) -> None:
    for prompt in prompts:
        for lm, (name, predictor) in zip(lms_of(prompt.program), prompt.program.named_predictors(), strict=True):
            temperature = effective_temperature(lm, predictor.config, prompt.decoding)
            if max_n > 1 and temperature == 0:
                raise ConfigurationError(
                    f"Predictor {name!r} of candidates[{prompt.candidate}] samples {lm.model!r} at temperature 0: all "
                    "N completions would be the same. Set a temperature > 0 on the LM or in "
                    "decoding=[Decoding(temperature=...)], or max_n=1."
                )
            check_decoding(lm, predictor.config, prompt.decoding)
            params = request_params(lm, predictor.config, prompt.decoding)
            limits = {"tokens": budget.tokens is not None, "usd": budget.usd is not None}
            check_budget(lm, params, **limits, prices=cost.prices)
            cost.check(lm)


def _check_resources(
    prompts: Sequence[Prompt], preferences: Sequence[Preference], cost: Cost, batch: BatchAPI | None
) -> None:
    """Refuse preferences that price or cap what this run cannot measure."""
    for preference in preferences:
        if batch is not None and "seconds" in preference.resources:
            raise ConfigurationError(
                f"{preference} counts seconds, and batch=... measures no latency: leave one of them out."
            )
        if "usd" not in preference.resources:
            continue
        for prompt in prompts:
            for lm in lms_of(prompt.program):
                if price_of(lm, cost.prices) is None:
                    raise ConfigurationError(
                        f"{preference} counts dollars, and LiteLLM knows no price of {lm.model!r}. Give yours, in "
                        "dollars per million input and output tokens: IAPO(cost=Cost(completion_tokens=1, "
                        "usd_per_million=(0.15, 0.60))), or Cost(usd_per_million=...) to count dollars everywhere."
                    )


HELD_OUT_SHARE = 5  # one in so many completions measures the chosen arms on the valset
PROBED = 100  # examples on which a metric is tried before anything is spent


class ProbeReachedLM(Exception):  # not an error: the probe has found a judge
    """A metric asked the configured LM while it was tried: it is a judge, and judges are not tried."""


class _NoCalls(dspy.BaseLM):  # type: ignore[misc]  # dspy ships no types
    """The configured LM while a metric is tried: every call is noted and refused."""

    def __init__(self) -> None:
        super().__init__(model="iapo_dspy/no-calls")
        self.reached = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.reached = True
        raise ProbeReachedLM

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        self.reached = True
        raise ProbeReachedLM


def _probe(
    strategy: Strategy | MetricOnly,
    metric: Metric | None,
    examples: Sequence[dspy.Example],
    outputs: Mapping[str, Any],
    *,
    is_open: bool = False,
) -> list[dspy.BaseLM | Beside | None]:
    """Try the metric or the objectives on examples' own labels, so that a wrong one costs nothing.

    Returns:
        The LMs that it asks, as far as they are known: the configured one (None where there is none), or metered ones.
    """
    configured, nobody = dspy.settings.lm, _NoCalls()
    with refusing(ProbeReachedLM()) as asked, dspy.context(lm=nobody):
        for i, example in enumerate(examples[:PROBED]):
            prediction = StandIn(example, outputs, is_open=is_open)
            problem: Exception | None = None
            try:
                strategy.probe(example, prediction, metric)
            except Exception as exc:  # noqa: BLE001 - explained below
                problem = exc
            if isinstance(problem, (ConfigurationError, LMRefused)):
                raise problem
            if nobody.reached or asked:  # whatever became of the refused call in the user's code
                return [*asked, *([configured] if nobody.reached else [])]
            if problem is not None:
                _explain(problem, metric, example, prediction, i)
    return []


def _explain(
    problem: Exception, metric: Metric | None, example: dspy.Example, prediction: StandIn, position: int
) -> None:
    """Raise what a user can act on, unless the user's code had good reason to fail."""
    if isinstance(problem, ScoreError):
        raise ScoreError(
            f"{problem} (trainset[{position}] with its own labels as the prediction; nothing was spent)"
        ) from problem
    hidden = [n for n in example.labels().keys() if repr(n) in str(problem)]
    if metric is None and isinstance(problem, (KeyError, AttributeError)) and hidden:
        raise LabelRequired(label_message("of Best-of-N", hidden)) from problem
    if prediction.made_up_read:  # a field without a label was made up: the user's code may well refuse it
        return
    what = "The metric" if metric is not None else "An objective"
    raise ScoreError(
        f"{what} raised {one_line(problem)} for trainset[{position}] with its own labels as the prediction. Mend it, "
        "or the example's fields; no LM call was made."
    ) from problem
