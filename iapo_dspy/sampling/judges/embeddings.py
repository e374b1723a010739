"""Embeddings through LiteLLM: metered while a run scores, remembered by text, asked for once by many threads."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError, IAPOError
from iapo_dspy.sampling.concurrency.gate import Gate
from iapo_dspy.sampling.concurrency.loop import run_on_loop, within
from iapo_dspy.sampling.concurrency.once import Once
from iapo_dspy.sampling.concurrency.retrying import insist, tell
from iapo_dspy.sampling.judges.judge_usage import JudgeUsage
from iapo_dspy.sampling.lm.params import import_litellm
from iapo_dspy.sampling.lm.proxy import METERING, noted
from iapo_dspy.sampling.lm.refusals import is_refused
from iapo_dspy.sampling.spending.budget import Budget, Meter, RequestMeter
from iapo_dspy.sampling.spending.pricing import Price, Prices, price_of_model
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.types import FloatArray

_TIMEOUT = 60.0  # seconds per attempt, where the user sets none
_RETRIES = 3
_REMEMBERED = 4096  # texts
_OWN = frozenset({"timeout", "num_retries", "max_retries", "input_cost_per_token", "output_cost_per_token"})


class BrokenEmbeddingsError(IAPOError):
    """A server answered with other embeddings than were asked for."""

    status_code = 502


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest:
    """Some texts to embed.

    Attributes:
        model: LiteLLM's model string.
        texts: Texts to embed.
        settings: Other arguments of `litellm.embedding`; `num_retries` and `timeout` (seconds) are this package's own.
    """

    model: str
    texts: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # it holds the key

    def price(self, prices: Prices | None) -> Price | None:
        """Return the user's price, that of the settings, or LiteLLM's; None where nobody knows it."""
        return price_of_model(self.model, self.settings, prices)

    def check_budget(self, budget: Budget, prices: Prices | None) -> None:
        """Refuse a budget that cannot be held.

        Raises:
            ConfigurationError: It limits dollars, and nobody knows the price.
        """
        if budget.usd is not None and self.price(prices) is None:
            raise ConfigurationError(
                f"A budget of dollars needs a price, and LiteLLM knows none for the embedding model {self.model!r}. "
                "Give similarity(..., input_cost_per_token=2e-8), Search(cost_unit=Cost(usd_per_million={...})), or "
                "no usd."
            )

    @property
    def bound(self) -> int:
        """More tokens than the texts can have: no tokenizer makes more tokens than there are bytes."""
        return sum(len(text.encode(errors="surrogatepass")) + 8 for text in self.texts)

    @property
    def deployment(self) -> Hashable:
        """Model, address and key, by which providers limit requests; never show it."""
        return ("embeddings", self.model, *(str(self.settings.get(name)) for name in ("api_base", "api_key")))


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The result of an embedding request.

    Attributes:
        vectors: One for each text [n, d].
        usage: What the request took.
    """

    vectors: FloatArray
    usage: Usage


async def request_embeddings(
    request: EmbeddingRequest, *, meter: RequestMeter, gate: Gate | None = None, prices: Prices | None = None
) -> Embeddings:
    """Embed texts, with retries; every attempt is reserved and settled.

    Raises:
        BudgetExceeded: They do not fit into the budget.
        ConfigurationError: The budget cannot be held; see `EmbeddingRequest.check_budget`.
        Exception: The last attempt failed.
    """
    if meter.budget is not None:
        request.check_budget(meter.budget, prices)

    gate = gate or Gate(1, name=request.model)

    async def attempt() -> Embeddings:
        async with gate() as slot:
            try:
                embeddings = await _attempt(request, meter, prices)
            except BaseException as error:
                tell(slot, error)
                raise
            slot.succeeded()
            return embeddings

    retries = int(request.settings.get("num_retries", _RETRIES))
    return await meter.in_time(insist(attempt, gate=gate, retries=retries, rng=random.Random(0)))


async def _attempt(request: EmbeddingRequest, meter: RequestMeter, prices: Prices | None) -> Embeddings:
    price, bound = request.price(prices), request.bound if meter.bounds_requests else 0
    reservation = await meter.areserve(tokens=bound, usd=price.bound(bound, 0) if price is not None else 0.0)
    timeout = request.settings.get("timeout", _TIMEOUT)
    sent = {k: v for k, v in request.settings.items() if k not in _OWN}
    try:
        call = import_litellm().aembedding(
            model=request.model, input=list(request.texts), timeout=timeout, num_retries=0, max_retries=0, **sent
        )
        response = await within(call, timeout)
        vectors = _vectors(response, len(request.texts))
    except BaseException as error:
        if isinstance(error, Exception) and is_refused(error):
            reservation.settle(requests=1)
        else:
            reservation.forfeit(requests=1, prompt_tokens=bound)
        raise
    told = getattr(getattr(response, "usage", None), "prompt_tokens", None)
    reported = told if isinstance(told, int) and told > 0 else None
    tokens = _count(request) if reported is None else reported
    usd = price.of(tokens, 0) if price is not None else None
    usage = Usage(prompt_tokens=tokens, usd=usd)
    reservation.settle(requests=1, usage=usage, counted=reported is not None)
    return Embeddings(vectors=vectors, usage=usage)


def _vectors(response: Any, n: int) -> FloatArray:
    rows = [row if isinstance(row, Mapping) else row.model_dump() for row in response.data or ()]
    if len(rows) != n:
        raise BrokenEmbeddingsError(f"{len(rows)} embeddings came back for {n} texts.")
    if all(isinstance(row.get("index"), int) for row in rows):
        rows = sorted(rows, key=lambda row: row["index"])
    vectors = np.array([row["embedding"] for row in rows], dtype=float)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise BrokenEmbeddingsError("The embeddings that came back are not finite numbers.")
    return vectors


def _count(request: EmbeddingRequest) -> int:
    counter = import_litellm().token_counter
    return sum(int(counter(model=request.model, text=text)) for text in request.texts)


class Embedder:
    """Embeds texts and remembers those used last. Thread-safe.

    While a run scores, its requests count in the run's budget, as a judge's do; a deployed call's are reported to
    DSPy's usage tracker.

    Args:
        model: LiteLLM's model string.
        settings: See `EmbeddingRequest`.
    """

    def __init__(self, model: str, settings: Mapping[str, Any]) -> None:
        self.model = model
        self.settings = dict(settings)
        self._known: Once[str, FloatArray] = Once(_REMEMBERED)

    def __call__(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return one vector [d] for each text; texts that are new are embedded by one request.

        Raises:
            Exception: The request of a text failed. A failure is not remembered.
        """
        with noted():  # asked for by another completion, perhaps: this one's case must know of its errors too
            return [vector.result() for vector in self._known.all(texts, self._embed)]

    def _embed(self, texts: list[str]) -> list[FloatArray]:
        request = EmbeddingRequest(model=self.model, texts=tuple(texts), settings=self.settings)
        scope = dspy.settings.get(METERING)
        if scope is not None:
            found: Embeddings = run_on_loop(scope.metering.embed(request))
            return list(found.vectors)
        reply = run_on_loop(request_embeddings(request, meter=Meter()))
        tracker = dspy.settings.usage_tracker
        if isinstance(tracker, JudgeUsage):
            tracker.know(request.model, request.price(tracker.prices))
        if tracker is not None:
            read = int(reply.usage.prompt_tokens)
            usage = {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
            tracker.add_usage(request.model, usage)
        return list(reply.vectors)
