"""Checks of the user's arguments, before the first LM call."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError, ReservedFieldName, one_line
from iapo_dspy.optimizer.pipelines import Pipeline
from iapo_dspy.optimizer.settings import Settings
from iapo_dspy.prompts.adapter_names import lms_inside
from iapo_dspy.prompts.prompt import Prompt
from iapo_dspy.prompts.student import Student, lm_of
from iapo_dspy.sampling.judges.embeddings import EmbeddingRequest
from iapo_dspy.sampling.ledger.typed_values import tagged
from iapo_dspy.sampling.lm.params import check_decoding, effective_temperature, request_params
from iapo_dspy.sampling.rollouts.prepare import adapter_or_configured
from iapo_dspy.sampling.rollouts.single_predictor import predictor_call
from iapo_dspy.sampling.spending.pricing import check_budget, price_of
from iapo_dspy.scoring.strategies import Strategy

logger = logging.getLogger(__name__)


def check_program(student: Any) -> dspy.Module:
    """Refuse anything but a program."""
    if not isinstance(student, dspy.Module):
        raise ConfigurationError(f"compile needs a program, a dspy.Module; got {student!r}.")
    return student


def check_predictors(student: Student) -> None:
    """Refuse a program without predictors that can be changed."""
    if student.predictors:
        return
    kind = type(student.module).__name__
    frozen = [name for name, _ in student.module.named_sub_modules(dspy.Predict) if name != "self"]
    if frozen:
        raise ConfigurationError(
            f"The predictors of the student {kind} belong to compiled sub-modules, which DSPy freezes: {frozen}. Set "
            "`_compiled = False` on those sub-modules to let IAPO change them."
        )
    raise ConfigurationError(
        f"The student {kind} has no predictors (dspy.Predict and the like), so there is no instruction to choose."
    )


def check_examples(trainset: Any, student: Student, name: str = "trainset") -> tuple[dspy.Example, ...]:
    """Return the examples; refuse an empty list, other objects, and examples that lack inputs of the student."""
    try:
        examples = tuple(trainset)
    except TypeError:
        raise ConfigurationError(f"{name} must be a list of dspy.Example, got {trainset!r}.") from None
    if not examples:
        raise ConfigurationError(f"The {name} is empty: give at least one dspy.Example with inputs and labels.")
    fields = student.input_fields
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
            _check_forward(student.module, given, f"{name}[{i}]")
    return examples


def check_trainset(trainset: Any, student: Student) -> tuple[dspy.Example, ...]:
    """Return the training examples, each once: one that is repeated says no more about other queries than one."""
    given = check_examples(trainset, student)
    kept: dict[tuple[str, str], dspy.Example] = {}
    for example in given:
        labels = json.dumps(tagged(dict(example.labels().items())), sort_keys=True)
        kept.setdefault((query_of(example), labels), example)
    if len(kept) < len(given):
        logger.warning(
            "%d of the %d examples of the trainset are repetitions of others: each counts once, as one query.",
            len(given) - len(kept), len(given),
        )  # fmt: skip
    return tuple(kept.values())


def check_valset(valset: Any, examples: Sequence[dspy.Example], student: Student) -> tuple[dspy.Example, ...]:
    """Return the validation examples, each query once, without those that have a part in the choice."""
    given = check_examples(valset, student, "valset")
    trained = {query_of(e) for e in examples}
    kept: dict[str, dspy.Example] = {}
    seen = []
    for i, example in enumerate(given):
        if query_of(example) in trained:
            seen.append(i)
        else:
            kept.setdefault(query_of(example), example)
    if seen:
        logger.warning(
            "%d of the %d examples of the valset have the inputs of a training example, such as valset[%d]. They have "
            "a part in the choice, so they are left out: the chosen arms are measured on %d examples%s.",
            len(seen), len(given), seen[0], len(kept), "" if kept else ", which is as without a valset",
        )  # fmt: skip
    if twice := len(given) - len(seen) - len(kept):
        logger.warning("Repeated queries of the valset are left out: %d.", twice)
    return tuple(kept.values())


def query_of(example: dspy.Example) -> str:
    """Return a text that two examples share if their inputs are equal."""
    return json.dumps(tagged(dict(example.inputs().items())), sort_keys=True)


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


def check_around(pipeline: Pipeline, settings: Settings) -> None:
    """Refuse settings that cannot work because of the steps around an inner module."""
    if settings.batch is not None:
        raise ConfigurationError(
            "batch=... draws one request per completion, ahead of time. The inner module of a pipeline is asked with "
            "the results of the steps before it, and the metric needs the steps after it. Leave batch out, or inner."
        )
    for name, predictor in pipeline.around:
        _check_limits(lm_of(name, predictor), request_params(lm_of(name, predictor), predictor.config), settings)


def check_rewriters(settings: Settings) -> None:
    """Refuse rewriters whose calls the budget cannot hold, and settings under which nothing can be rewritten."""
    if settings.batch is not None:
        raise ConfigurationError(
            "batch=... sends the requests of a round together, and a rewriter must have answered before. Leave batch "
            "out, or rewriters."
        )
    for i, rewriter in enumerate(settings.rewriters):
        try:
            _check_limits(rewriter.lm, rewriter.params, settings)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"The calls of rewriters[{i}] count in the budget and in costs. {error}"
            ) from error


def check_reserved_fields(student: Student, inputs: Iterable[str], preference_field: str | None) -> None:
    """Refuse fields whose names a compiled program needs for itself."""
    used = {*inputs, *(student.input_fields or ())}
    if preference_field is not None and preference_field in used:
        raise ReservedFieldName(
            f"The student has an input field called {preference_field!r}, the keyword by which a call of the compiled "
            "program chooses its preference. Either rename the field, or give IAPO's "
            "Execution(preference_field=None): calls then pass the field to the student, and "
            "program.with_preference('name') chooses the preference."
        )
    if "iapo" in student.output_fields:
        raise ReservedFieldName(
            "The student has an output field called 'iapo', where a call's report is kept; rename it."
        )


def other_programs(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the first prompt of each kind of program beside the student's."""
    found: dict[Any, Prompt] = {}
    for prompt in prompts:
        if prompt.kind is not None:
            found.setdefault(prompt.kind, prompt)
    return list(found.values())


