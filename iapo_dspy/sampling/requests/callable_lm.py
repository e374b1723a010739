"""Asks every `dspy.BaseLM` that LiteLLM does not reach: custom engines, subclasses, `DummyLM`, other APIs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
from dspy.utils.usage_tracker import UsageTracker

from iapo_dspy.sampling.concurrency.contained import contained_wait
from iapo_dspy.sampling.concurrency.retrying import insist, tell
from iapo_dspy.sampling.concurrency.threads import in_thread
from iapo_dspy.sampling.lm.params import NOT_SENT
from iapo_dspy.sampling.lm.proxy import METERING
from iapo_dspy.sampling.lm.refusals import is_free_to_repeat, is_refused, is_retryable
from iapo_dspy.sampling.lm.refused_params import refused_params_of
from iapo_dspy.sampling.lm.replicas import ReplicatedLM
from iapo_dspy.sampling.requests.choices import Reading, seed_of
from iapo_dspy.sampling.requests.endings import ending_of_call, watched_calls
from iapo_dspy.sampling.requests.litellm import EmptyReplyError, LiteLLMCompleter
from iapo_dspy.sampling.requests.port import Choice, Completer, CompletionRequest, Terms
from iapo_dspy.sampling.spending.pricing import price_of, reserve_request
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.sampling.spending.usage_check import check_usage, whole_text


class CallableCompleter:
    """Calls the LM itself n times, concurrently, with DSPy's cache off.

    The LM itself retries and reports its usage; a run asks it again where its provider is down. Where it reports none,
    tokens count as 0 (`Usage.recounted`) unless a budget limits them: then the request costs its upper bound.

    Args:
        lm: The language model. It is never changed; its history is only written when a request is recorded.
        terms: How it is asked.
    """

    def __init__(self, lm: dspy.BaseLM, terms: Terms) -> None:
        self._lm = lm
        self._terms = terms
        self._price = price_of(lm, terms.prices)
        self._refused = refused_params_of(lm)
        self._is_async = _has_async_form(lm)
        self._rng = random.Random(terms.seed)

    async def complete(self, request: CompletionRequest) -> list[Choice]:
        """Draw `request.n` completions. See `Completer`."""
        calls = (self._draw(request, request.first + i) for i in range(request.n))
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [r for r in results if isinstance(r, Choice)]

    async def _draw(self, request: CompletionRequest, index: int) -> Choice:
        try:
            with self._terms.refusals.request():
                return await self._terms.meter.in_time(self._attempts(request, index))
        except Exception as error:  # a failure is data, unless no other request could escape it
            if await self._terms.refusals.concern_all(error, request.messages):
                raise
            return Choice(error=error)

    async def _attempts(self, request: CompletionRequest, index: int) -> Choice:
        """Call the LM; where tokens are limited, its retries are made here, so that each of them is counted."""
        lm, retries = self._lm, 0
        if isinstance(lm, dspy.LM) and (request.once or self._terms.meter.bounds_requests):
            lm, retries = lm.copy(num_retries=0), lm.num_retries
            lm.history = self._lm.history
        return await insist(
            lambda: self._call(lm, request, index),
            gate=self._terms.gate,
            retries=retries,
            rng=self._rng,
            again=is_free_to_repeat if request.once else is_retryable,
        )

    async def _call(self, lm: dspy.BaseLM, request: CompletionRequest, index: int) -> Choice:
        seed = seed_of(self._lm, request.key, request.messages, index)
        params = {**request.params, **({} if seed is None else {"seed": seed})}
        trial = self._refused.trial(params, self._lm.model)
        while True:
            try:
                choice = await self._attempt(lm, request, index, trial.params)
            except Exception as error:
                if not trial.leave_out(error):
                    raise
            else:
                trial.worked()
                return choice

    def _given(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a call: those in which it differs from the LM's own."""
        own = self._lm.kwargs
        # Settings that the LM already has need not be repeated: a custom engine refuses some of them in a call.
        known = {
            "input_cost_per_token",
            "output_cost_per_token",
            *(k for k in params if k in own and own[k] == params[k]),
        }
        given = {k: v for k, v in params.items() if k not in known}
        if isinstance(self._lm, dspy.LM):  # which takes None for "not at all"
            given |= {k: None for k, v in own.items() if v is not None and k not in params and k not in NOT_SENT}
        return given

    async def _attempt(
        self, lm: dspy.BaseLM, request: CompletionRequest, index: int, params: Mapping[str, Any]
    ) -> Choice:
        seed, given = params.get("seed"), self._given(params)
        async with self._terms.gate() as slot:
            reservation, prompt = await reserve_request(
                self._terms.meter, self._lm, request.messages, request.params, 1, self._terms.prices
            )
            start = time.perf_counter()
            try:
                with _usage(recorded=request.record is not None) as tracker, watched_calls() as calls:
                    outputs = await asyncio.wait_for(
                        self._outputs(lm, request.messages, given, index), self._terms.timeout
                    )
            except BaseException as error:
                if isinstance(error, Exception) and is_refused(error):
                    reservation.settle(requests=1)
                else:  # cut off: it may be billed
                    reservation.forfeit(requests=1, prompt_tokens=prompt)
                tell(slot, error)
                raise
            latency = time.perf_counter() - start
            slot.succeeded()
        usage = _total(tracker)
        if usage.recounted and self._terms.meter.bounds_requests:
            # An LM that reports no tokens must not escape a budget of tokens.
            usage = check_usage(
                model=request.model,
                messages=request.messages,
                texts=[whole_text(o) for o in outputs],
                truncated=0,
                limit=None,
                reported=(usage.prompt_tokens or None, usage.completion_tokens or None),
            )
        usd = self._price.of(usage.prompt_tokens, usage.completion_tokens) if self._price else None
        usage = replace(usage, usd=usd, latency_s=latency)
        reservation.settle(requests=1, usage=usage, counted=not usage.recounted)
        if not outputs:
            raise EmptyReplyError(f"{request.model} answered without any choice.")
        ending = ending_of_call(calls[-1]) if calls else None
        reading = Reading(outputs=outputs[:1], reasons=(ending,), usage=usage)
        return reading.choices(1, shared=False, price=self._price, seed=seed)[0]

    async def _outputs(
        self, lm: dspy.BaseLM, messages: Sequence[dict[str, Any]], params: Mapping[str, Any], index: int
    ) -> Sequence[Any]:
        # DSPy takes `cache` out of a call; `rollout_id` reaches only engines, which know it.
        settings = {**params, "cache": False}
        if isinstance(lm, dspy.LM) and params.get("temperature", lm.kwargs.get("temperature")) != 0:
            settings["rollout_id"] = index
        messages = list(messages)
        if self._is_async:
            with as_adapter(lm, messages):
                result: Sequence[Any] = await contained_wait(lm.acall(messages=messages, **settings))
            return result

        def call() -> Sequence[Any]:
            with as_adapter(lm, messages):
                result: Sequence[Any] = lm(messages=messages, **settings)
            return result

        return await in_thread(call)


