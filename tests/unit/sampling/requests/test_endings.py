"""The words by which providers and engines say how a completion ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from iapo_dspy.sampling.requests.endings import ending_of_call, ending_of_choice, incomplete


@pytest.mark.parametrize("reason", [None, "stop", "tool_calls", "tool_call", "end_turn", "function_call", "completed"])
def test_complete(reason: str | None) -> None:
    assert incomplete(reason) is None


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("length", "cut off"),
        ("MAX_TOKENS", "cut off"),
        ("max_output_tokens", "cut off"),
        ("content_filter", "content filter"),
        ("SAFETY", "content filter"),
        ("refusal", "refused"),
        ("error", "broke off"),
        ("abort", "broke off"),
    ],
)
def test_incomplete(reason: str, words: str) -> None:
    assert words in str(incomplete(reason)) and repr(reason) in str(incomplete(reason))


def test_what_litellm_calls_a_stop_is_what_the_provider_calls_it() -> None:
    import litellm

    message: Any = {"role": "assistant", "content": "10"}
    for native, ending in (
        ("network_error", "network_error"),
        ("error", "error"),
        ("eos", "stop"),
        ("length", "length"),
    ):
        assert ending_of_choice(litellm.Choices(finish_reason=native, message=message)) == ending
    refusing = {"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}
    assert ending_of_choice(refusing) == "refusal"


@pytest.mark.parametrize(
    ("raw", "ending"),
    [
        ({"status": "completed", "output": []}, "completed"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "max_output_tokens"),
        ({"status": "incomplete", "incomplete_details": None}, "incomplete"),
        ({"status": "failed"}, "failed"),
        (
            {"status": "completed", "output": [{"type": "message", "content": [{"type": "refusal"}]}]},
            "refusal",
        ),
        ({"choices": [{"finish_reason": "length", "text": "10"}]}, "length"),
        ({}, None),
    ],
)
def test_answers_of_dspys_own_calls(raw: Any, ending: str | None) -> None:
    assert ending_of_call(SimpleNamespace(responses=(), raw=raw)) == ending
    # An engine that maps what it does not know to "stop" still hands the provider's own answer on.
    response = SimpleNamespace(finish_reason="stop", provider_data=raw, message=SimpleNamespace(parts=()))
    found = ending_of_call(SimpleNamespace(responses=(response,), raw=response))
    assert (incomplete(found) is None) == (incomplete(ending) is None)
