"""Predictions as plain JSON and back. Nothing is pickled."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import pydantic
from pydantic_core import to_jsonable_python

from iapo_dspy.sampling.ledger.typed_values import FLOAT, REPR, restored, tagged, types_of

logger = logging.getLogger(__name__)


def jsonable(value: Any) -> Any:
    """Return a value as strict JSON data: pydantic models as their dump, other objects as a marked `repr`.

    What pydantic cannot write (a structure that contains itself, a model that holds an array) becomes data with types.
    """
    try:
        return _strict(_written(value))
    except Exception as error:  # noqa: BLE001 - pydantic raises many kinds, and so do users' classes
        logger.debug("A %s is written with its types (%s).", type(value).__name__, type(error).__name__)
        return tagged(value)


def _written(value: Any) -> Any:
    return to_jsonable_python(value, fallback=lambda v: {REPR: repr(v)}, inf_nan_mode="constants")


def _strict(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {FLOAT: repr(value)}
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return value


def encode_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return named values as JSON data with their types."""
    return {str(name): tagged(value) for name, value in fields.items()}


def decode_fields(fields: Mapping[str, Any], signatures: Sequence[Any], side: str, *, typed: bool) -> dict[str, Any]:
    """Return the values that `encode_fields` wrote.

    Args:
        fields: The values, read back from JSON.
        signatures: Those of the program's predictors; they know classes that cannot be found by their names.
        side: "input" or "output": which fields of the signatures these are.
        typed: Whether the data hold types. Earlier versions wrote plain JSON: then the annotations of the signatures,
            the last one of a name, restore typed fields (models, sets, dates).
    """
    types = types_of(tuple(signatures))
    if typed:
        return {name: restored(value, types, name) for name, value in fields.items()}
    declared = {n: f.annotation for s in signatures for n, f in getattr(s, f"{side}_fields").items()}
    values = {name: _plain(value) for name, value in fields.items()}
    return {n: _typed(n, v, declared[n]) if n in declared else v for n, v in values.items()}


def encode_prediction(prediction: dspy.Prediction) -> dict[str, Any]:
    """Return the fields of a prediction as JSON data with their types."""
    return encode_fields(dict(prediction.items()))


def decode_prediction(
    fields: Mapping[str, Any], signatures: Sequence[Any] = (), *, typed: bool = True
) -> dspy.Prediction:
    """Return the prediction whose fields `encode_prediction` wrote; see `decode_fields`."""
    return dspy.Prediction(**decode_fields(fields, signatures, "output", typed=typed))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {FLOAT}:
            return float(value[FLOAT])
        if value.keys() == {REPR}:
            return value[REPR]
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
