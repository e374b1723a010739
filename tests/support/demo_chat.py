"""The messages that DSPy sends to the demo's model."""

from __future__ import annotations

from typing import Any

import dspy


def render_chat(
    *, instruction: str, field: str, value: str, reasoning: bool, integer: bool = False
) -> list[dict[str, Any]]:
    """Return the messages of `<field> -> answer`: the system message and the question, without demonstrations."""
    signature = dspy.Signature(f"{field} -> answer" + (": int" if integer else "")).with_instructions(instruction)
    if reasoning:
        signature = dspy.ChainOfThought(signature).predict.signature
    messages: list[dict[str, Any]] = dspy.ChatAdapter().format(signature, [], {field: value})
    return messages
