"""The facts that a run depends on, and the names of prompts by their content: equal ones in every process."""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import dspy
import pydantic

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.generations import Generations
from iapo_dspy.bandit.named import short_name
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.prompts.adapter_names import adapter_digest, lms_inside
from iapo_dspy.prompts.copies import program_state
from iapo_dspy.prompts.lms import lms_in
from iapo_dspy.prompts.prompt import Prompt, plain_attributes
from iapo_dspy.prompts.student import lm_of
from iapo_dspy.sampling.ledger.digests import digest, distinct, labels_digest, query_id
from iapo_dspy.sampling.ledger.ledger import fingerprint_of, without_secrets
from iapo_dspy.sampling.ledger.records import Cell
from iapo_dspy.sampling.ledger.serving import Serving
from iapo_dspy.sampling.ledger.upgrade import Older
from iapo_dspy.sampling.lm.params import generation_params
from iapo_dspy.sampling.rollouts.prepare import adapter_or_configured
from iapo_dspy.sampling.spending.cost import Cost

logger = logging.getLogger(__name__)

_EDITION = 2  # of the default algorithm; another one asks for other pulls


def facts_of(plan: Plan) -> dict[str, Any]:
    """Return the facts that a run depends on, part by part, as JSON data without secrets: equal ones replay a run."""
    facts = _older_facts(plan) | _unstated(plan) | {"metric": plan.strategy.digest(plan.settings.metric)}
    settings, budget = plan.settings, plan.settings.budget
    if budget.completions is None:  # it decides how many completions are planned
        facts["budget"] = {"tokens": budget.tokens, "usd": budget.usd}
    if kinds := [kind for p in plan.prompts.shown for kind in _kind(p)]:
        facts["programs"] = digest(kinds)
    if settings.adapters:
        facts["adapters"] = [adapter_digest(adapter) for adapter in settings.adapters]
    if settings.rewriters:
        facts["rewriters"] = [rewriter.digest for rewriter in settings.rewriters]
    if plan.writing is not None:
        by = [_told(p) for p in settings.proposers or ()]
        facts["writing"] = [settings.generations, public_params(plan.writing.lm), by]
    return facts | ({"edition": _EDITION} if isinstance(plan.settings.algorithm, Auto) else {})


def about(plan: Plan, id_of: Callable[[int], str]) -> dict[str, Any]:
    """Return what readers of a ledger need to know of a run beside its facts, as JSON data.

    Args:
        plan: The run.
        id_of: Names a prompt (`prompt_ids`).
    """
    examples, listed = [*plan.examples, *plan.held_out], plan.prompts.shape is None
    names = [f"{name}: {_signature(p.signature)}" for name, p in plan.student.predictors.items()]
    around = _around(plan)
    return {
        "n_prompts": len(plan.prompts),
        "n_queries": len(plan.examples),
        "objectives": list(plan.strategy.objectives),
        "labels": [p.label for p in plan.prompts] if listed else [],
        "unit": "student",
        "unit_lms": digest({name: _params_of(p) for name, p in plan.student.predictors.items()}),
        "prompts": [id_of(i) for i in range(len(plan.prompts) + (plan.as_it_is is not None))] if listed else None,
        "queries": distinct(query_id(example) for example in examples),
        "student": type(plan.student.module).__qualname__,
        "signature": "; ".join(names),
        "models": sorted({lm.model for p in plan.prompts.shown for lm in p.student.lms.values()}),
        "adapter": ", ".join(dict.fromkeys(type(adapter).__qualname__ for adapter in _adapters(plan))),
        "servers": {id_of(i): _servers(p) for i, p in enumerate(plan.prompts)} if listed else {},
        **({"around": digest(around)} if around else {}),
        **_unstated(plan),
    }


def takes_all(plan: Plan) -> bool:
    """Tell whether a run surely takes every stored completion of its prompts on its training set."""
    return isinstance(plan.search, (Auto, Generations))


def serving(
    plan: Plan, stored: Mapping[Cell, Sequence[int]], id_of: Callable[[int], str], *, has_unit: bool, began: bool
) -> Serving:
    """Count the stored completions that serve a run: exactly where it `takes_all`, else at most.

    Args:
        plan: The run.
        stored: Draws by cell.
        id_of: Names a prompt.
        has_unit: Whether the unit of costs is known, so that completions of the student alone serve nothing.
        began: Whether the run has begun. One that begins may draw others on its validation set.
    """
    told = about(plan, id_of)
    later = set() if began or not takes_all(plan) else set(told["queries"][len(plan.examples) :])
    student = id_of(len(plan.prompts)) if has_unit and plan.as_it_is is not None else None
    counted = {cell: draws for cell, draws in stored.items() if cell[0] != student and cell[1] not in later}
    return Serving.of(counted, told)


