"""Tells completions that came to their end from those that were cut off, stopped or refused."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from iapo_dspy.errors import IncompleteCompletion

_WORDS = {
    "length": "cut off at max_tokens, or where the model's context ends",
    "content_filter": "stopped by a content filter",
    "refusal": "the model refused to answer",
    "error": "the provider broke off before the end",
}
# The words of providers and engines for the same; every other word means that the completion is complete.
_ENDINGS = {
    **{word: word for word in _WORDS},
    **dict.fromkeys(("max_tokens", "max_output_tokens", "model_length", "incomplete"), "length"),
    **dict.fromkeys(("model_context_window_exceeded", "pause_turn", "compaction"), "length"),
    **dict.fromkeys(("content_filtered", "safety", "sensitive", "guardrail_intervened"), "content_filter"),
    **dict.fromkeys(("abort", "cancelled", "failed", "network_error", "malformed_response"), "error"),
}


def incomplete(reason: str | None) -> IncompleteCompletion | None:
    """Return the error of a completion that ended for this reason; None where it is complete.

    Args:
        reason: As the provider says, or as `ending_of_choice` and `ending_of_call` say.
    """
    ending = _ENDINGS.get((reason or "").lower())
    return None if ending is None else IncompleteCompletion(f"{_WORDS[ending]} (finish_reason {reason!r})")


def ending_of_choice(choice: Any) -> str | None:
    """Return why a choice of a chat or text completion ended; "refusal" where the model says that it refuses."""
    message = _get(choice, "message")
    extra = _get(message, "provider_specific_fields") or {}
    if message is not None and (_get(message, "refusal") or _get(extra, "refusal")):
        return "refusal"
    reason: str | None = _get(choice, "finish_reason")
    # LiteLLM calls some endings "stop" that providers call otherwise, such as an error in the middle of a stream.
    native = _get(_get(choice, "provider_specific_fields") or {}, "native_finish_reason")
    return native if incomplete(reason) is None and incomplete(native) is not None else reason


def ending_of_call(result: Any) -> str | None:
    """Return why the answer of DSPy's own LM call ended (`CallResult`); None where nothing is known."""
    for response in result.responses or (result.raw,):
        reasons = [_get(response, "finish_reason"), *_raw_endings(response)]
        reasons += _raw_endings(_get(response, "provider_data"))
        parts = _get(_get(response, "message"), "parts") or ()
        reasons += ["refusal" for part in parts if _get(part, "type") == "refusal"]
        found = [r for r in reasons if isinstance(r, str)]
        if found:
            return next((r for r in found if incomplete(r) is not None), found[0])
    return None


def _raw_endings(raw: Any) -> list[str | None]:
    """Return what a provider's own answer says: of a chat or text completion, or of the Responses API."""
    if raw is None:
        return []
    details = _get(raw, "incomplete_details") or {}
    endings = [_get(details, "reason"), _get(raw, "status")]
    endings += [ending_of_choice(choice) for choice in (_get(raw, "choices") or ())[:1]]
    for item in _get(raw, "output") or ():
        parts = _get(item, "content") or () if _get(item, "type") == "message" else ()
        endings += ["refusal" for part in parts if _get(part, "type") == "refusal"]
    return endings


def _get(of: Any, name: str) -> Any:
    """Read a field of an answer, which is an object or a dictionary."""
    return of.get(name) if isinstance(of, Mapping) else getattr(of, name, None)


_calls: ContextVar[list[Any] | None] = ContextVar("iapo_dspy_calls", default=None)


@contextlib.contextmanager
def watched_calls() -> Iterator[list[Any]]:
    """Collect the `CallResult` of every LM call made within; its outputs alone do not say how they ended."""
    _announce_calls()
    calls: list[Any] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


@functools.cache
def _announce_calls() -> None:
    """Have DSPy hand over the result of an LM call: beside the history, which is shared, it has no hook for that."""
    module = importlib.import_module("dspy.clients.execution")
    finalize = getattr(module, "finalize", None)
    if finalize is None:  # another version of DSPy: how completions of such LMs ended is not known there
        return

    @functools.wraps(finalize)
    def announced(lm: Any, call: Any, result: Any) -> Any:
        if (calls := _calls.get()) is not None:
            calls.append(result)
        return finalize(lm, call, result)

    module.finalize = announced  # type: ignore[attr-defined]
