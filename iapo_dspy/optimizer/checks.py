"""Checks of what a user gave, before the first LM call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError, ReservedFieldName
from iapo_dspy.optimizer.pipelines import Pipeline
from iapo_dspy.preferences import Preference
from iapo_dspy.prompts.prompt import Prompt, input_fields, output_fields
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.judges.metered import Beside
from iapo_dspy.sampling.lm.bound import lms_of
from iapo_dspy.sampling.lm.params import check_decoding, effective_temperature, request_params
from iapo_dspy.sampling.spending.budget import Budget
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.sampling.spending.pricing import check_budget, price_of

__all__ = ["check_preferences"]


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
