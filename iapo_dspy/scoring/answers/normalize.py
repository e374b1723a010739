"""Which completions give the same answer: normalisation and the key that is counted in a vote."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import fractions
import json
import math
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pydantic

from iapo_dspy.errors import ScoreError

Normalize = Callable[[Any], Any]


# Ledgers keep a hash of this function and of `answer_key`, docstrings included: other code makes
# resumed runs score again.
def normalize_answer(value: Any) -> Any:
    """Return the form in which two answers are compared; the default of `MajorityVote`.

    Strings: Unicode NFKC, case folded, runs of white space as one blank, no blanks around, no final full stop.
    Signs, digits and punctuation inside stay, because they decide numeric answers. Lists, tuples, sets and
    dictionaries: the same for each string in them. Everything else, as it is.
    """
    if isinstance(value, enum.Enum):  # also an enum of strings
        return value
    if isinstance(value, str):
        text = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
        return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(normalize_answer(v) for v in value)
    if isinstance(value, dict):
        return {k: normalize_answer(v) for k, v in value.items()}
    return value


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
    normal = normalize(value) if value is not None else None
    if isinstance(normal, str) and not isinstance(normal, enum.Enum):
        return normal or None
    return _key(normal)


def _key(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # so that ["a", "b"] is not ["a, b"]
    if isinstance(value, np.generic):
        return _key(value.item())
    if isinstance(value, np.ndarray):
        return _key(value.tolist())
    if isinstance(value, (float, decimal.Decimal, fractions.Fraction)):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_key(v) for v in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted({_key(v) for v in value}))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_key(k)}: {_key(v)}' for k, v in value.items()))}}}"
    if isinstance(value, pydantic.BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
        return _fields(value, fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare})
    if getattr(type(value), "__repr__", None) is object.__repr__:
        raise ScoreError(
            f"Answers of type {type(value).__name__} cannot be told apart by their text. Give MajorityVote a "
            "`normalize` that returns a string, a number, a list or the like."
        )
    return repr(value)


def _number(value: float | decimal.Decimal | fractions.Fraction) -> str:
    if math.isnan(value):
        raise ScoreError("The answer is NaN, which is not even equal to itself: it is not a vote.")
    if math.isinf(value):
        return repr(float(value))
    return repr(int(value)) if value == int(value) else repr(float(value))  # 4.0 and 4 are one answer


def _fields(value: Any, fields: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}={_key(normalize_answer(v))}" for name, v in sorted(fields.items()))
    return f"{type(value).__name__}({shown})"


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
