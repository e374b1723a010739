"""Predictions as plain JSON and back. Nothing is pickled."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import dspy
import pydantic
from pydantic_core import to_jsonable_python

logger = logging.getLogger(__name__)

_REPR = "__repr__"
_FLOAT = "__float__"


def jsonable(value: Any) -> Any:
    """Return a value as strict JSON data: pydantic models as their dump, other objects as a marked `repr`."""
    return _strict(to_jsonable_python(value, fallback=lambda v: {_REPR: repr(v)}, inf_nan_mode="constants"))


def _strict(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {_FLOAT: repr(value)}
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return value


def encode_prediction(prediction: dspy.Prediction) -> dict[str, Any]:
    """Return the fields of a prediction as JSON data."""
    return {str(name): jsonable(value) for name, value in prediction.items()}


def decode_prediction(fields: Mapping[str, Any], signature: Any | None = None) -> dspy.Prediction:
    """Return the prediction whose fields `encode_prediction` wrote.

    Args:
        fields: The fields, read back from JSON.
        signature: The program's signature; its annotations restore typed fields (pydantic models, sets, dates).
            Without it, they come back as the JSON data they were stored as.
    """
    return dspy.Prediction(**decode_fields(fields, getattr(signature, "output_fields", None)))


def decode_fields(fields: Mapping[str, Any], declared: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return values that were written as JSON data; declared fields get their types back."""
    values = {}
    for name, value in fields.items():
        plain = _plain(value)
        values[name] = _typed(name, plain, declared[name].annotation) if declared and name in declared else plain
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        if value.keys() == {_REPR}:
            return value[_REPR]
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _typed(name: str, value: Any, annotation: Any) -> Any:
    if value is None or annotation in (str, Any):
        return value
    try:
        adapter = pydantic.TypeAdapter(annotation)
        if isinstance(value, float):
            return adapter.validate_python(value)
        # Validation in JSON mode undoes a JSON dump: it reads lists as sets and strings as dates.
        return adapter.validate_json(json.dumps(value))
    except Exception as error:  # noqa: BLE001 - any annotation may refuse; the stored data is still right
        logger.debug("Field %s is kept as stored (%s).", name, type(error).__name__)
        return value