def prompt_ids(plan: Plan) -> Callable[[int], str]:
    """Return the function that names a prompt by all that its completions depend on; the student's is behind them."""
    around: dict[int, str] = {}
    for own in plan.settings.adapters or (None,):
        used = adapter_or_configured(own)
        # Without the candidates and the other adapters: one more of these does not change the names of the others.
        unstated = _unstated(plan, (used,), candidates=False)
        around[id(own)] = digest([_around(plan), unstated, digest(used), type(plan.student.module).__qualname__])
    twins: dict[str, list[int]] = {}  # LMs with equal settings, such as one model at two addresses
    for lm in (lm for element in plan.settings.lms for lm in lms_in(element)):
        same = twins.setdefault(digest(_params(lm)), [])
        same += [id(lm)] if id(lm) not in same else []

    def name(prompt: Prompt) -> str:
        lms = {n: (_params(lm), _nth(lm, twins)) for n, lm in prompt.student.lms.items()}
        state, types = program_state(prompt.program), _types(prompt.program)
        rewriter = [] if prompt.rewriter is None else [{"rewriter": prompt.rewriter.digest}]
        own = around[id(prompt.adapter)]
        return digest([state, prompt.decoding.as_kwargs(), lms, own, types, *_kind(prompt), *rewriter])

    count = len(plan.prompts)
    student = [name(plan.as_it_is)] if plan.as_it_is is not None else []
    if plan.prompts.shape is not None:
        return lambda i: name(plan.prompts[i]) if i < count else student[0]
    return distinct([*(name(p) for p in plan.prompts), *student]).__getitem__


def older_of(plan: Plan, id_of: Callable[[int], str]) -> Older:
    """Return a run as version 1 of the ledger knew it."""
    facts, known, examples = _older_facts(plan), about(plan, id_of), [*plan.examples, *plan.held_out]
    same = not isinstance(plan.settings.algorithm, Auto)
    return Older(
        facts=facts,
        known_as=fingerprint_of(facts),
        fingerprint=fingerprint_of(facts_of(plan)) if same else None,
        prompts=known["prompts"] or [id_of(i) for i in range(len(plan.prompts))],
        queries=known["queries"],
        labels=[labels_digest(example) for example in examples],
    )


def _older_facts(plan: Plan) -> dict[str, Any]:
    """Return the facts that version 1 of the ledger hashed. Parts that say nothing new are left out."""
    settings = plan.settings
    facts: dict[str, Any] = {} if settings.cost_unit == Cost() else {"cost": settings.cost_unit.to_dict()}
    if plan.held_out:
        facts["held_out"] = _examples(plan.held_out)
    if plan.prompts.shape is not None:
        facts["shape"] = list(plan.prompts.shape)
    return {
        **facts,
        **_around(plan),
        "student": type(plan.student.module).__qualname__,
        "prompts": digest([[program_state(p.program), p.decoding.as_kwargs()] for p in plan.prompts.shown]),
        "adapter": digest(dspy.settings.adapter),
        "examples": _examples(plan.examples),
        "lms": digest([[public_params(lm) for lm in p.student.lms.values()] for p in plan.prompts.shown]),
        "strategy": plan.strategy.to_dict(),
        "preferences": [p.to_dict() for p in settings.preferences],
        "max_n": settings.max_n,
        "completions": settings.budget.completions,
        "algorithm": short_name(settings.algorithm),
        "seed": settings.seed,
    }


def _around(plan: Plan) -> dict[str, Any]:
    """Return the facts about the pipeline that the student is a part of; none where it is not."""
    pipeline = plan.pipeline
    if pipeline is None:
        return {}
    states = program_state(pipeline.outer)
    return {
        "pipeline": type(pipeline.outer).__qualname__,
        "inner": pipeline.path,
        "around": digest({name: states[name] for name, _ in pipeline.around}),
        "around_lms": digest([public_params(lm_of(*named)) for named in pipeline.around]),
    }


