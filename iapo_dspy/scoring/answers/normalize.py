"""Which completions give the same answer: normalisation and the key that is counted in a vote."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import fractions
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Set
from functools import lru_cache, partial
from typing import Any

import dspy
import numpy as np
import pydantic

from iapo_dspy.errors import ScoreError
from iapo_dspy.scoring.answers.text import normalize_text

Normalize = Callable[[Any], Any]


_MOST_DEPTH = 100  # levels of lists within lists
_MOST_PARTS = 10**5


# Ledgers keep a hash of this function and of `answer_key`, docstrings included: other code makes
# resumed runs score again.
def normalize_answer(value: Any) -> Any:
    """Return the form in which two answers are compared; the default of `MajorityVote`.

    Strings: see `normalize_text`. Lists, tuples, sets and dictionaries: the same for each string in them. DSPy's
    `Reasoning` is its text. Everything else, as it is.

    Raises:
        ScoreError: The value contains itself, or is too large.
    """
    check_shape(value)
    return _normal(value)


def _normal(value: Any) -> Any:
    if isinstance(value, dspy.Reasoning):  # a string, for DSPy
        value = value.content
    if isinstance(value, enum.Enum):  # also an enum of strings
        return value
    if isinstance(value, str):
        return normalize_text(value)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_normal(v) for v in value)
    if isinstance(value, dict):
        return {k: _normal(v) for k, v in value.items()}
    return value


def check_shape(value: Any) -> None:
    """Refuse a structure that cannot be walked through in time.

    Raises:
        ScoreError: It contains itself, is nested more than 100 levels deep or has more than 100,000 parts.
    """
    level, seen = [value], 0
    for _ in range(_MOST_DEPTH):
        level = [part for v in level for part in _parts(v)]
        seen += len(level)
        if not level:
            return
        if seen > _MOST_PARTS:
            break
    raise ScoreError(
        f"The answer contains itself, is nested more than {_MOST_DEPTH} levels deep, or has more than {_MOST_PARTS} "
        "parts."
    )


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, Mapping):
        return itertools.chain(value.keys(), value.values())
    if isinstance(value, pydantic.BaseModel) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return vars(value).values() if hasattr(value, "__dict__") else ()
    return ()


def plain_text(value: Any) -> Any:
    """Return a string without white space around it, and anything else as it is."""
    return value.strip() if isinstance(value, str) and not isinstance(value, enum.Enum) else value


def answer_key(value: Any, normalize: Normalize = normalize_answer) -> str | None:
    """Return the key under which this answer is counted; equal answers have equal keys, in every process.

    A string is its own key. Numbers are equal by value whatever their type, lists and tuples by their items in order,
    sets and dictionaries in any order, pydantic models and dataclasses by their class and fields. None is an answer (of
    an optional field); an empty string is no vote.

    Raises:
        ScoreError: Nothing but its address tells the normalised answer from others, or it is not a number.
    """
    check_shape(value)
    normal = normalize(value) if value is not None else None
    if isinstance(normal, str) and not isinstance(normal, enum.Enum):
        return _encodable(normal) or None
    check_shape(normal)
    return _encodable(_key(normal))


def _encodable(text: str) -> str:
    """Return a text with half surrogate pairs written as escapes: nothing can store them."""
    return text.encode("utf-8", "backslashreplace").decode() if not text.isascii() else text


def _key(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # so that ["a", "b"] is not ["a, b"]
    if isinstance(value, np.generic):
        return _key(value.item())
    if isinstance(value, np.ndarray):
        return _key(value.tolist())
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value) if abs(value) >= _LARGE else repr(int(value))  # Python writes no longer decimals
    if isinstance(value, (float, decimal.Decimal, fractions.Fraction)):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_key(v) for v in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted({_key(v) for v in value}))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_key(k)}: {_key(v)}' for k, v in value.items()))}}}"
    if isinstance(value, pydantic.BaseModel):
        fields = {name: getattr(value, name) for name in fields_of(type(value))} | (value.model_extra or {})
        return _fields(value, fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, {name: getattr(value, name) for name in fields_of(type(value))})
    shown = repr(bytes(value) if isinstance(value, memoryview) else value)
    if getattr(type(value), "__repr__", None) is object.__repr__ or _ADDRESS.search(shown):
        raise ScoreError(
            f"Answers of type {type(value).__name__} cannot be told apart by their text. Give MajorityVote a "
            "`normalize` that returns a string, a number, a list or the like."
        )
    return shown


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MOST_DIGITS = 4000
_LARGE = 10**_MOST_DIGITS


def _number(value: float | decimal.Decimal | fractions.Fraction) -> str:
    if isinstance(value, fractions.Fraction):
        return _key(value.numerator) if value.denominator == 1 else _ratio(value)
    if value.is_nan() if isinstance(value, decimal.Decimal) else math.isnan(value):
        raise ScoreError("The answer is NaN, which is not even equal to itself: it is not a vote.")
    if isinstance(value, decimal.Decimal) and value.is_finite():
        if abs(value.adjusted()) > _MOST_DIGITS:  # as a whole number it could fill the memory
            sign, digits, _ = value.as_tuple()
            shown = "".join(map(str, digits)).strip("0")
            return f"{'-' * sign}{shown or 0}e{value.adjusted() if value else 0}"
        if value != int(value) and decimal.Decimal(repr(float(value))) != value:
            return str(fractions.Fraction(value))
    if math.isinf(value):
        return repr(float(value))
    return repr(int(value)) if value == int(value) else repr(float(value))  # 4.0 and 4 are one answer


def _ratio(value: fractions.Fraction) -> str:
    try:
        return repr(float(value))
    except OverflowError:
        return f"{_key(value.numerator)}/{_key(value.denominator)}"


def _fields(value: Any, fields: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}={_key(_normal(v))}" for name, v in sorted(fields.items()))
    return f"{type(value).__name__}({shown})"


@lru_cache(maxsize=256)
def fields_of(kind: type) -> tuple[str, ...]:
    """Return the fields of a pydantic model or a dataclass that make up an answer, in order.

    The others are bookkeeping, which no two completions share: fields that the LM is not asked for, because the JSON
    schema leaves them out (ids of `dspy.ToolCalls`) or because they are never written (`exclude=True`); fields whose
    default differs each time (a random id, the time); the confidence of DSPy's decisions; and fields of dataclasses
    that are not compared.
    """
    if not issubclass(kind, pydantic.BaseModel):
        compared = [f for f in dataclasses.fields(kind) if f.compare]  # type: ignore[arg-type]
        return tuple(f.name for f in compared if not _differs(getattr(f, "default_factory", None)))
    asked = _asked_for(kind)
    decision = any(base.__module__ == "dspy.adapters.types.decision" for base in kind.__mro__)
    return tuple(
        name
        for name, info in kind.model_fields.items()
        if (asked is None or name in asked)
        and not info.exclude
        and not (decision and name == "confidence")
        and (info.default_factory_takes_validated_data or not _differs(info.default_factory))
    )


def _asked_for(kind: type[pydantic.BaseModel]) -> Set[str] | None:
    """Return the fields that the JSON schema of a model has; None where it has no such schema."""
    try:
        schema = kind.model_json_schema(by_alias=False)
    except Exception:  # noqa: BLE001  # a type without a schema, or a user's hook that raises
        return None
    if "$ref" in schema:  # a model that refers to itself
        schema = schema.get("$defs", {}).get(schema["$ref"].rpartition("/")[2], {})
    return set(schema["properties"]) if "properties" in schema else None


def _differs(factory: Any) -> bool:
    """Tell whether a default is made up anew each time."""
    if factory is None or factory is dataclasses.MISSING:
        return False
    try:
        return bool(factory() != factory())
    except Exception:  # noqa: BLE001  # the user's factory, or values that cannot be compared
        return False


_TEXTUAL = (str, Any, object, None, type(None))


def parsed(value: Any, annotation: Any) -> Any:
    """Return a field's value as its annotation has it: adapters and modules may leave the text of a typed field.

    Args:
        value: The value; only a string is ever parsed.
        annotation: The field's annotation; None where it is not known.

    Returns:
        The value. A text that cannot be read as a value of this type stays as it is: a module may want it so.
    """
    if not isinstance(value, str) or isinstance(value, enum.Enum) or _may_be_text(annotation):
        return value
    text = value.strip()
    if not text:
        return text  # an empty field is not a vote, whatever its type
    try:
        adapter = _adapter(annotation)
    except pydantic.PydanticUserError:  # a class that pydantic knows nothing of
        return value
    for read in (adapter.validate_python, adapter.validate_json, partial(_named, annotation)):
        try:
            return read(text)
        except (ValueError, KeyError):  # pydantic's errors are ValueErrors
            continue
    return value


@lru_cache(maxsize=256)
def _adapter(annotation: Any) -> Any:
    return pydantic.TypeAdapter(annotation)


def _named(annotation: Any, text: str) -> Any:
    """Return an enum's member of this name, or a Literal's member of this text."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return annotation[text]
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    return {str(choice): choice for choice in choices}[text]


