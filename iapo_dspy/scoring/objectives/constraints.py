"""Objectives that look at the text alone: patterns, JSON, length."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Literal

import dspy
import pydantic

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.spending.pricing import count_text
from iapo_dspy.scoring.bounded.process import TEXTS
from iapo_dspy.scoring.fields import check_name, field_of, json_of, text_of
from iapo_dspy.scoring.objective import Objective

Unit = Literal["words", "characters", "tokens"]


def regex_match(
    field: str, pattern: str | re.Pattern[str], *, whole: bool = False, name: str | None = None
) -> Objective:
    """Score 1 where a pattern is found in a field, else 0.

    A text on which the pattern takes more than about two seconds or 500 MB is a failed completion.

    Args:
        field: Output field; a value that is not text is written as JSON.
        pattern: A regular expression; flags belong into it, "(?i)yes".
        whole: Whether the whole text must match instead of some part of it.
        name: Of the objective. Default: "regex_match".

    Raises:
        ConfigurationError: It is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as exc:
        raise ConfigurationError(f"regex_match({field!r}, {pattern!r}): not a regular expression: {exc}.") from exc
    scorer = RegexMatch(check_name(field, "regex_match"), compiled.pattern, compiled.flags, whole)
    return Objective(name or "regex_match", scorer)


@dataclass(frozen=True)
class RegexMatch:
    """Whether a pattern is found."""

    field: str
    pattern: str
    flags: int
    whole: bool

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> bool:
        """Score one completion."""
        text = text_of(field_of(prediction, self.field))
        return bool(TEXTS.bounded("find", self.pattern, self.flags, self.whole, text, again=lambda: self._find(text)))

    def _find(self, text: str) -> bool:
        compiled = re.compile(self.pattern, self.flags)
        return (compiled.fullmatch(text) if self.whole else compiled.search(text)) is not None


def json_valid(
    field: str, schema: Mapping[str, Any] | type[pydantic.BaseModel] | None = None, *, name: str | None = None
) -> Objective:
    """Score 1 where a field is JSON, and valid under a schema if there is one, else 0.

    A text must be JSON as a whole: no code fence, no NaN. A field that DSPy has parsed (a dictionary, a list, a
    pydantic model) is taken as its JSON. A value on which the check takes more than about two seconds or 500 MB is a
    failed completion.

    Args:
        field: Output field.
        schema: A JSON schema of any draft that `jsonschema` knows, or a pydantic model. References stay within it:
            nothing is ever fetched.
        name: Of the objective. Default: "json_valid".

    Raises:
        ConfigurationError: It is not a valid schema.
    """
    found = (
        schema.model_json_schema() if isinstance(schema, type) and issubclass(schema, pydantic.BaseModel) else schema
    )
    scorer = JsonValid(check_name(field, "json_valid"), None if found is None else json.dumps(found, sort_keys=True))
    return Objective(name or "json_valid", scorer)


@dataclass(frozen=True)
class JsonValid:
    """Whether a field is JSON of a schema."""

    field: str
    schema: str | None
    validator: Any = attribute(init=False, compare=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.schema is None:
            return
        import jsonschema
        import referencing

        schema = json.loads(self.schema)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as exc:
            raise ConfigurationError(f"json_valid({self.field!r}): not a valid JSON schema: {exc.message}.") from exc
        # A registry of its own: the default one fetches references over the network.
        object.__setattr__(self, "validator", kind(schema, registry=referencing.Registry()))

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> bool:
        """Score one completion."""
        value = field_of(prediction, self.field)
        if isinstance(value, str):
            try:
                value = json.loads(value, parse_constant=_refuse)
            except (ValueError, RecursionError):
                return False
        else:
            value = json_of(value)
        if self.validator is None:
            return True
        return bool(TEXTS.bounded("valid", self.schema, value, again=lambda: self.validator.is_valid(value)))


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def length(
    field: str,
    *,
    target: int | None = None,
    most: int | None = None,
    least: int | None = None,
    unit: Unit = "words",
    tokenizer: str = "gpt-4",
    name: str | None = None,
) -> Objective:
    """Score the length L of a field in [0, 1].

    With `target` t, min(L, t) / max(L, t): 1 at the target, one half at half and at twice of it. With `most` m,
    min(1, m / L): 1 up to m, one half at twice of it. With `least` l, min(1, L / l). `least` and `most` may both be
    given; then the smaller one counts.

    Args:
        field: Output field; a value that is not text is written as JSON.
        target: The best length, >= 1.
        most: The longest that is not too long, >= 1.
        least: The shortest that is not too short, >= 1.
        unit: "words" (between white space), "characters" (code points) or "tokens".
        tokenizer: The model whose tokens are counted, as LiteLLM knows it. The default's tokenizer ships with LiteLLM;
            others may have to be downloaded.
        name: Of the objective. Default: "length".

    Raises:
        ConfigurationError: Neither a target nor limits, both, or limits that cross.
    """
    given = {"target": target, "most": most, "least": least}
    shown = ", ".join(f"{k}={v!r}" for k, v in given.items() if v is not None)
    for value in given.values():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"length({field!r}, {shown}): give whole numbers >= 1.")
    if (target is None) == (most is None and least is None) or ((most or 0) < (least or 0) and most is not None):
        raise ConfigurationError(
            f"length({field!r}, {shown}): give target=, or most= and least= (or one of them), with least <= most."
        )
    if unit not in ("words", "characters", "tokens"):
        raise ConfigurationError(f"length(unit={unit!r}): give 'words', 'characters' or 'tokens'.")
    return Objective(name or "length", Length(check_name(field, "length"), target, most, least, unit, tokenizer))


@dataclass(frozen=True)
class Length:
    """How well a length fits."""

    field: str
    target: int | None
    most: int | None
    least: int | None
    unit: str
    tokenizer: str

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        """Score one completion."""
        size = self._size(text_of(field_of(prediction, self.field)))
        if self.target is not None:
            return min(size, self.target) / max(size, self.target)
        too_long = self.most / size if self.most is not None and size > self.most else 1.0
        too_short = size / self.least if self.least is not None and size < self.least else 1.0
        return min(too_long, too_short)

    def _size(self, text: str) -> int:
        if self.unit == "characters":
            return len(text)
        return len(text.split()) if self.unit == "words" else count_text(self.tokenizer, text)
