"""Digests of what a run depends on: equal runs have equal ones in every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import pydantic

from iapo_dspy.optimizer.pipelines import Pipeline
from iapo_dspy.prompts.prompt import program_state
from iapo_dspy.sampling.lm.bound import lms_of
from iapo_dspy.sampling.lm.params import generation_params


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
