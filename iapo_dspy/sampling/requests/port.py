"""The port to language models: a `Completer` turns one request into completions.

Contract. `complete` returns exactly `request.n` choices. Each choice holds its share of the `Usage`, so that the usages
of all choices add up to the whole that was paid. Choices are independent draws; nothing is cached.

Errors. A completion that could not be had is a `Choice` with its `error`, beside those that could; it is never left out
and never raised. `complete` raises only where every other request would fail in the same way, such as with a wrong key
(`sampling.lm.shared_refusals`), and where the budget cannot be held. The completer retries by itself, and counts
failed attempts with its meter.

A completer for tests, which answers everything with the same text:

    >>> import asyncio
    >>> from iapo_dspy.sampling.spending.usage import Usage
    >>> class Parrot:
    ...     async def complete(self, request):
    ...         usage = Usage(prompt_tokens=4, completion_tokens=2 * request.n, shared_tokens=4)
    ...         return [Choice(text="hello", output="hello", usage=usage.share(request.n))] * request.n
    >>> isinstance(Parrot(), Completer)
    True
    >>> request = CompletionRequest(model="parrot", messages=[{"role": "user", "content": "Hello?"}], n=2)
    >>> choices = asyncio.run(Parrot().complete(request))
    >>> [choice.text for choice in choices], sum((choice.usage for choice in choices), Usage()).tokens
    (['hello', 'hello'], 8.0)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from iapo_dspy.sampling.concurrency.gate import Gate
from iapo_dspy.sampling.lm.shared_refusals import SharedRefusals
from iapo_dspy.sampling.requests.endings import incomplete
from iapo_dspy.sampling.requests.logprobs import mean_logprob
from iapo_dspy.sampling.spending.budget import RequestMeter
from iapo_dspy.sampling.spending.pricing import Prices
from iapo_dspy.sampling.spending.usage import Usage


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One successful HTTP request, for DSPy's history and usage tracker.

    Attributes:
        messages: The prompt that was sent.
        params: The settings that were sent.
        outputs: The choices that came back, as DSPy adapters expect them.
        response: LiteLLM's response.
        usage: Tokens, dollars and seconds of the request.
    """

    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any]
    outputs: Sequence[Any]
    response: Any
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """`n` independent completions of one prompt.

    Attributes:
        model: The LM's model string.
        messages: The prompt.
        n: Completions wanted, >= 1.
        params: Everything else that is sent, complete: the LM's settings, the predictor's and the decoding.
        key: Names the pull that is drawn for; requests with different keys get different seeds.
        first: How many identical requests this draw made before.
        record: Called with every successful HTTP request.
        once: Whether an attempt that may be billed is the last one, because the caller limits the tokens of all
            attempts together.
    """

    model: str
    messages: Sequence[dict[str, Any]]
    n: int
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)  # it holds the key
    key: Any = ()
    first: int = 0
    record: Callable[[Exchange], None] | None = None
    once: bool = False


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms on which an LM is asked.

    Attributes:
        gate: Bounds the requests in flight.
        meter: Reserves and counts tokens and dollars.
        timeout: Seconds per attempt; None leaves it to the LM.
        seed: Seed of the jitter between attempts.
        prices: The user's own prices.
        refusals: Tells whether a refusal concerns all requests of the deployment.
    """

    gate: Gate
    meter: RequestMeter
    timeout: float | None = None
    seed: int = 0
    prices: Prices | None = None
    refusals: SharedRefusals = field(default_factory=SharedRefusals)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One completion, or the reason why it could not be had.

    Attributes:
        text: The completion as text, None if there is none.
        output: The completion as DSPy adapters expect it: the text, or a dictionary with `text` and its companions
            (`reasoning_content`, `tool_calls`, `logprobs`, `citations`).
        finish_reason: As the provider says, or "refusal".
        usage: Its share of the request's usage. The shared parts are set where one request brings n completions.
        seed: The seed that was sent.
        error: Why there is no completion.
    """

    text: str | None = None
    output: Any = None
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    seed: int | None = None
    error: Exception | None = None

    @property
    def problem(self) -> Exception | None:
        """Why it cannot be used: there is no completion, or an incomplete one; None where it can be used."""
        return self.error or incomplete(self.finish_reason)

    @property
    def logprob(self) -> float | None:
        """Mean logprob of its tokens, <= 0, in nats; None where the LM was not asked for logprobs or gave none."""
        return mean_logprob(self.output.get("logprobs")) if isinstance(self.output, Mapping) else None


@runtime_checkable
class Completer(Protocol):
    """A source of completions; the module's docstring has the contract."""

    async def complete(self, request: CompletionRequest) -> Sequence[Choice]:
        """Return as many choices as were asked for.

        Raises:
            Exception: Every other request would fail in the same way (`SharedRefusals`).
            ConfigurationError: The budget cannot be held.
        """