def check_other(
    prompt: Prompt,
    examples: Sequence[dspy.Example],
    inputs: Sequence[str] | None,
    strategy: Strategy,
    preference_field: str | None,
) -> None:
    """Refuse a program of another kind than the student's that cannot stand in its place.

    Args:
        prompt: The prompt.
        examples: The training set.
        inputs: The inputs of the inner module of a pipeline; None where the student takes those of the examples.
        strategy: The strategy, fitted to the student.
        preference_field: See `Execution`.
    """
    given = sorted(examples[0].inputs().keys()) if inputs is None else list(inputs)
    fields = prompt.student.input_fields
    try:
        check_predictors(prompt.student)
        if inputs is None:
            check_examples(examples, prompt.student)
        elif fields is None:
            _check_forward(prompt.program, set(given), "the module")
        elif lacking := sorted(set(fields) - set(given)):
            raise ConfigurationError(f"Its inputs {lacking} are not among those of the inner module, {given}.")
        check_reserved_fields(prompt.student, given, preference_field)
        strategy.check_student(given, prompt.student.output_fields)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"Candidate #{prompt.candidate}, {prompt.kind}, cannot stand beside the student. {error}"
        ) from error


def check_judge(judge: Any, settings: Settings) -> bool:
    """Refuse a judge whose calls cannot be held within the budget; return whether the budget counts them."""
    if judge is None:
        raise ConfigurationError(
            "The metric asks the configured LM, and there is none: call dspy.configure(lm=dspy.LM('provider/model')), "
            "or give the metric an LM of its own, metered(dspy.LM(...))."
        )
    if isinstance(judge, EmbeddingRequest):
        judge.check_budget(settings.budget, settings.cost_unit.prices)
    if not isinstance(judge, dspy.BaseLM):
        return isinstance(judge, EmbeddingRequest)
    try:
        check_budget(judge, judge.kwargs, settings.budget, settings.cost_unit.prices)
    except ConfigurationError as exc:
        raise ConfigurationError(f"The metric asks an LM, whose calls count in the budget. {exc}") from exc
    return True


