"""The fields of a prediction as text, and a clear error where one is missing."""

from __future__ import annotations

import json
from typing import Any

import dspy
import pydantic

from iapo_dspy.errors import ConfigurationError, ScoreError
from iapo_dspy.scoring.answers.normalize import check_shape


def check_name(value: Any, what: str) -> str:
    """Return the name of a field.

    Raises:
        ConfigurationError: It is not a name.
    """
    if not isinstance(value, str) or not value.isidentifier():
        raise ConfigurationError(f"{what}: {value!r} is not the name of a field; give one, such as 'answer'.")
    return value


def field_of(holder: dspy.Example, name: str, what: str = "prediction") -> Any:
    """Return a field of a prediction or an example, whatever methods its class has.

    Raises:
        ScoreError: There is no such field.
        LabelRequired: It is a label, where only inputs are shown.
    """
    try:
        return holder[name]
    except (KeyError, AttributeError):
        fields = sorted(str(k) for k in holder.keys())
    raise ScoreError(f"The {what} has no field {name!r}; it has {fields}.")


def json_of(value: Any) -> Any:
    """Return a value as JSON data: pydantic models become dictionaries, wherever they are.

    Raises:
        ScoreError: It has no JSON form.
    """
    check_shape(value)
    try:
        return pydantic.TypeAdapter(Any).dump_python(value, mode="json")
    except (pydantic.PydanticUserError, ValueError, TypeError, RecursionError) as exc:
        raise ScoreError(f"A value of type {type(value).__name__} has no JSON form: {type(exc).__name__}.") from exc


def text_of(value: Any) -> str:
    """Return a value as text: a string as it is, None as an empty one, numbers as Python writes them, the rest as JSON.

    Raises:
        ScoreError: It has no JSON form.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        return str(value)
    return json.dumps(json_of(value), ensure_ascii=False)
