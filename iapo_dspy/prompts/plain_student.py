"""A plain predictor as JSON data, so that a saved program can be loaded without its student."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

import dspy

from iapo_dspy.prompts.student import class_of

_CLASSES: Mapping[str, type] = {"Predict": dspy.Predict, "ChainOfThought": dspy.ChainOfThought}
_TYPES = (str, int, float, bool, list, dict, type(None), Any)
_GENERIC = (list, dict, tuple, set, typing.Union, types.UnionType)


def described(student: dspy.Module) -> dict[str, str] | None:
    """Return a predictor's class and signature; None for a module, or fields, that plain text cannot describe."""
    name = next((name for name, kind in _CLASSES.items() if class_of(student) is kind), None)
    predictors = student.predictors()
    if name is None or len(predictors) != 1:
        return None
    signature = predictors[0].signature
    outputs = dict(signature.output_fields)
    if name == "ChainOfThought" and outputs.pop("reasoning", None) is None:
        return None
    sides = ([(n, f.annotation) for n, f in fields.items()] for fields in (signature.input_fields, outputs))
    inputs, answers = (list(side) for side in sides)
    if not all(_is_plain(annotation) for _, annotation in (*inputs, *answers)):
        return None
    if predictors[0].config or any(f.metadata or not f.is_required() for f in signature.fields.values()):
        return None  # a temperature, a bound or a default would be lost
    text = " -> ".join(", ".join(f"{n}: {_spelled(a)}" for n, a in side) for side in (inputs, answers))
    found = {"class": name, "signature": text}
    again = student_from(found)
    same = again is not None and _annotations(again) == _annotations(student)
    return found if same else None


def student_from(data: Any) -> dspy.Module | None:
    """Return a fresh predictor from data that `described` returned; None where they are not such data."""
    if not isinstance(data, Mapping) or data.get("class") not in _CLASSES or not isinstance(data.get("signature"), str):
        return None
    try:
        made: dspy.Module = _CLASSES[data["class"]](data["signature"])
    except (ValueError, TypeError, NameError, SyntaxError):  # DSPy cannot read it
        return None
    return made if all(_is_plain(annotation) for _, annotation in _annotations(made)) else None


def _annotations(student: dspy.Module) -> list[tuple[str, Any]]:
    return [(name, field.annotation) for p in student.predictors() for name, field in p.signature.fields.items()]


def _is_plain(annotation: Any) -> bool:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return all(isinstance(a, (str, int, bool)) for a in args)
    return annotation in _TYPES if origin is None else origin in _GENERIC and all(map(_is_plain, args))


def _spelled(annotation: Any) -> str:
    """Return an annotation as a string signature has it."""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return "None" if annotation is type(None) else annotation.__name__
    return repr(annotation).replace("typing.", "")
