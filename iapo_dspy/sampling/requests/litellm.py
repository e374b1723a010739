"""Asks a language model through LiteLLM."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, cast

import dspy

from iapo_dspy.errors import IAPOError
from iapo_dspy.sampling.concurrency.loop import within
from iapo_dspy.sampling.concurrency.retrying import insist, tell
from iapo_dspy.sampling.lm.params import import_litellm, supports_n, without_retries
from iapo_dspy.sampling.lm.refusals import (
    is_free_to_repeat,
    is_refused,
    is_retryable,
    is_unsent,
    may_refuse_params,
)
from iapo_dspy.sampling.lm.refused_params import refused_params_of
from iapo_dspy.sampling.lm.replicas import ReplicatedLM
from iapo_dspy.sampling.requests.choices import read_response, seed_of
from iapo_dspy.sampling.requests.port import Choice, CompletionRequest, Exchange, Terms
from iapo_dspy.sampling.spending.pricing import billed, price_of, reserve_request
from iapo_dspy.sampling.spending.usage_check import FirstChoiceCheck, reported_tokens, whole_text

logger = logging.getLogger(__name__)

_TIMEOUT = 600.0  # seconds, where neither the LM nor the caller sets one
_GRACE = 5.0  # seconds that LiteLLM gets to notice a timeout itself


class EmptyReplyError(IAPOError):
    """A server answered with no choice at all."""

    status_code = 502


class LiteLLMCompleter:
    """Asks a `dspy.LM` with `model_type="chat"` through `litellm.acompletion`, cache and silent retries off.

    One HTTP request brings n completions where the provider takes n. Missing completions are asked for again. A server
    that twice answered n > 1 with a single choice is asked for one completion at a time from then on. A server that
    refuses n is asked for half as many, until it takes them. One that refuses another parameter is asked without it.

    Args:
        lm: The language model; only read.
        terms: How it is asked. Without a timeout of theirs, the LM's holds, or ten minutes.
    """

    def __init__(self, lm: dspy.BaseLM, terms: Terms) -> None:
        self._lm = lm
        self._terms = terms
        self._gate = terms.gate
        self._retries: int = lm.num_retries
        self._rng = random.Random(terms.seed)
        self._price = price_of(lm, terms.prices)
        self._refused = refused_params_of(lm)
        self._first_choice = FirstChoiceCheck()
        self._probing = asyncio.Lock()
        self._probed = False
        self._ignored_n = 0  # times in a row that a single choice came back for n > 1
        self._most_n = sys.maxsize  # completions that a request may ask for, as far as refusals have shown
        self._taken_n = 1  # the largest n that brought more than one choice

    async def complete(self, request: CompletionRequest) -> list[Choice]:
        """Draw `request.n` completions. See `Completer`."""
        choices: list[Choice] = []
        asked = request.first
        if request.n > 1 and self._must_probe(request.params):
            async with self._probing:  # one request tells all of them how this server counts
                if not self._probed:
                    self._probed = True
                    choices += await self._draw(request, 1, asked)
                    asked += 1
        while (missing := request.n - len(choices)) > 0:
            most = self._most_n if self._takes_n(request.params) else 1
            sizes = [min(most, missing - i) for i in range(0, missing, most)]
            draws = [self._draw(request, size, asked + i) for i, size in enumerate(sizes)]
            results = [await draws[0]] if len(draws) == 1 else await asyncio.gather(*draws, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            choices += itertools.chain.from_iterable(cast(list[list[Choice]], results))
            asked += len(sizes)
        return choices

    def _must_probe(self, params: Mapping[str, Any]) -> bool:
        """Whether a limit needs to know how the server counts several choices. With a seed, draws must not change."""
        bounded = self._terms.meter.bounds_requests and self._lm.kwargs.get("seed") is None
        return bounded and not self._probed and self._takes_n(params)

    def _takes_n(self, params: Mapping[str, Any]) -> bool:
        # Greedy decoding with n > 1 is a bad request on several servers, vLLM among them.
        if self._most_n == 1 or params.get("temperature") == 0:
            return False
        if self._first_choice.one_by_one and self._terms.meter.bounds_requests:
            return False
        return supports_n(self._lm.model, params.get("custom_llm_provider"))

    async def _draw(self, request: CompletionRequest, n: int, index: int) -> list[Choice]:
        """Ask for n at once; return the choices that came, at least one."""
        refusal: Exception | None = None
        got: list[Choice] = []
        try:
            got = await self._terms.meter.in_time(self._attempts(request, n, index))
        except Exception as error:  # a failure is data, unless no other request could escape it
            if await self._terms.refusals.concern_all(error, request.messages):
                raise
            if n <= self._taken_n or not may_refuse_params(error):
                return [Choice(error=error)] * n
            refusal = error
        if refusal is not None:  # outside of the handler: it must not be a cause of the next request's errors
            return await self._try_one(request, n, index, refusal)
        if len(got) > 1:
            self._ignored_n, self._taken_n = 0, max(self._taken_n, n)
        elif n > 1:
            self._ignored_n += 1
            if self._ignored_n >= 2 and self._most_n > 1:
                self._most_n = 1
                logger.info("%s ignores n; completions are asked for one by one.", self._lm.model)
        return got

    async def _try_one(self, request: CompletionRequest, n: int, index: int, refusal: Exception) -> list[Choice]:
        """Find out whether a server refused a request because of its n."""
        try:
            got = await self._terms.meter.in_time(self._attempts(request, 1, index))
        except Exception as error:  # see `_draw`
            if await self._terms.refusals.concern_all(error, request.messages):
                raise
            return [Choice(error=refusal)] * n
        self._most_n = min(self._most_n, max(n // 2, self._taken_n))
        logger.info("%s refuses n=%d; it is asked for at most %d at a time.", self._lm.model, n, self._most_n)
        return got

    async def _attempts(self, request: CompletionRequest, n: int, index: int) -> list[Choice]:
        """Send one HTTP request until it succeeds or there is no point; return 1 to n choices."""
        params, seed = dict(request.params), seed_of(self._lm, request.key, request.messages, index)
        if seed is not None:
            params["seed"] = seed
        trial = self._refused.trial(params, self._lm.model)
        with self._terms.refusals.request():
            while True:
                try:
                    choices = await insist(
                        lambda: self._attempt(request, trial.params, n),
                        gate=self._gate,
                        retries=self._retries,
                        rng=self._rng,
                        again=is_free_to_repeat if request.once else is_retryable,
                    )
                except Exception as error:
                    if not trial.leave_out(error):
                        raise
                else:
                    trial.worked()
                    return choices

    async def _attempt(self, request: CompletionRequest, params: dict[str, Any], n: int) -> list[Choice]:
        async with self._gate() as slot:
            reservation, prompt = await reserve_request(
                self._terms.meter, self._lm, request.messages, request.params, n, self._terms.prices
            )
            start = time.perf_counter()
            try:
                response = await self._send(request, params, n)
            except BaseException as error:
                if is_unsent(error):
                    reservation.release()
                elif isinstance(error, Exception) and is_refused(error):
                    reservation.settle(requests=1)
                else:  # cut off: it may be billed
                    reservation.forfeit(requests=1, prompt_tokens=prompt)
                tell(slot, error)
                raise
            latency = time.perf_counter() - start
            slot.succeeded()
        try:
            reported = reported_tokens(getattr(response, "usage", None))
            reading = read_response(
                self._lm, response, params, request.messages, reported=reported, first_choice=self._first_choice
            )
            texts = [whole_text(output) for output in reading.outputs]
            counted = not (reading.usage.recounted or self._first_choice.doubts(reading.usage, texts))
            usd = billed(response, reading.usage, self._price)
        except BaseException:
            reservation.forfeit(requests=1)
            raise
        usage = replace(reading.usage, usd=usd, latency_s=latency)
        reservation.settle(requests=1, usage=usage, counted=counted)
        if not reading.outputs:
            raise EmptyReplyError(f"{request.model} answered without any choice.")
        if request.record is not None:
            sent = {**params, "n": n} if n > 1 else params
            request.record(
                Exchange(
                    messages=request.messages, params=sent, outputs=reading.outputs, response=response, usage=usage
                )
            )
        # A single completion does not show whether completions share a prompt; that depends on whether n is taken.
        shared = len(reading.outputs) > 1 or (n == 1 and self._takes_n(params))
        return replace(reading, usage=usage).choices(n, shared=shared, price=self._price, seed=params.get("seed"))

    def _send(self, request: CompletionRequest, params: dict[str, Any], n: int) -> Coroutine[Any, Any, Any]:
        sent = {
            k: v for k, v in params.items() if k not in ("input_cost_per_token", "output_cost_per_token", "timeout")
        }
        timeout = self._terms.timeout or params.get("timeout") or _TIMEOUT
        if n > 1:
            sent["n"] = n
        litellm = import_litellm()
        if litellm.cache is not None:  # asking for no cache costs time even where there is none
            sent["cache"] = {"no-cache": True, "no-store": True}
        sent |= without_retries(request.model, params)
        send = self._lm.acompletion if isinstance(self._lm, ReplicatedLM) else litellm.acompletion
        call = send(model=request.model, messages=list(request.messages), num_retries=0, timeout=timeout, **sent)
        limit = timeout + _GRACE if isinstance(timeout, (int, float)) else None
        return within(call, limit)
