"""Which completions give the same answer: normalisation and the key that is counted in a vote."""

from __future__ import annotations

import enum
import typing
import unicodedata
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from iapo_dspy.errors import ScoreError

__all__ = ["Normalize", "answer_key", "is_hashable_type", "normalize_answer"]

Normalize = Callable[[Any], Hashable]


def normalize_answer(value: Any) -> Hashable:
    """Return the form in which two answers are compared; the default of `MajorityVote`.

    Strings: Unicode NFKC, case folded, runs of white space as one blank, no blanks around, no final full stop.
    Signs, digits and punctuation inside stay, because they decide numeric answers. Everything else, as it is.
    """
    if not isinstance(value, str):
        hashable: Hashable = value
        return hashable
    text = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def answer_key(value: Any, normalize: Normalize) -> str | None:
    """Return the key under which this answer is counted; equal answers have equal keys, in every process.

    None is an answer (of an optional field); an empty string is no vote.

    Raises:
        ScoreError: The normalised answer is not hashable, or nothing but its address tells it from others.
    """
    normal = normalize(value) if value is not None else None
    if normal == "":
        return None
    try:
        hash(normal)
    except TypeError:
        raise ScoreError(
            f"The answer {normal!r} ({type(normal).__name__}) is not hashable, so it cannot be counted. "
            "Give MajorityVote a `normalize` that returns a string, a number or a tuple."
        ) from None
    return normal if isinstance(normal, str) else _key(normal)


def _key(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)  # 4.0 and 4 are one answer
    if isinstance(value, tuple):
        return f"({', '.join(_key(v) for v in value)})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(_key(v) for v in value))}}}"
    if getattr(type(value), "__repr__", None) is object.__repr__:
        raise ScoreError(
            f"Answers of type {type(value).__name__} cannot be told apart by what they show. Give MajorityVote a "
            "`normalize` that returns a string, a number or a tuple."
        )
    return repr(value)


def is_hashable_type(annotation: Any) -> bool:
    """Tell whether values of a field's annotation can be counted as they are."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal or annotation is Any:
        return True
    if origin is typing.Annotated:
        return is_hashable_type(typing.get_args(annotation)[0])
    args = [a for a in typing.get_args(annotation) if a is not Ellipsis]
    if origin is not None and not isinstance(origin, type):  # Union, Optional
        return all(is_hashable_type(a) for a in args)
    kind = origin or annotation
    if not isinstance(kind, type):
        return True
    if kind.__name__ == "UnionType":
        return all(is_hashable_type(a) for a in args)
    if getattr(kind, "__hash__", None) is None:
        return False
    if hasattr(kind, "model_config") and not kind.model_config.get("frozen", False):
        return False  # pydantic models are hashable only when frozen
    return all(is_hashable_type(a) for a in args) if kind in (tuple, frozenset) else True
