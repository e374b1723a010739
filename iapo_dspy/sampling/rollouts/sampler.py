"""Turns (program, inputs, m) into m independent rollouts, with as few requests as the provider allows."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import dspy
import pydantic
from dspy.primitives.base_module import BaseModule
from dspy.utils.exceptions import AdapterParseError

from iapo_dspy.errors import (
    ConfigurationError,
    IAPOError,
    IncompleteCompletion,
    LMRefused,
    one_line,
)
from iapo_dspy.preferences import is_number
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.sampling.concurrency.gate import Gate
from iapo_dspy.sampling.concurrency.identity_cache import IdentityCache
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.concurrency.threads import ThreadGate
from iapo_dspy.sampling.judges.embeddings import EmbeddingRequest, Embeddings, request_embeddings
from iapo_dspy.sampling.lm.params import deployment_of, limit_output
from iapo_dspy.sampling.lm.refusals import is_fatal, is_retryable, is_undrawn, secrets_of
from iapo_dspy.sampling.lm.shared_refusals import SharedRefusals
from iapo_dspy.sampling.requests.callable_lm import CallableCompleter, completer_for
from iapo_dspy.sampling.requests.history import recorder
from iapo_dspy.sampling.requests.port import Choice, Completer, CompletionRequest, Terms
from iapo_dspy.sampling.rollouts.group import Aborted, Group, Seat
from iapo_dspy.sampling.rollouts.pipeline import WATCH, Upstream
from iapo_dspy.sampling.rollouts.prepare import Prepared, format_once, predictors_of, prepare, quiet_adapter, state_of
from iapo_dspy.sampling.rollouts.rollout import Rollout
from iapo_dspy.sampling.rollouts.sampling_lm import SEAT, SamplingLM, current_seat
from iapo_dspy.sampling.rollouts.single_predictor import PredictorCall, predictor_call, predictor_of
from iapo_dspy.sampling.spending.budget import Meter, RequestMeter, Share
from iapo_dspy.sampling.spending.pricing import Prices
from iapo_dspy.types import Decoding

T = TypeVar("T")

_DEFAULT_CONCURRENCY = 64
_UNBOUNDED = 10**9
_DSPY_DEFAULT = 8  # DSPy's default of num_threads, which is meant for threads
_WHOSE: Mapping[Share, str] = {"judge": "metric", "writer": "proposers", "rewriter": "rewriter"}
_UNUSABLE = (AdapterParseError, pydantic.ValidationError, IncompleteCompletion)  # the completion's fault


class Sampler:
    """Draws rollouts of programs.

    `max_concurrency` bounds HTTP requests in flight, not completions: one request may bring n of them. It bounds all
    LMs together; a 429 narrows only the gate of the deployment that sent it.

    Args:
        lm: Used for predictors without an LM of their own; None takes `dspy.settings.lm` at the time of the call.
        meter: Counts requests, tokens and dollars and holds them within a budget. The caller reserves completions.
            None counts without limits.
        max_concurrency: HTTP requests in flight at most; None takes `dspy.settings.num_threads` where it was
            configured to something else than DSPy's default of 8, else 64.
        timeout: Seconds per attempt; None takes the LM's, or ten minutes.
        outage_patience: Seconds, >= 0, for which requests wait for a provider that is down, before they are given up
            (`Gate`); None sends them all the same, so that each has its own retries.
        seed: Seed of the jitter between attempts. (Completions are seeded by the LM's own `seed`.)
        patience: Seconds without any news after which LM calls of a multi-step program are sent although some rollouts
            have not come to theirs; see `group`.
        rollout_timeout: Seconds that a program of the general path may work without asking an LM, > 0, after which
            its rollout counts as failed and its thread is left to itself; None does not limit it. Waiting for an LM
            does not count.
        completer: Finds the completer of an LM, for tests and other transports.
        prices: The user's own prices, for budgets and reports.

    Attributes:
        sound: Whether an earlier process of the run was answered by its LMs. To be set before the first draw.
    """

    def __init__(
        self,
        *,
        lm: dspy.BaseLM | None = None,
        meter: Meter | None = None,
        max_concurrency: int | None = None,
        timeout: float | None = None,
        outage_patience: float | None = None,
        seed: int = 0,
        patience: float = 1.0,
        rollout_timeout: float | None = None,
        completer: Callable[[dspy.BaseLM], Completer] | None = None,
        prices: Prices | None = None,
    ) -> None:
        if max_concurrency is None:
            configured = dspy.settings.num_threads
            max_concurrency = _DEFAULT_CONCURRENCY if configured in (None, _DSPY_DEFAULT) else configured
        if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int) or max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency={max_concurrency!r}: give a whole number >= 1.")
        check_timeout(rollout_timeout)
        self.lm = lm
        self.meter = meter or Meter()
        self.max_concurrency = max_concurrency
        self.sound = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prices = prices
        self._timeout = timeout
        self._outage_patience = outage_patience
        self._gates: dict[Hashable, Gate] = {}
        self._needed: set[Hashable] = set()
        self._seed = seed
        self._patience = patience
        self._rollout_timeout = rollout_timeout
        self._make = completer
        self._secrets: tuple[str, ...] = ()
        self._stand_ins: IdentityCache[dspy.BaseLM] = IdentityCache()
        self._prepared: IdentityCache[Prepared] = IdentityCache()

    async def sample(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        m: int,
        *,
        key: Any,
        decoding: Decoding | None = None,
        record: bool = False,
        most_tokens: int | None = None,
        upstream: Upstream | None = None,
        adapter: dspy.Adapter | None = None,
    ) -> list[Rollout]:
        """Draw m rollouts, at once. To be awaited on the sampling loop.

        A program that is a single predictor is one request and m parses. Any other program runs m times, in threads.

        Args:
            program: Any DSPy module, or another callable that returns a `dspy.Prediction`.
            inputs: Its keyword arguments.
            m: Number of rollouts, >= 1.
            key: Names the draw, such as (round, position): equal keys give equal seeds, where the LM has a seed.
            decoding: Applies to every LM call of the rollouts, over the predictors' own settings.
            record: Write DSPy's history, usage tracker, callbacks and traces, as a deployed program should.
            most_tokens: Output tokens that each rollout may take, all its LM calls together, >= 1. A completion is cut
                off there; a call for which nothing is left fails.
            upstream: Given for a pipeline around an inner module (`InnerModule`), of which a rollout is one completion:
                the answers to the calls before that module, which all rollouts of a query share.
            adapter: Writes calls and reads their answers, of a pipeline those inside of the inner module; None is the
                configured one.

        Returns:
            m rollouts; failures are among them, never dropped.

        Raises:
            LMRefused: No request could succeed: a wrong key, an unknown model (`SharedRefusals`).
            ConfigurationError: No LM is configured, or the budget cannot be held.
        """
        if isinstance(m, bool) or not isinstance(m, int) or m < 1:
            raise ConfigurationError(f"m={m!r}: give a whole number >= 1.")
        self._bind()
        # A draw inside of a rollout has a place already; a second one it might wait for forever.
        place: contextlib.AbstractAsyncContextManager[Any] = contextlib.nullcontext()
        if current_seat() is None:  # a deployment that is down must not take the places of the others
            place = self._pulls.setdefault(self.deployments(program), asyncio.Semaphore(self.max_concurrency))
        try:
            async with place:
                try:
                    with contained():  # inputs of the user's own types are written here
                        call = self._single(program, inputs, decoding, record, adapter) if upstream is None else None
                except ConfigurationError:
                    raise
                except Exception as error:  # noqa: BLE001 - inputs that cannot be rendered: m failures, none paid
                    return [Rollout(failure=self._line(error), error=True)] * m
                if call is None:
                    group = Group(
                        m,
                        key=key,
                        completer=self._completer,
                        decoding=decoding,
                        record=record,
                        patience=self._patience,
                        longest=self._rollout_timeout,
                        most_tokens=most_tokens,
                        upstream=upstream,
                    )
                    return await self._run(group, program, inputs, adapter)
                request = CompletionRequest(
                    model=call.lm.model,
                    messages=call.messages,
                    n=m,
                    params=limit_output(call.params, call.lm.model, most_tokens),
                    key=key,
                    record=recorder(call.lm) if record else None,
                    once=most_tokens is not None,
                )
                choices = await self._completer(call.lm).complete(request)
                with _heard(record):
                    return [self._read(call, choice, record) for choice in choices]
        except Exception as error:
            refusal = self._refusal(error, "The provider refuses every request")
            if refusal is None:
                raise
        raise refusal  # outside the handler: the provider's own message may show keys

    async def ask(self, lm: dspy.BaseLM, request: CompletionRequest, share: Share) -> Sequence[Choice]:
        """Send a request of a judge, a writer or a rewriter: bounded with all others, counted as their share.

        To be awaited on the sampling loop.

        Raises:
            LMRefused: No request of the LM could succeed.
        """
        self._bind()
        self._hide(lm.kwargs)
        gate = self._gate_of(lm, needed=share != "writer")
        completer = self._beside[share].get(lm, lambda: completer_for(lm, self._terms(gate, self.meter.part(share))))
        return await self._asked(completer.complete(request), share)

    async def embed(self, request: EmbeddingRequest, share: Share) -> Embeddings:
        """Embed texts, bounded with all others, counted as this share; to be awaited on the sampling loop.

        Raises:
            LMRefused: No request for embeddings could succeed.
        """
        self._bind()
        self._hide(request.settings)
        gate = self._gate_at(request.deployment, request.model, needed=share == "judge")
        meter = self.meter.part(share)
        return await self._asked(request_embeddings(request, meter=meter, gate=gate, prices=self._prices), share)

    async def _asked(self, asking: Awaitable[T], share: Share) -> T:
        try:
            return await asking
        except Exception as error:
            refusal = self._refusal(error, f"A provider refuses every call of the {_WHOSE[share]}")
            if refusal is None:
                raise
        raise refusal  # as in `sample`

    def _refusal(self, error: Exception, words: str) -> LMRefused | None:
        """Return the error of a run whose provider refuses every request; None where this one does not say so."""
        if isinstance(error, IAPOError) or not is_fatal(error):
            return None
        return LMRefused(f"{words}: {self._line(error)}")

    def deployments(self, program: Any) -> Hashable:
        """Return the deployments that the predictors of a program ask; compare it, but never show it."""
        lms = [p.lm or self.lm or dspy.settings.lm for p in predictors_of(program)]
        return frozenset(deployment_of(lm) for lm in lms if isinstance(lm, dspy.BaseLM))

    @property
    def outage(self) -> str | None:
        """Why requests were given up, of the first deployment that was down for too long; None while there is none.

        A deployment that only writers ask does not count: the run goes on without it.
        """
        gates = (gate for deployment, gate in self._gates.items() if deployment in self._needed)
        return next((gate.outage for gate in gates if gate.outage is not None), None)

    def _gate_of(self, lm: dspy.BaseLM, *, needed: bool = True) -> Gate:
        return self._gate_at(deployment_of(lm), lm.model, needed=needed)

    def _gate_at(self, deployment: Hashable, name: str, *, needed: bool) -> Gate:
        if needed:
            self._needed.add(deployment)
        if deployment not in self._gates:
            self._gates[deployment] = Gate(
                self.max_concurrency, within=self._gate, name=name, patience=self._outage_patience
            )
        return self._gates[deployment]

    def _bind(self) -> None:
        """Make the parts that belong to one event loop; a forked child has another loop than its parent."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._gate = Gate(self.max_concurrency)  # all LMs together; each deployment has one of its own in it
            self._gates = {}
            self._refusals: dict[Hashable, SharedRefusals] = {}
            self._pulls: dict[Hashable, asyncio.Semaphore] = {}
            self._threads: dict[Hashable, ThreadGate] = {}
            self._completers: IdentityCache[Completer] = IdentityCache()
            self._beside: dict[Share, IdentityCache[Completer]] = {share: IdentityCache() for share in _WHOSE}

    def _single(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        decoding: Decoding | None,
        record: bool,
        adapter: dspy.Adapter | None,
    ) -> PredictorCall | None:
        """Return the one call that the program makes; None where it has to run in a thread."""
        predictor = predictor_of(program)
        if predictor is None:
            return None
        used = predictor.lm or self.lm or dspy.settings.lm
        if not isinstance(used, dspy.BaseLM):
            raise ConfigurationError(
                f"lm={used!r}: give a dspy.LM, or configure one: dspy.configure(lm=dspy.LM('openai/gpt-4o-mini'))."
            )
        if record and (dspy.settings.callbacks or program.callbacks or predictor.callbacks or used.callbacks):
            return None
        with _heard(record):
            quiet = quiet_adapter(adapter, self._stand_in)
            return predictor_call(predictor, inputs, lm=used, adapter=quiet, decoding=decoding)

    def _read(self, call: PredictorCall, choice: Choice, record: bool) -> Rollout:
        prediction, failure = call.read(choice, self._secrets)
        return Rollout(
            prediction=prediction,
            failure=failure,
            error=choice.error is not None and not isinstance(choice.error, _UNUSABLE),
            undrawn=is_undrawn(choice.error),
            passing=choice.error is not None and is_retryable(choice.error),
            text=choice.text,
            usage=choice.usage,
            seed=choice.seed,
            finish=choice.finish_reason,
            logprob=choice.logprob,
            trace=((call.predictor, call.inputs, prediction),) if record and prediction is not None else (),
        )

    async def _run(
        self, group: Group, program: Any, inputs: Mapping[str, Any], adapter: dspy.Adapter | None
    ) -> list[Rollout]:
        """Run the program in threads, one for each seat of the group."""
        lm = self.lm or dspy.settings.lm
        if lm is not None and not isinstance(lm, dspy.BaseLM):
            raise ConfigurationError(f"lm={lm!r}: give a dspy.LM.")
        prepared = self._prepare(program)
        record, m = group.records, len(group.seats)
        once = m > 1 and not (record and dspy.settings.callbacks)

        def ready(of: dspy.Adapter | None) -> Any:
            quiet = quiet_adapter(of, self._stand_in)
            return format_once(quiet) if once else quiet

        watches = [seat.watch for seat in group.seats if seat.watch is not None]
        if watches and adapter is not None:  # the steps around the inner module keep the configured one
            inside, adapter = ready(adapter), None
            for watch in watches:
                watch.adapter = inside
        settings: dict[str, Any] = {
            "lm": None if lm is None else self._stand_in(lm),
            "adapter": ready(adapter),
            # A request is recorded once; the rollouts that share it must not record it again.
            "disable_history": True,
            "usage_tracker": None,
            "track_usage": False,
            "send_stream": None,
        }
        if not record:
            settings["callbacks"] = []
        gate = self._threads.setdefault(
            self.deployments(program), ThreadGate(max(self.max_concurrency, _DEFAULT_CONCURRENCY))
        )
        async with contextlib.nullcontext() if current_seat() is not None else gate(m):
            try:
                rollouts = await asyncio.gather(
                    *(self._seated(seat, prepared, inputs, settings) for seat in group.seats)
                )
            except BaseException:
                group.abort(Aborted())
                raise
        if group.fatal is not None:
            raise group.fatal
        return rollouts

    async def _seated(
        self, seat: Seat, prepared: Prepared, inputs: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Rollout:
        settings = {**settings, SEAT: seat, WATCH: seat.watch}
        run = functools.partial(_run_program, prepared.program, inputs, settings)
        start = time.perf_counter()
        prediction: dspy.Prediction | None = None
        trace: list[Any] = []
        failure, error = None, False
        try:
            prediction, trace = await seat.group.start(seat, run)
            if not isinstance(prediction, dspy.Prediction):
                failure, error = f"TypeError: the program returned {type(prediction).__name__}, not a Prediction", True
                prediction = None
        except Exception as caught:  # noqa: BLE001 - a rollout that raises is a failed completion
            failure = self._line(caught)
            error = not isinstance(caught, _UNUSABLE)
        finally:
            seat.group.leave(seat)
        watch = seat.watch
        if watch is not None and watch.problem is not None and (failure is None or watch.calls):
            prediction, failure, error = None, watch.problem, True  # whatever the pipeline made of it
        own = prepared.originals
        return Rollout(
            prediction=prediction,
            failure=failure,
            error=error,
            undrawn=seat.undrawn,
            passing=prediction is None and seat.passing,
            text=seat.text,
            usage=replace(seat.usage, latency_s=time.perf_counter() - start + seat.saved_s),
            seed=seat.seed,
            finish=seat.finish,
            logprob=seat.logprob,
            trace=tuple((own.get(id(p), p), i, o) for p, i, o in trace) if seat.group.records else (),
            inner=watch.call if watch is not None and watch.calls == 1 else None,
        )

    def _prepare(self, program: Any) -> Prepared:
        state = state_of(program)
        return self._prepared.get(
            program, lambda: prepare(program, self._stand_in), fresh=lambda known: known.state == state
        )

    def _stand_in(self, lm: dspy.BaseLM) -> dspy.BaseLM:
        return self._stand_ins.get(lm, lambda: SamplingLM(lm, self._alone))

    def _alone(self, lm: dspy.BaseLM, messages: Sequence[dict[str, Any]], params: Mapping[str, Any]) -> Any:
        request = CompletionRequest(model=lm.model, messages=messages, n=1, params=params, key="alone")
        choice = run_on_loop(self._completer(lm).complete(request))[0]
        if choice.problem is not None:
            raise choice.problem
        return choice.output

    def _completer(self, lm: dspy.BaseLM) -> Completer:
        def make() -> Completer:
            self._hide(lm.kwargs, *getattr(lm, "secrets", ()))
            if self._make is not None:
                return self._make(lm)
            if isinstance(lm, SamplingLM):  # inside a rollout: its requests wait at the outer gate
                refusals = SharedRefusals(sound=True)  # one that concerns all ends the outer draw
                return CallableCompleter(lm, Terms(gate=Gate(_UNBOUNDED), meter=self.meter, refusals=refusals))
            refusals = self._refusals.setdefault(deployment_of(lm), SharedRefusals(sound=self.sound))
            return completer_for(lm, replace(self._terms(self._gate_of(lm), self.meter), refusals=refusals))

        return self._completers.get(lm, make)

    def _terms(self, gate: Gate, meter: RequestMeter) -> Terms:
        return Terms(gate=gate, meter=meter, timeout=self._timeout, seed=self._seed, prices=self._prices)

    def _hide(self, settings: Mapping[str, Any], *more: str) -> None:
        """Keep the secrets of an LM's settings out of messages."""
        self._secrets = tuple({*self._secrets, *secrets_of(settings), *more})

    def _line(self, error: BaseException) -> str:
        return one_line(error, self._secrets)


def check_timeout(value: Any) -> None:
    """Refuse a `rollout_timeout` that is neither None nor a finite number > 0."""
    if value is not None and not (is_number(value) and value > 0):
        raise ConfigurationError(f"rollout_timeout={value!r}: give seconds > 0, or None for no limit.")


def _run_program(
    program: Any, inputs: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Any, list[tuple[Any, Any, Any]]]:
    """Return the output of a program and its trace."""
    trace: list[tuple[Any, Any, Any]] = []
    only_async = isinstance(program, BaseModule) and not hasattr(type(program), "forward")
    with dspy.context(**settings, trace=trace):
        result = program.acall(**inputs) if only_async else program(**inputs)
        if inspect.isawaitable(result):

            async def wait() -> Any:
                return await result

            result = asyncio.run(wait())
    return result, trace


def _heard(record: bool) -> Any:
    """Settings under which a predictor's call is formatted and read: its callbacks hear of it only when recording."""
    return dspy.context(send_stream=None) if record else dspy.context(send_stream=None, callbacks=[])
