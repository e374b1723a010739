"""Requests to the demo model and its completions."""

from __future__ import annotations

from dataclasses import dataclass


class InvalidRequestError(ValueError):
    """A request that no model could serve, e.g. n below 1."""


class ContextLengthError(InvalidRequestError):
    """The prompt leaves no room for a completion in the context of the model."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to sample from it.

    Attributes:
        prompt: Token ids, at least one and fewer than the context's length.
        n: Number of completions, 1..1024; they share the work on the prompt.
        temperature: 0 always takes the most likely token; above 0 the logits are divided by it. At most 10.
        top_p: Samples from the smallest set of tokens with at least this probability, in (0, 1].
        top_k: Samples from the k most likely tokens; 0 for all.
        max_tokens: The longest completion in tokens, at least 1; longer than the context's rest means the rest.
        stop: Texts that end a completion and are left out of it.
        seed: Completion i of equal requests with equal seeds is equal, whatever else is in the batch.

    Raises:
        InvalidRequestError: A value is out of its range; the message names it.
    """

    prompt: tuple[int, ...]
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int

    def __post_init__(self) -> None:
        checks = (
            ("prompt", len(self.prompt) >= 1, "at least one token"),
            ("n", 1 <= self.n <= 1024, "between 1 and 1024"),
            ("temperature", 0.0 <= self.temperature <= 10.0, "between 0 and 10"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("stop", all(self.stop), "made of texts that are not empty"),
        )
        for name, holds, need in checks:
            if not holds:
                raise InvalidRequestError(f"{name} must be {need}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class SampledText:
    """One completion.

    Attributes:
        text: The decoded text, without the end token and without a stop text.
        tokens: The ids that were generated, the end token included.
        finish_reason: ``"stop"`` or ``"length"``.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The completions of one request.

    Attributes:
        choices: One `SampledText` for each of the n completions, in order.
        prompt_tokens: The length of the prompt, counted once.
    """

    choices: tuple[SampledText, ...]
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        """All generated tokens, end tokens included."""
        return sum(len(choice.tokens) for choice in self.choices)
