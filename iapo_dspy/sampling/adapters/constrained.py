"""Settings of a request by which servers let an LM write nothing but one of several labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Constrain = Literal["response_format", "grammar", "structured_outputs", "guided_choice"]


def constrained(kind: Constrain, choices: Sequence[str], extra_body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `extra_body` by which a server allows these answers and no other.

    Args:
        kind: "grammar" for llama.cpp, "structured_outputs" for vLLM since 0.11, "guided_choice" for vLLM before.
        choices: The answers.
        extra_body: What is sent already; it stays.
    """
    if kind == "grammar":
        rule = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return {**extra_body, "grammar": f"root ::= {rule}"}
    if kind == "guided_choice":
        return {**extra_body, "guided_choice": list(choices)}
    others = extra_body.get("structured_outputs") or {}
    return {**extra_body, "structured_outputs": {**others, "choice": list(choices)}}


def json_schema(answer: str, choices: Sequence[str], before: Sequence[str] = ()) -> dict[str, Any]:
    """Return the `response_format` of a JSON object with one of these answers.

    Args:
        answer: Name of the field.
        choices: The answers.
        before: Names of text fields that come before it, such as the reasoning.
    """
    fields = {**{name: {"type": "string"} for name in before}, answer: {"type": "string", "enum": list(choices)}}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
