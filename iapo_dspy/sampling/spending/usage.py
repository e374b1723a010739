"""The usage of completions: tokens, dollars and time."""

from __future__ import annotations

from dataclasses import dataclass, replace

_ADDED = ("prompt_tokens", "completion_tokens", "shared_tokens", "shared_completion_tokens", "shared_usd")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens, dollars and seconds of a completion, a request, or several of them.

    Usages add up: tokens and dollars are summed. The latency of a sum is the longest one, because completions of one
    pull are drawn at the same time. `Usage()` took nothing.

        >>> request = Usage(prompt_tokens=30, completion_tokens=80, usd=0.002, shared_tokens=30, latency_s=1.5)
        >>> each = request.share(4)
        >>> each.prompt_tokens, each.completion_tokens, each.latency_s
        (7.5, 20.0, 1.5)
        >>> sum([each] * 4, Usage()).tokens
        110.0
        >>> (request + Usage(prompt_tokens=5)).usd is None  # the second one has a price that is not known
        True

    Attributes:
        prompt_tokens: Tokens read, >= 0.
        completion_tokens: Tokens written, >= 0.
        usd: Dollars, >= 0; None where the price is not known or nothing was taken.
        shared_tokens: The part of `prompt_tokens` that a query pays once, however many completions it draws.
        shared_completion_tokens: The part of `completion_tokens` that a query pays once: the steps around an inner
            module.
        shared_usd: The part of `usd` that a query pays once.
        latency_s: Seconds from dispatch to answer, without waiting for a slot.
        recounted: Whether the tokens were counted here, because the provider's numbers cannot be right. They are an
            estimate then, not a bill.
    """

    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    usd: float | None = None
    shared_tokens: float = 0.0
    shared_completion_tokens: float = 0.0
    shared_usd: float = 0.0
    latency_s: float = 0.0
    recounted: bool = False

    @property
    def tokens(self) -> float:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def unpriced(self) -> bool:
        """Whether tokens were taken at a price that is not known."""
        return self.usd is None and self.tokens > 0

    def __add__(self, other: Usage) -> Usage:
        """Return both together; the dollars are unknown where either took tokens at an unknown price."""
        usd = None
        if not (self.unpriced or other.unpriced or (self.usd is None and other.usd is None)):
            usd = (self.usd or 0.0) + (other.usd or 0.0)
        return Usage(
            usd=usd,
            latency_s=max(self.latency_s, other.latency_s),
            recounted=self.recounted or other.recounted,
            **{name: getattr(self, name) + getattr(other, name) for name in _ADDED},
        )

    def at_least(self, tokens: float, usd: float) -> Usage:
        """Return a usage of at least so many tokens and dollars; the tokens that are missing are written ones."""
        written = max(self.completion_tokens, tokens - self.prompt_tokens)
        return replace(self, completion_tokens=written, usd=max(self.usd or 0.0, usd))

    def share(self, n: int) -> Usage:
        """Return the usage of each of n >= 1 completions: an n-th of everything but the latency."""
        parts = {name: getattr(self, name) / n for name in _ADDED}
        return replace(self, usd=None if self.usd is None else self.usd / n, **parts)
