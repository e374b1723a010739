"""The port to language models: a request, its reply, and the completer that turns one into the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from iapo_dspy.sampling.spending.pricing import Usage

__all__ = ["Choice", "Completer", "CompletionRequest", "Exchange", "Reply"]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One successful request, for DSPy's history and usage tracker.

    Attributes:
        messages: What was sent.
        params: What it was sent with.
        outputs: What came back, as DSPy adapters expect it.
        response: LiteLLM's response.
        usage: Tokens.
        usd: Dollars, None where the price is unknown.
    """

    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any]
    outputs: Sequence[Any]
    response: Any
    usage: Usage
    usd: float | None


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """`n` independent completions of one prompt.

    Attributes:
        model: The LM's model string.
        messages: The prompt.
        n: Completions wanted, >= 1.
        params: Everything else that is sent, complete: the LM's settings, the predictor's and the decoding.
        key: What is drawn for; requests with different keys get different seeds.
        first: How many identical requests this draw made before.
        record: Told of every successful request.
    """

    model: str
    messages: Sequence[dict[str, Any]]
    n: int
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)  # it holds the key
    key: Any = ()
    first: int = 0
    record: Callable[[Exchange], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One completion, or why it could not be had.

    Attributes:
        text: The completion as text, None if there is none.
        output: What DSPy adapters expect: the text, or a dictionary with `text` and what came with it
            (`reasoning_content`, `tool_calls`, `logprobs`, `citations`).
        finish_reason: As the provider says.
        prompt_tokens: Its share of the request's prompt tokens.
        completion_tokens: Its share of the request's completion tokens.
        usd: Its share of the dollars; None where the price is unknown.
        shared_tokens: `prompt_tokens` where one request brings n completions, else 0; `shared_usd` is their price.
        latency_s: Seconds of the request that brought it, without waiting for a slot.
        seed: The seed that was sent.
        error: Why there is no completion.
    """

    text: str | None = None
    output: Any = None
    finish_reason: str | None = None
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    usd: float | None = None
    shared_tokens: float = 0.0
    shared_usd: float = 0.0
    latency_s: float = 0.0
    seed: int | None = None
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a request brought.

    Attributes:
        choices: As many as were asked for; those that could not be had carry their error.
        prompt_tokens: Over all HTTP requests it took.
        completion_tokens: Over all HTTP requests it took.
        usd: Over all HTTP requests it took; None where the price is unknown.
        latency_s: From the first dispatch to the last answer.
        requests: HTTP attempts, failed ones included.
        recounted: Whether some usage could not be right and was counted anew.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    latency_s: float = 0.0
    requests: int = 0
    recounted: bool = False


@runtime_checkable
class Completer(Protocol):
    """Where completions come from."""

    async def complete(self, request: CompletionRequest) -> Reply:
        """Return as many choices as were asked for.

        Raises:
            Exception: Only what no other request could escape, such as a wrong key (`retry.is_fatal`).
        """
