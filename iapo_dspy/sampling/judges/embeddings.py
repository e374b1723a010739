"""Embeddings through LiteLLM: metered while a run scores, remembered by text, asked for once by many threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import BudgetExceeded, ConfigurationError, IAPOError
from iapo_dspy.sampling.concurrency.gate import Gate
from iapo_dspy.sampling.concurrency.loop import run_on_loop, within
from iapo_dspy.sampling.judges.judge_usage import JudgeUsage
from iapo_dspy.sampling.lm.params import import_litellm
from iapo_dspy.sampling.lm.proxy import METERING
from iapo_dspy.sampling.lm.refusals import backoff, is_refused, is_retryable, retry_after
from iapo_dspy.sampling.spending.budget import Budget, Meter, RequestMeter
from iapo_dspy.sampling.spending.pricing import Price, Prices, price_of_model
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.types import FloatArray

__all__ = ["Embedder", "EmbeddingRequest", "Embeddings", "request_embeddings"]

_TIMEOUT = 60.0  # seconds per attempt, where the user sets none
_RETRIES = 3
_LONGEST_WAIT = 60.0  # seconds; who is told to wait longer is out of quota
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
        texts: What to embed.
        settings: What `litellm.embedding` takes beside; `num_retries` and `timeout` (seconds) are this package's own.
    """

    model: str
    texts: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # it holds the key

    billed = True

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
                "Give similarity(..., input_cost_per_token=2e-8), IAPO(cost=Cost(usd_per_million={...})), or no usd."
            )

    @property
    def bound(self) -> int:
        """More tokens than the texts can have: no tokenizer makes more tokens than there are bytes."""
        return sum(len(text.encode()) + 8 for text in self.texts)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """What an embedding request brought.

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
    if meter.limits is not None:
        request.check_budget(meter.limits, prices)
    retries, rng, attempt = int(request.settings.get("num_retries", _RETRIES)), random.Random(0), 0
    while True:
        try:
            async with contextlib.nullcontext() if gate is None else gate():
                return await _attempt(request, meter, prices)
        except BudgetExceeded:
            raise
        except Exception as error:
            asked = retry_after(error)
            if attempt >= retries or not is_retryable(error) or (asked or 0.0) > _LONGEST_WAIT:
                raise
        await asyncio.sleep(backoff(attempt, asked, rng))
        attempt += 1


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
    reported = getattr(getattr(response, "usage", None), "prompt_tokens", None)
    tokens = reported if isinstance(reported, int) and reported > 0 else _count(request)
    usd = price.of(tokens, 0) if price is not None else None
    usage = Usage(prompt_tokens=tokens, usd=usd)
    reservation.settle(requests=1, usage=usage)
    return Embeddings(vectors=vectors, usage=usage)


def _vectors(response: Any, n: int) -> FloatArray:
    rows = [row if isinstance(row, Mapping) else row.model_dump() for row in response.data or ()]
    if len(rows) != n:
        raise BrokenEmbeddingsError(f"{len(rows)} embeddings came back for {n} texts.")
    if all(isinstance(row.get("index"), int) for row in rows):
        rows = sorted(rows, key=lambda row: row["index"])
    vectors = np.array([row["embedding"] for row in rows], dtype=float)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise BrokenEmbeddingsError("The embeddings that came back are no finite numbers.")
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
        self._settings = dict(settings)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, concurrent.futures.Future[FloatArray]] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return one vector [d] for each text; texts that are new are embedded by one request.

        Raises:
            Exception: What kept a text from being embedded; it is not remembered.
        """
        wanted: dict[str, concurrent.futures.Future[FloatArray]] = {}
        mine: list[str] = []
        with self._lock:
            for text in dict.fromkeys(texts):
                if text not in self._known:
                    self._known[text] = concurrent.futures.Future()
                    mine.append(text)
                self._known.move_to_end(text)
                wanted[text] = self._known[text]
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if mine:  # before waiting for anybody else, who may wait for these
            self._embed(mine, wanted)
        return [self._result(wanted[text]) for text in texts]

    def _embed(self, texts: Sequence[str], futures: Mapping[str, concurrent.futures.Future[FloatArray]]) -> None:
        try:
            vectors = self._ask(EmbeddingRequest(model=self.model, texts=tuple(texts), settings=self._settings))
        except BaseException as error:
            with self._lock:
                for text in texts:
                    self._known.pop(text, None)
            for text in texts:
                futures[text].set_exception(error)
            raise
        for text, vector in zip(texts, vectors, strict=True):
            futures[text].set_result(vector)

    def _ask(self, request: EmbeddingRequest) -> FloatArray:
        scope = dspy.settings.get(METERING)
        if scope is not None:
            found: Embeddings = run_on_loop(scope.embed(request))
            return found.vectors
        reply = run_on_loop(request_embeddings(request, meter=Meter()))
        tracker = dspy.settings.usage_tracker
        if isinstance(tracker, JudgeUsage):
            tracker.know(request.model, request.price(tracker.prices))
        if tracker is not None:
            read = int(reply.usage.prompt_tokens)
            usage = {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
            tracker.add_usage(request.model, usage)
        return reply.vectors

    @staticmethod
    def _result(future: concurrent.futures.Future[FloatArray]) -> FloatArray:
        try:
            return future.result()
        except Exception as error:
            scope = dspy.settings.get(METERING)
            if scope is not None:
                scope.note(error)  # asked for by another completion: this one's case must know of it too
            raise
