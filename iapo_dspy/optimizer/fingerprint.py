"""Digests of the facts that a run depends on: equal runs have equal ones in every process."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import numpy as np
import pydantic

from iapo_dspy.bandit.named import short_name
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.prompts.prompt import program_state
from iapo_dspy.prompts.student import lm_of
from iapo_dspy.sampling.lm.params import generation_params
from iapo_dspy.sampling.spending.cost import Cost

logger = logging.getLogger(__name__)

_SHOWN = 1000  # elements of an array that its repr shows
_DEEPEST = 100  # levels of a value


def facts_of(plan: Plan) -> dict[str, Any]:
    """Return the facts that a run depends on, part by part, as JSON data without secrets.

    Parts that say nothing new are left out, so that ledgers of older versions can be resumed.
    """
    settings, pipeline = plan.settings, plan.pipeline
    facts: dict[str, Any] = {} if settings.cost == Cost() else {"cost": settings.cost.to_dict()}
    if plan.held_out:
        facts["held_out"] = _examples(plan.held_out)
    if plan.prompts.shape is not None:
        facts["shape"] = list(plan.prompts.shape)
    if pipeline is not None:
        states = program_state(pipeline.outer)
        facts |= {
            "pipeline": type(pipeline.outer).__qualname__,
            "inner": pipeline.path,
            "around": digest({name: states[name] for name, _ in pipeline.around}),
            "around_lms": digest([public_params(lm_of(*named)) for named in pipeline.around]),
        }
    return {
        **facts,
        "student": type(plan.student.module).__qualname__,
        "prompts": digest([[program_state(p.program), p.decoding.as_kwargs()] for p in plan.prompts.shown]),
        "adapter": digest(dspy.settings.adapter),
        "examples": _examples(plan.examples),
        "lms": digest([[public_params(lm) for lm in p.student.lms.values()] for p in plan.prompts.shown]),
        "strategy": settings.strategy.to_dict(),
        "preferences": [p.to_dict() for p in settings.preferences],
        "max_n": settings.max_n,
        "completions": settings.budget.completions,
        "algorithm": short_name(settings.algorithm),
        "seed": settings.seed,
    }


def public_params(lm: dspy.BaseLM) -> dict[str, Any]:
    """Return the settings that decide the LM's answers, without secrets and without the address of its server."""
    return {"model": lm.model, "model_type": lm.model_type, **generation_params(lm.kwargs)}


def digest(value: Any) -> str:
    """Return a short hash that is the same for equal values in every process."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def _examples(examples: Sequence[dspy.Example]) -> str:
    return digest([[dict(e.items()), sorted(e.inputs().keys())] for e in examples])


def _plain(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """Return JSON data that is the same for equal values in every process: without addresses and orders of sets."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, enum.Enum):
        return [type(value).__qualname__, value.name]
    if id(value) in inside or len(inside) > _DEEPEST:  # it contains itself
        return type(value).__qualname__
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v, inside) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, inside) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_plain(v, inside), sort_keys=True) for v in value)
    if isinstance(value, pydantic.BaseModel):
        return [type(value).__qualname__, _dumped(value, inside)]
    if hasattr(value, "__array_interface__"):  # an array or an image
        array = np.asarray(value)
        if array.dtype.hasobject:
            return [type(value).__qualname__, _plain(array.tolist(), inside)]
        if not isinstance(value, np.ndarray) or array.size > _SHOWN:  # a repr shows only a part of it
            content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            return [type(value).__qualname__, array.dtype.str, list(array.shape), content]
    if getattr(type(value), "__repr__", None) is not object.__repr__ and not hasattr(value, "__dict__"):
        return repr(value)
    attributes = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_") and not callable(v)}
    data = (type(None), str, int, float, bool, list, tuple, dict, set, frozenset)
    found = {k: _plain(v, inside) for k, v in attributes.items() if isinstance(v, data)}
    more = {k: _plain(v, inside) for k, v in attributes.items() if not isinstance(v, data)}
    return [type(value).__qualname__, found, *([more] if more and dataclasses.is_dataclass(value) else [])]


def _dumped(value: pydantic.BaseModel, inside: tuple[int, ...]) -> Any:
    """Return a model's dump; field by field where it holds sets, whose order differs, or data that JSON does not have.

    Functions are told apart by their names.
    """
    try:
        held = value.model_dump()
        if not _has_set(held):
            return _plain(value.model_dump(mode="json"), inside)
    except Exception as error:  # noqa: BLE001 - pydantic raises many kinds, and so do users' serializers
        logger.debug("A %s is told apart field by field (%s).", type(value).__name__, type(error).__name__)
    fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
    return {k: getattr(v, "__qualname__", None) or _plain(v, inside) for k, v in fields.items()}


def _has_set(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_set(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_set(v) for v in value)
    return isinstance(value, (set, frozenset))