def check_sampling(prompts: Sequence[Prompt], settings: Settings) -> None:
    """Refuse prompts whose completions would all be the same, or could not be held within the budget."""
    untold = set()  # models that are sent no temperature
    for prompt in prompts:
        for name, lm in prompt.student.lms.items():
            config = prompt.student.predictors[name].config
            temperature = effective_temperature(lm, config, prompt.decoding)
            if temperature is None and isinstance(lm, dspy.LM):
                untold.add(lm.model)
            if settings.max_n > 1 and temperature == 0:
                raise ConfigurationError(
                    f"Predictor {name!r} of candidates[{prompt.candidate}] samples {lm.model!r} at temperature 0: all "
                    "N completions would be the same. Set a temperature > 0 on the LM or in "
                    "decoding=[Decoding(temperature=...)], or max_n=1."
                )
            check_decoding(lm, config, prompt.decoding)
            _check_limits(lm, request_params(lm, config, prompt.decoding), settings)
    for model in sorted(untold) if settings.max_n > 1 else ():
        logger.info(
            "%s is sent no temperature: you set none, and it takes none, or not beside your other settings. Its "
            "completions of one query differ as far as the model's own temperature makes them.", model,
        )  # fmt: skip


def check_adapters(prompts: Sequence[Prompt], inputs: Mapping[str, Any] | None, settings: Settings) -> None:
    """Refuse adapters of `IAPO(adapters=...)` that cannot write the calls, or whose own LMs the budget cannot hold.

    Args:
        prompts: Prompts with everything that can be chosen.
        inputs: Inputs of the program; None where a module inside of a pipeline has others.
        settings: The optimizer's.
    """
    for adapter in settings.adapters:
        for lm in lms_inside(adapter):
            try:
                _check_limits(lm, lm.kwargs, settings)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"The adapter {type(adapter).__name__} asks an LM, whose calls count in the budget. {error}"
                ) from error
    for prompt in prompts:
        for name, predictor in prompt.student.predictors.items() if prompt.adapter is not None else ():
            direct = inputs is not None and prompt.student.is_direct
            try:
                _write(prompt, name, predictor, inputs if inputs is not None and direct else {})
            except Exception as error:
                if not direct and not isinstance(error, ConfigurationError):
                    continue  # the inputs of a step are not known, which some adapters do not take
                raise ConfigurationError(
                    f"The adapter {prompt.adapter_name} cannot write a call of predictor {name!r} of "
                    f"candidates[{prompt.candidate}]: {one_line(error)} Leave it out of adapters, or mend it."
                ) from error


def _write(prompt: Prompt, name: str, predictor: Any, inputs: Mapping[str, Any]) -> None:
    """Write a call with a prompt's own adapter."""
    with dspy.context(callbacks=[], send_stream=None):
        lm, adapter = prompt.student.lms[name], prompt.adapter
        if not inputs or predictor_call(predictor, inputs, lm=lm, adapter=adapter, decoding=prompt.decoding) is None:
            adapter_or_configured(adapter).format(predictor.signature, predictor.demos, dict(inputs))


def _check_limits(lm: dspy.BaseLM, params: dict[str, Any], settings: Settings) -> None:
    check_budget(lm, params, settings.budget, settings.cost_unit.prices)
    settings.cost_unit.check(lm)


def check_resources(prompts: Sequence[Prompt], settings: Settings) -> None:
    """Refuse preferences that price or cap a resource that this run cannot measure."""
    for preference in settings.preferences:
        if settings.batch is not None and "seconds" in preference.resources:
            raise ConfigurationError(
                f"{preference} counts seconds, and batch=... measures no latency: leave one of them out."
            )
        if "usd" not in preference.resources:
            continue
        inside = [lm for adapter in settings.adapters for lm in lms_inside(adapter)]
        inside += [rewriter.lm for rewriter in settings.rewriters]
        for lm in (*inside, *(lm for prompt in prompts for lm in prompt.student.lms.values())):
            if price_of(lm, settings.cost_unit.prices) is None:
                raise ConfigurationError(
                    f"{preference} counts dollars, and LiteLLM knows no price of {lm.model!r}. Give yours, in dollars "
                    "per million input and output tokens: Search(cost_unit=Cost(completion_tokens=1, "
                    "usd_per_million=(0.15, 0.60))), or Cost(usd_per_million=...) to count dollars everywhere."
                )
