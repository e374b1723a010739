"""Values of any type as JSON data that say what they were, so that they come back as they were. Nothing is pickled.

A value that JSON does not have is written as `{"__typed__": [kind, name, data]}`: an enum, a pydantic model (the types
of DSPy are models), a dataclass, a tuple, a set, a date, bytes, an array and the like, at any depth. `name` is the
class. Reading looks it up among the classes that the program declares and those that are imported already; it imports
nothing, and runs no constructor of a model or a dataclass, because a ledger may come from anywhere.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import logging
import pathlib
import sys
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dspy
import numpy as np
import pydantic

from iapo_dspy.sampling.concurrency.contained import contained

logger = logging.getLogger(__name__)

TYPED, REPR, FLOAT = "__typed__", "__repr__", "__float__"
_TAGS = frozenset((TYPED, REPR, FLOAT))
_DEEPEST = 40  # levels of a value; each takes up to four in the JSON data, of which a reader takes some 200
_TEXTS: dict[str, Any] = {  # written as pydantic writes them
    t.__name__: t
    for t in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
}
_MADE_OF_TEXT: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "complex": complex,
    "Fraction": lambda text: fractions.Fraction(*map(int, text.split("/"))),
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}
_COLLECTIONS: dict[str, Any] = {t.__name__: t for t in (tuple, set, frozenset, list, collections.deque)}
_ARRAYS = "biufU"  # kinds of arrays that hold plain numbers and texts

Types = Mapping[str, type]
"""Classes by `module:qualified name`, and by qualified name alone where that says which."""


def tagged(value: Any) -> Any:
    """Return a value as strict JSON data that `restored` reads back; an object of no known kind as its `repr`."""
    return _tagged(value, ())


def _tagged(value: Any, inside: tuple[int, ...]) -> Any:
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return value
    if kind is float:
        return value if np.isfinite(value) else {FLOAT: repr(value)}
    if id(value) in inside or len(inside) > _DEEPEST:  # it contains itself
        return {REPR: f"<{kind.__name__}>"}
    inside = (*inside, id(value))

    def each(values: Iterable[Any]) -> list[Any]:
        return [_tagged(v, inside) for v in values]

    if kind is list:
        return each(value)
    if kind is dict and all(type(k) is str for k in value) and not _TAGS & value.keys():
        return dict(zip(value, each(value.values()), strict=True))
    try:
        with contained():
            found = _described(value, each)
    except Exception as error:  # noqa: BLE001 - the user's own class, such as a property that raises
        logger.debug("A %s is kept as its text (%s).", kind.__name__, type(error).__name__)
        found = None
    return {REPR: _repr(value)} if found is None else {TYPED: list(found)}


def _described(value: Any, each: Callable[[Iterable[Any]], list[Any]]) -> tuple[str, str | None, Any] | None:
    """Return kind, name and data of a value that JSON does not have; None for an object of no known kind."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        return "enum", _name(kind), each([value.value])[0]
    if isinstance(value, pydantic.BaseModel):
        held = {k: v for k, v in value.__dict__.items() if k in kind.model_fields}  # no cached properties
        parts = [held, value.__pydantic_extra__, sorted(value.__pydantic_fields_set__), value.__pydantic_private__]
        return "model", _name(kind), each(parts)
    if isinstance(value, dspy.Example):  # a Prediction, too
        keys = getattr(value, "_input_keys", None)
        name = "prediction" if isinstance(value, dspy.Prediction) else "example"
        return name, None, [*each([dict(value.items())]), None if keys is None else sorted(keys)]
    if dataclasses.is_dataclass(value):
        held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
        return "dataclass", _name(kind), each([held])[0]
    if isinstance(value, (np.generic, np.ndarray)):
        known = value.dtype.kind in _ARRAYS
        return ("array", value.dtype.str, each([value.tolist()])[0]) if known else None
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return "named tuple", _name(kind), each(value)
    for name, base in _COLLECTIONS.items():
        if isinstance(value, base):
            return name, None, each(sorted(value, key=_repr) if isinstance(value, (set, frozenset)) else value)
    if isinstance(value, Mapping):
        return "dict", None, [each(pair) for pair in value.items()]
    if isinstance(value, (bytes, bytearray)):
        return "bytes", kind.__name__, base64.b64encode(bytes(value)).decode()
    for name, base in _TEXTS.items():
        if isinstance(value, base):
            return "text", name, pydantic.TypeAdapter(base).dump_python(value, mode="json")
    if isinstance(value, pathlib.PurePath):
        return "text", "PureWindowsPath" if isinstance(value, pathlib.PureWindowsPath) else "PurePosixPath", str(value)
    numbers: tuple[Any, ...] = (str, int, float, complex)
    for base in numbers:  # or a class of the user's on top of one
        if isinstance(value, base):
            return "text", base.__name__, str.__str__(value) if base is str else repr(base(value))
    if isinstance(value, fractions.Fraction):
        return "text", "Fraction", f"{value.numerator}/{value.denominator}"
    return None