def completer_for(lm: dspy.BaseLM, terms: Terms) -> Completer:
    """Return the completer that fits an LM: LiteLLM directly wherever it can reach the model, else the LM itself."""
    if dspy.settings.get(METERING) is None:
        lm = getattr(lm, "metered_lm", lm)  # a judge's wrapper, used as an ordinary LM
    reached = isinstance(lm, ReplicatedLM) or _litellm_reaches(lm)
    return LiteLLMCompleter(lm, terms) if reached else CallableCompleter(lm, terms)


def _litellm_reaches(lm: dspy.BaseLM) -> bool:
    if not isinstance(lm, dspy.LM) or lm.model_type != "chat" or not isinstance(lm.engine, str):
        return False
    if lm.kwargs.get("prompt_cache") is not None:
        return False
    # A method that a user overrides must be called.
    for name in ("forward", "aforward", "__call__", "acall"):
        if name in vars(lm) or getattr(type(lm), name) is not getattr(dspy.LM, name):
            return False
    # LiteLLM does not know a provider that was declared to DSPy alone, even where the names are the same.
    prefix = lm.model.split("/", 1)[0]
    return all(prefix not in _provider_names(p) for p in getattr(lm, "_providers", ()))


def _provider_names(binding: Any) -> set[str]:
    definition = getattr(binding, "definition", binding)
    return {str(getattr(definition, "id", "")), *map(str, getattr(definition, "aliases", ()) or ())}


def _has_async_form(lm: dspy.BaseLM) -> bool:
    if type(lm).acall is not dspy.BaseLM.acall:
        return True
    if isinstance(lm, dspy.LM):
        overridden = type(lm).aforward is not dspy.LM.aforward
        native = isinstance(lm.engine, str) or getattr(lm, "_async_engine_spec", None) is not None
        return overridden or (type(lm).forward is dspy.LM.forward and native)
    return type(lm).aforward is not dspy.BaseLM.aforward and not hasattr(lm, "_engine_spec")


@contextlib.contextmanager
def _usage(*, recorded: bool) -> Iterator[UsageTracker]:
    """Collect the usage of one call; pass it on, with history, only when the call is recorded."""
    tracker = UsageTracker()
    outer = dspy.settings.usage_tracker if recorded else None
    settings: dict[str, Any] = {"usage_tracker": tracker, "send_stream": None}
    if not recorded:
        settings |= {"disable_history": True, "callbacks": []}
    try:
        with dspy.context(**settings):
            yield tracker
    finally:
        if outer is not None:
            for model, entries in tracker.usage_data.items():
                for entry in entries:
                    outer.add_usage(model, entry)


def _total(tracker: UsageTracker) -> Usage:
    entries = [entry for entries in tracker.usage_data.values() for entry in entries]
    prompt = sum(_count(e, "prompt_tokens", "input_tokens") for e in entries)
    written = sum(_count(e, "completion_tokens", "output_tokens") for e in entries)
    hidden = sum(_count(e, "total_tokens") for e in entries) - prompt - written  # text that only the total has
    complete = bool(entries) and all(_count(e, "prompt_tokens", "input_tokens") for e in entries) and written > 0
    return Usage(prompt_tokens=prompt, completion_tokens=written + max(hidden, 0), recounted=not complete)


def _count(entry: Mapping[str, Any], *names: str) -> int:
    return next((int(entry[n]) for n in names if isinstance(entry.get(n), (int, float))), 0)


def as_adapter(lm: dspy.BaseLM, messages: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
    """Mark a call as made by an adapter: DSPy warns of deprecation where messages are passed by hand."""
    try:
        from dspy.clients._deprecation import adapter_message_call
    except ImportError:  # it goes away together with the warning
        return contextlib.nullcontext()
    manager: contextlib.AbstractContextManager[Any] = adapter_message_call(lm, messages)
    return manager