def _unstated(plan: Plan, adapters: Sequence[dspy.Adapter] | None = None, *, candidates: bool = True) -> dict[str, Any]:
    """Return what decides answers and does not stand in a program's state; parts that say nothing are left out.

    Args:
        plan: The run.
        adapters: The adapters whose LMs count; None is all of the run.
        candidates: Whether the types of candidates' fields count.
    """
    whole = plan.student.module if plan.pipeline is None else plan.pipeline.outer
    programs = [whole, *(p.program for p in plan.prompts.shown if candidates)]
    found = {
        "types": [types for p in programs if (types := _types(p))],
        "attributes": without_secrets(plain_attributes(whole)),
        "adapter_lms": [public_params(lm) for adapter in adapters or _adapters(plan) for lm in lms_inside(adapter)],
    }
    return {name: digest(part) for name, part in found.items() if part}


def _kind(prompt: Prompt) -> list[Any]:
    """Return what tells a program of another kind from the student; nothing for the student's own."""
    if prompt.kind is None:
        return []
    return [[prompt.kind.to_json(), without_secrets(plain_attributes(prompt.program))]]


def _told(value: Any) -> Any:
    """Return a proposer's name, with its settings where they are not its defaults; of its parts likewise."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, dspy.BaseLM):
        return public_params(value)
    if isinstance(value, Mapping):
        return {str(name): _told(part) for name, part in value.items()}
    if isinstance(value, Sequence):
        return [_told(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {
            f.name: _told(part)
            for f in dataclasses.fields(value)
            if f.init and not (part := getattr(value, f.name)) == f.default
        }
    else:
        own = {
            name: part
            for name, part in getattr(value, "__dict__", {}).items()
            if not name.startswith("_") and isinstance(part, (str, int, float, bool))
        }
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return [name, own] if own else name


def _types(program: dspy.Module) -> dict[str, Any]:
    """Return the types and constraints of the fields of a program's predictors; those of plain text are left out."""
    return {
        f"{name}.{field}": [_schema(declared.annotation), constraints]
        for name, predictor in program.named_predictors()
        for field, declared in predictor.signature.fields.items()
        for constraints in [(declared.json_schema_extra or {}).get("constraints")]
        if declared.annotation is not str or constraints
    }


def _schema(annotation: Any) -> Any:
    try:
        return pydantic.TypeAdapter(annotation).json_schema()
    except Exception as error:  # noqa: BLE001 - pydantic raises many kinds, and so do users' classes
        logger.debug("The type %s is told apart by its name (%s).", annotation, type(error).__name__)
        return _name(annotation)


def _name(annotation: Any) -> str:
    plain = isinstance(annotation, type) and not typing.get_args(annotation)
    return annotation.__qualname__ if plain else repr(annotation).replace("typing.", "")


def _signature(signature: Any) -> str:
    """Return a signature in words, with the types of fields that are not plain text."""
    sides = (
        ", ".join(n if f.annotation is str else f"{n}: {_name(f.annotation)}" for n, f in fields.items())
        for fields in (signature.input_fields, signature.output_fields)
    )
    return " -> ".join(sides)


def _adapters(plan: Plan) -> Sequence[dspy.Adapter]:
    return plan.settings.adapters or (adapter_or_configured(None),)


def _servers(prompt: Prompt) -> list[str]:
    """Return the addresses that a prompt's LMs have been given, without what may be secret in them."""
    bases = (lm.kwargs.get("api_base") or lm.kwargs.get("base_url") for lm in prompt.student.lms.values())
    return sorted({urlsplit(str(base)).netloc.rpartition("@")[2] for base in bases if base})


def public_params(lm: dspy.BaseLM) -> dict[str, Any]:
    """Return the settings that decide the LM's answers, without secrets and without the address of its server."""
    return {"model": lm.model, "model_type": lm.model_type, **generation_params(lm.kwargs)}


def _examples(examples: Sequence[dspy.Example]) -> str:
    return digest([[dict(e.items()), sorted(e.inputs().keys())] for e in examples])


def _params(lm: dspy.BaseLM) -> Mapping[str, Any]:
    """Return the settings that decide the law of an LM's answers; its seed only decides which of them come."""
    return {k: v for k, v in public_params(lm).items() if k != "seed"}


def _params_of(predictor: Any) -> Mapping[str, Any] | None:
    """Return those of the LM that a predictor asks; None where it has none, because every candidate brings its own."""
    lm = predictor.lm or dspy.settings.lm
    return _params(lm) if isinstance(lm, dspy.BaseLM) else None


def _nth(lm: dspy.BaseLM, twins: Mapping[str, Sequence[int]]) -> int:
    same = twins.get(digest(_params(lm)), ())
    return same.index(id(lm)) if id(lm) in same else 0