def restored(value: Any, types: Types, field: str) -> Any:
    """Return the value that `tagged` wrote.

    Args:
        value: JSON data.
        types: Classes that the program declares.
        field: Whose value it is, for the log.
    """
    if isinstance(value, list):
        return [restored(v, types, field) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {FLOAT} and value[FLOAT] in ("nan", "inf", "-inf"):
        return float(value[FLOAT])
    if value.keys() == {REPR}:
        _say(field, "held an object that a ledger cannot keep; a metric sees its text", str(value[REPR]))
        return value[REPR]
    if value.keys() != {TYPED}:
        return {k: restored(v, types, field) for k, v in value.items()}
    try:
        kind, name, data = value[TYPED]
        return _built(kind, name, data, types, field)
    except Exception as error:  # noqa: BLE001 - the class is not there or has changed, or the file was edited
        what = "is kept as plain data, because its class is not known here as it was"
        _say(field, what, f"{type(error).__name__}: {value[TYPED]}")
        return plain(value)


def _built(kind: str, name: str | None, data: Any, types: Types, field: str) -> Any:
    def read(part: Any) -> Any:
        return restored(part, types, field)

    if kind == "enum":
        return _class(name, types, enum.Enum)(read(data))
    if kind == "model":
        cls: Any = _class(name, types, pydantic.BaseModel)
        held, extra, given, private = data
        if held.keys() != cls.model_fields.keys():
            raise ValueError("it has other fields")
        model = cls.__new__(cls)
        names = ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__", "__pydantic_private__")
        state = dict(zip(names, (read(held), read(extra), set(given), read(private)), strict=True))
        pydantic.BaseModel.__setstate__(model, state)
        return model
    if kind in ("prediction", "example"):
        held, keys = data
        made = (dspy.Prediction if kind == "prediction" else dspy.Example)(**read(held))
        return made if keys is None else made.with_inputs(*keys)
    if kind == "dataclass":
        cls = _class(name, types, object)
        declared = {f.name for f in dataclasses.fields(cls)}  # raises TypeError for another class
        if not data.keys() <= declared:
            raise ValueError("it has other fields")
        new: Any = object.__new__(cls)
        for key, part in data.items():
            object.__setattr__(new, key, read(part))
        return new
    if kind == "named tuple":
        cls = _class(name, types, tuple)
        if len(cls._fields) != len(data):
            raise ValueError("it has other fields")
        return tuple.__new__(cls, read(data))
    if kind == "array":
        dtype = np.dtype(str(name))
        if dtype.kind not in _ARRAYS:
            raise ValueError("it is not an array of numbers or texts")
        array = np.array(read(data), dtype="U" if dtype.kind == "U" else dtype)
        return array[()] if array.ndim == 0 else array
    if kind == "dict":
        return {read(k): read(v) for k, v in data}
    if kind == "bytes":
        return (bytearray if name == "bytearray" else bytes)(base64.b64decode(data))
    if kind == "text":
        if name in _TEXTS:
            return pydantic.TypeAdapter(_TEXTS[name]).validate_python(data)
        return _MADE_OF_TEXT[str(name)](data)
    return _COLLECTIONS[kind](read(data))


def plain(value: Any) -> Any:
    """Return what `tagged` wrote as JSON data without types: models as dictionaries, enums as their values."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {TYPED}:
        return {k: plain(v) for k, v in value.items()}
    match value[TYPED]:
        case ["model", _, [held, *_]]:
            return plain(held.get("root", held) if isinstance(held, dict) else held)
        case ["prediction" | "example", _, [held, *_]]:
            return plain(held)
        case ["dict", _, pairs] if isinstance(pairs, list):
            return {str(plain(pair[0])): plain(pair[-1]) for pair in pairs if isinstance(pair, list) and pair}
        case [_, _, data]:
            return plain(data)
        case other:
            return plain(other)


@functools.lru_cache(maxsize=256)
def types_of(signatures: tuple[Any, ...]) -> Types:
    """Return the classes that signatures declare, by name; those of nested fields are among them."""
    found: dict[str, type] = {}

    def walk(annotation: Any) -> None:
        for part in typing.get_args(annotation):
            walk(part)
        if not isinstance(annotation, type) or found.get(_name(annotation)) is annotation:
            return
        if issubclass(annotation, pydantic.BaseModel):
            found[_name(annotation)] = annotation
            for declared in annotation.model_fields.values():
                walk(declared.annotation)
        elif dataclasses.is_dataclass(annotation):
            found[_name(annotation)] = annotation
            for part in dataclasses.fields(annotation):
                walk(part.type)
        elif issubclass(annotation, (enum.Enum, tuple)):
            found[_name(annotation)] = annotation

    for signature in signatures:
        for declared in signature.fields.values():
            walk(declared.annotation)
    short = [name.partition(":")[2] for name in found]
    return found | {name.partition(":")[2]: cls for name, cls in found.items() if short.count(cls.__qualname__) == 1}


def _class(name: Any, types: Types, base: type) -> Any:
    """Return the class of this name.

    Raises:
        LookupError: The program does not declare it, and it is not imported; or it is of another kind.
    """
    found: Any = types.get(name)
    if found is None:
        module, _, path = str(name).partition(":")
        found = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is None:
            found = types.get(path)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise LookupError(f"there is no class {name!r}")
    return found


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - the user's own __repr__
        return f"<{type(value).__name__}>"


@functools.lru_cache(maxsize=64)
def _say(field: str, what: str, example: str) -> None:
    """Say once that a field does not come back as it was."""
    logger.warning("Field %r of a stored completion %s (%s).", field, what, " ".join(example.split())[:80])