def _may_be_text(annotation: Any) -> bool:
    if annotation in _TEXTUAL:
        return True
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _may_be_text(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return all(isinstance(choice, str) for choice in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return any(a is not type(None) and _may_be_text(a) for a in typing.get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, str) and not issubclass(annotation, enum.Enum)


def is_countable_type(annotation: Any) -> bool:
    """Tell whether values of a field's annotation have keys, as far as the annotation says."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal or annotation in _TEXTUAL:
        return True
    if origin is typing.Annotated:
        return is_countable_type(typing.get_args(annotation)[0])
    args = [a for a in typing.get_args(annotation) if a is not Ellipsis]
    if origin is not None:
        kind_counts = not isinstance(origin, type) or origin is types.UnionType or _class_counts(origin)
        return kind_counts and all(is_countable_type(a) for a in args)
    return not isinstance(annotation, type) or _class_counts(annotation)


def _class_counts(kind: type) -> bool:
    if issubclass(kind, (pydantic.BaseModel, Mapping, enum.Enum)) or dataclasses.is_dataclass(kind):
        return True
    if issubclass(kind, Callable):  # type: ignore[arg-type]  # functions show their address
        return False
    return kind.__repr__ is not object.__repr__ or getattr(kind, "__abstractmethods__", None) is not None
