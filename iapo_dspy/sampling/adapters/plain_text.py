"""An adapter without a format: inputs as they are, the bare answer, demonstrations as turns of the chat."""

from __future__ import annotations

import json
import re
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import dspy
import pydantic
from dspy.adapters.base import Adapter
from dspy.adapters.utils import format_field_value, parse_value
from dspy.utils.exceptions import AdapterParseError

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.adapters.answer_text import (
    Found,
    Label,
    Unreadable,
    bare,
    is_text,
    labels_of,
    read_label,
    read_line,
    read_number,
)
from iapo_dspy.sampling.adapters.constrained import Constrain, constrained, json_schema

Read = Literal["auto", "first_line", "last_line", "label", "number", "text"]


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """The output fields of a signature: the answer, and maybe a text before it."""

    answer: str
    annotation: Any
    reasoning: str | None
    labels: tuple[Label, ...]

    @property
    def choices(self) -> list[str]:
        return [label.texts[0] for label in self.labels]


class PlainTextAdapter(Adapter):  # type: ignore[misc]  # dspy ships no types
    """Asks in plain text, for the answer and nothing else. Small models keep to that where they keep to no format.

    The system message is the signature's instructions, and the user message is the input. Demonstrations are turns of
    the chat before it, with the bare answer as the assistant's. It is for signatures with one output field, or with one
    text field, such as the reasoning of `dspy.ChainOfThought`, before the answer.

    A completion that cannot be read raises `AdapterParseError`; while sampling, it casts no vote.

    Args:
        read: How the answer is read. "auto" goes by the field's type: "label" for Literal, Enum and bool, "number" for
            int and float, "first_line" for text ("last_line" after reasoning), "text" for anything else, which is JSON.
            "label": the only label in the text. "number": the only number in it; a text field gets its canonical form.
            After reasoning, the last label or number counts.
        pattern: A regular expression. The answer is its first group, or the whole match if it has none: of the first
            place where it is found, or of the last one after reasoning. Flags belong into it, "(?i)answer: (.*)".
        constrain: How the server is told to allow no other answer than one of the field's labels: "response_format"
            (a JSON schema), "grammar" (llama.cpp), "structured_outputs" (vLLM since 0.11), "guided_choice" (vLLM
            before). None: not at all.
        callbacks: As DSPy's adapters take them.

    Raises:
        ConfigurationError: A setting is none of these. At a call, before the LM is asked: the signature has other
            output fields, or none with labels where the setting needs one.
    """

    formats_and_parses_only: ClassVar[bool] = True

    def __init__(
        self,
        read: Read = "auto",
        *,
        pattern: str | None = None,
        constrain: Constrain | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        super().__init__(callbacks=callbacks)
        _check("read", read, typing.get_args(Read))
        _check("constrain", constrain, (None, *typing.get_args(Constrain)))
        if pattern is not None:
            if read != "auto":
                raise ConfigurationError(f"PlainTextAdapter(read={read!r}, pattern={pattern!r}): give one of them.")
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ConfigurationError(f"pattern={pattern!r} is not a regular expression: {error}.") from None
        self.read = read
        self.pattern = pattern
        self.constrain = constrain

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON data: `PlainTextAdapter(**adapter.to_dict())` equals the adapter."""
        return {"read": self.read, "pattern": self.pattern, "constrain": self.constrain}

    def __repr__(self) -> str:
        """Show the settings that are not the defaults."""
        defaults = {"read": "auto", "pattern": None, "constrain": None}
        given = [f"{name}={value!r}" for name, value in self.to_dict().items() if value != defaults[name]]
        return f"{type(self).__name__}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        """Compare the settings; callbacks do not count."""
        return isinstance(other, PlainTextAdapter) and type(other) is type(self) and other.to_dict() == self.to_dict()

    def __hash__(self) -> int:
        """Hash the settings."""
        return hash((type(self), *self.to_dict().values()))

    def format_system_message(self, signature: Any) -> str:
        """Return the instructions, and a line on the answer where they do not say what it may be."""
        outputs = self._outputs(signature)
        instructions = textwrap.dedent(signature.instructions).strip()
        return "\n".join(filter(None, [instructions, self._wanted(outputs, instructions)]))

    def _wanted(self, outputs: _Outputs, instructions: str) -> str:
        labels = "" if _mentions(instructions, outputs.labels) else f"one of: {', '.join(outputs.choices)}"
        if self.constrain == "response_format":
            names = [outputs.reasoning] if outputs.reasoning else []
            shape = ", ".join(f'"{name}": ...' for name in [*names, outputs.answer])
            return f"Answer in JSON: {{{shape}}}." + (f" The {outputs.answer} is {labels}." if labels else "")
        if not labels and not outputs.labels and not is_text(outputs.annotation) and not _is_number(outputs.annotation):
            schema = pydantic.TypeAdapter(outputs.annotation).json_schema()
            labels = f"JSON of this schema: {json.dumps(schema, ensure_ascii=False)}"
        if outputs.reasoning:
            last = "Think step by step first. Then write the answer on a last line of its own"
            return f"{last}: {labels}." if labels else f"{last}."
        return labels and f"Answer with {labels}."

    def format_demos(self, signature: Any, demos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return two messages for each demonstration that has an answer and an input; incomplete ones come first."""
        outputs, inputs = self._outputs(signature), _input_names(signature)
        names = [*inputs, *([outputs.reasoning] if outputs.reasoning else [])]
        shown = [d for d in demos if d.get(outputs.answer) is not None and any(d.get(n) is not None for n in inputs)]
        messages: list[dict[str, Any]] = []
        for demo in sorted(shown, key=lambda d: all(d.get(n) is not None for n in names)):
            messages += [
                {"role": "user", "content": self.format_user_message_content(signature, dict(demo))},
                {"role": "assistant", "content": self.format_assistant_message_content(signature, dict(demo))},
            ]
        return messages

    def format_user_message_content(
        self,
        signature: Any,
        inputs: Mapping[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return the value of the only input field, or a line "name: value" for each of several."""
        names = _input_names(signature)
        values = {
            name: format_field_value(signature.input_fields[name], inputs[name])
            for name in names
            if inputs.get(name) is not None
        }
        alone = len(names) == 1 and all(value.strip() for value in values.values())
        lines = [value if alone else f"{name}: {value}" for name, value in values.items()]
        return "\n".join(filter(None, [prefix, *lines, suffix])).strip()

    def format_assistant_message_content(
        self, signature: Any, outputs: Mapping[str, Any], missing_field_message: str | None = None
    ) -> str:
        """Return the bare answer, on a line below the text before it if there is one."""
        fields = {
            name: format_field_value(field, outputs[name])
            for name, field in signature.output_fields.items()
            if outputs.get(name) is not None
        }
        if self.constrain == "response_format":
            return json.dumps(fields, ensure_ascii=False) if fields else ""
        return "\n".join(fields.values())

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Return the output fields of a completion.

        Raises:
            AdapterParseError: It holds no answer, or it is not clear which.
        """
        outputs = self._outputs(signature)
        try:
            if self.constrain == "response_format" and (held := _object(completion, outputs.answer)) is not None:
                return self._read_object(outputs, held)
            found = self._find(outputs, completion)
            fields = {outputs.answer: _converted(found.value, outputs)}
        except Unreadable as reason:
            raise AdapterParseError(type(self).__name__, signature, completion, f"{reason}.") from None
        if outputs.reasoning is None:
            return fields
        before = completion[: completion.rfind("\n", 0, found.start) + 1].strip() or completion.strip()
        return {outputs.reasoning: _as_text(signature.output_fields[outputs.reasoning].annotation, before), **fields}

    def _call_preprocess(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, inputs: dict[str, Any]) -> Any:
        rendered = super()._call_preprocess(lm, lm_kwargs, signature, inputs)
        outputs = self._outputs(rendered)
        if self.constrain is None:
            return rendered
        if not outputs.labels:
            raise ConfigurationError(
                f"constrain={self.constrain!r} needs an output field with labels, but {outputs.answer!r} is a "
                f"{_name(outputs.annotation)}. Give it the type Literal[...], an Enum or bool, or leave constrain out."
            )
        if self.constrain == "response_format":
            before = [outputs.reasoning] if outputs.reasoning else []
            lm_kwargs["response_format"] = json_schema(outputs.answer, outputs.choices, before)
            return rendered
        if outputs.reasoning:
            raise ConfigurationError(
                f"constrain={self.constrain!r} leaves no room for {outputs.reasoning!r} before the answer. Use "
                "constrain='response_format', or dspy.Predict instead of dspy.ChainOfThought."
            )
        given = {**(lm.kwargs.get("extra_body") or {}), **(lm_kwargs.get("extra_body") or {})}
        lm_kwargs["extra_body"] = constrained(self.constrain, outputs.choices, given)
        return rendered

    def _outputs(self, signature: Any) -> _Outputs:
        *before, answer = signature.output_fields
        annotation = signature.output_fields[answer].annotation
        if len(before) > 1 or any(not is_text(signature.output_fields[name].annotation) for name in before):
            raise ConfigurationError(
                f"PlainTextAdapter reads one output field, or one after a text field, but the signature has "
                f"{', '.join([*before, answer])}. Use dspy.ChatAdapter() or dspy.JSONAdapter() for this program."
            )
        outputs = _Outputs(
            answer=answer,
            annotation=annotation,
            reasoning=before[0] if before else None,
            labels=labels_of(annotation),
        )
        if self.read == "label" and not outputs.labels:
            raise ConfigurationError(
                f"read='label' needs an output field with labels, but {answer!r} is a {_name(annotation)}. Give it the "
                "type Literal[...], an Enum or bool, or use another way to read."
            )
        if self.read == "text" and before:
            raise ConfigurationError(f"read='text' takes all text as {answer!r} and leaves none for {before[0]!r}.")
        return outputs

    def _find(self, outputs: _Outputs, completion: str) -> Found:
        reasons = outputs.reasoning is not None
        if self.pattern is not None:
            matches = list(re.finditer(self.pattern, completion))
            match = matches[-1 if reasons else 0] if matches else None
            group = 1 if match is not None and match.re.groups else 0
            if match is None or match.group(group) is None:
                raise Unreadable(f"The pattern {self.pattern!r} is not found")
            return Found(value=_within(match.group(group), outputs), start=match.start(group))
        if self.read == "label" or (self.read == "auto" and outputs.labels):
            return read_label(completion, outputs.labels, outputs.answer, last=reasons)
        if self.read == "number" or (self.read == "auto" and _is_number(outputs.annotation)):
            return read_number(completion, outputs.answer, last=reasons)
        if self.read == "text" or (self.read == "auto" and not reasons and not is_text(outputs.annotation)):
            return Found(value=_within(completion, outputs), start=0)
        last = self.read == "last_line" or (self.read == "auto" and reasons)
        line = read_line(completion, outputs.answer, last=last)
        return Found(value=_within(line.value, outputs), start=line.start)

    def _read_object(self, outputs: _Outputs, held: Mapping[str, Any]) -> dict[str, Any]:
        found = read_label(str(held[outputs.answer]), outputs.labels, outputs.answer, last=False)
        before = {outputs.reasoning: str(held.get(outputs.reasoning) or "")} if outputs.reasoning else {}
        return {**before, outputs.answer: found.value}


def _check(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ConfigurationError(f"PlainTextAdapter({name}={value!r}): give one of {', '.join(map(repr, known))}.")


def _input_names(signature: Any) -> list[str]:
    return [name for name, field in signature.input_fields.items() if field.annotation is not dspy.History]


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else repr(annotation)


def _is_number(annotation: Any) -> bool:
    return bare(annotation) in (int, float)


def _mentions(instructions: str, labels: Sequence[Label]) -> bool:
    """Tell whether instructions name all labels, so that the LM need not be told them again."""
    text = instructions.casefold()
    return all(
        any(re.search(rf"(?<!\w){re.escape(t.casefold())}(?!\w)", text) for t in label.texts) for label in labels
    )


def _text(completion: str) -> str:
    if not (text := completion.strip()):
        raise Unreadable("The completion is empty")
    return text


def _within(part: str, outputs: _Outputs) -> Any:
    """Return a part of a completion, read as a label or a number where the field is one."""
    if outputs.labels:
        return read_label(part, outputs.labels, outputs.answer, last=False).value
    return read_number(part, outputs.answer, last=False).value if _is_number(outputs.annotation) else _text(part)


def _converted(value: Any, outputs: _Outputs) -> Any:
    """Return the answer as the field's type."""
    kind = bare(outputs.annotation)
    if any(value is label.value for label in outputs.labels) or is_text(kind):
        return _as_text(kind, value) if is_text(kind) else value
    if _is_number(kind) and isinstance(value, str) and value.endswith("%"):
        raise Unreadable(f"{value!r} is a percentage and not a {_name(kind)}")
    try:
        return parse_value(value, kind)
    except (ValueError, TypeError):  # pydantic's errors are ValueErrors
        raise Unreadable(f"{str(value)[:80]!r} is not a {_name(kind)}") from None


def _as_text(annotation: Any, text: str) -> Any:
    return dspy.Reasoning(content=text) if bare(annotation) is dspy.Reasoning else text


def _object(completion: str, answer: str) -> Mapping[str, Any] | None:
    """Return the JSON object that a completion is; None where it is another text, which is read as such."""
    try:
        held = json.loads(completion)
    except ValueError:
        return None
    return held if isinstance(held, Mapping) and answer in held else None
