"""Digests of values: equal values have equal ones in every process."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import dspy
import numpy as np
import pydantic

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SHOWN = 1000  # elements of an array that its repr shows
_DEEPEST = 100  # levels of a value


def digest(value: Any) -> str:
    """Return a short hash that is the same for equal values in every process."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def query_id(example: dspy.Example) -> str:
    """Return the name of a query: a digest of the example's inputs, because completions do not depend on its labels."""
    return digest(dict(example.inputs().items()))


def distinct(ids: Iterable[str]) -> list[str]:
    """Return names of which no two are equal: the second, third, ... of the same name get a number."""
    seen: Counter[str] = Counter()
    found = []
    for name in ids:
        found.append(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def labels_digest(example: dspy.Example) -> str:
    """Return a digest of an example's labels, on which scores may depend."""
    return digest(dict(example.labels().items()))


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
    if isinstance(value, dspy.Example):  # predictions are examples
        return [type(value).__qualname__, _plain(dict(value.items()), inside)]
    if hasattr(value, "iloc"):  # a table or a column of pandas
        held = value.to_dict(orient="split") if hasattr(value, "columns") else [value.index.tolist(), value.tolist()]
        return [type(value).__qualname__, _plain(held, inside)]
    if getattr(type(value), "__repr__", None) is not object.__repr__ and not hasattr(value, "__dict__"):
        return _ADDRESS.sub("", repr(value))
    held = {k: v for k, v in _attributes(value).items() if not callable(v)}
    attributes = {k: v for k, v in held.items() if not k.startswith("_")}
    data = (type(None), str, int, float, bool, list, tuple, dict, set, frozenset)
    found = {k: _plain(v, inside) for k, v in attributes.items() if isinstance(v, data)}
    if not found and not dataclasses.is_dataclass(value):  # nothing else tells it apart
        return [type(value).__qualname__, {k: _plain(v, inside) for k, v in held.items()}]
    more = {k: _plain(v, inside) for k, v in attributes.items() if not isinstance(v, data)}
    return [type(value).__qualname__, found, *([more] if more and dataclasses.is_dataclass(value) else [])]


def _attributes(value: Any) -> dict[str, Any]:
    """Return an object's attributes, those in slots included."""
    names = [n for cls in type(value).__mro__ for n in _slots(cls)]
    return {n: getattr(value, n) for n in names if hasattr(value, n)} | dict(getattr(value, "__dict__", {}))


def _slots(cls: type) -> list[str]:
    slots = cls.__dict__.get("__slots__", ())
    return [n for n in ([slots] if isinstance(slots, str) else slots) if not n.startswith("__")]


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
