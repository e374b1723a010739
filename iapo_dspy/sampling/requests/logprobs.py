"""Reads the logprobs of a completion, in the forms in which providers give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from iapo_dspy.preferences import is_number


def mean_logprob(logprobs: Any) -> float | None:
    """Return the mean logprob of the tokens of a completion, <= 0, in nats.

    Args:
        logprobs: The `logprobs` of a choice: `content`, a list of tokens with a `logprob` each, as chat completions
            have them; or `token_logprobs`, a list of numbers, as text completions have them.

    Returns:
        None where there is no number in it.
    """
    tokens = _part(logprobs, "content")
    if isinstance(tokens, Iterable):
        found = [_part(token, "logprob") for token in tokens]
    else:
        listed = _part(logprobs, "token_logprobs")
        found = list(listed) if isinstance(listed, Iterable) else []
    known = [float(v) for v in found if is_number(v)]
    return min(sum(known) / len(known), 0.0) if known else None


def _part(whole: Any, name: str) -> Any:
    return whole.get(name) if isinstance(whole, dict) else getattr(whole, name, None)
