"""LM calls beside the task's own: judges in metrics and objectives, and proposers that write prompts.

While a run scores or writes, `Metering.case` puts a stand-in for `dspy.settings.lm` in place, which reserves and
settles every call in the run's budget and sends it like the run's own requests: attempts are counted, requests in
flight are bounded together. LMs that a metric or a proposer holds itself are wrapped by `metered`. Both find the run
through DSPy's settings, which DSPy hands on to the threads that it starts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError, LedgerError, LMRefused
from iapo_dspy.sampling.concurrency.identity_cache import IdentityCache
from iapo_dspy.sampling.concurrency.loop import await_on_loop, run_on_loop
from iapo_dspy.sampling.concurrency.once import AsyncOnce, Once
from iapo_dspy.sampling.judges.embeddings import EmbeddingRequest, Embeddings
from iapo_dspy.sampling.judges.judge_usage import LMWatcher
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import VerdictRecord
from iapo_dspy.sampling.lm.params import NOT_SENT, call_of, canonical, generation_params
from iapo_dspy.sampling.lm.proxy import METERING, StandInLM, noted
from iapo_dspy.sampling.lm.refusals import is_undrawn
from iapo_dspy.sampling.requests.callable_lm import as_adapter
from iapo_dspy.sampling.requests.port import Choice, CompletionRequest
from iapo_dspy.sampling.spending.budget import Meter, Share
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.types import FloatArray

logger = logging.getLogger(__name__)

T = TypeVar("T")
_REMEMBERED = 4096  # answers kept for identical questions
_CALLS: Mapping[Share, str] = {"judge": "The metric calls", "writer": "A proposer calls"}
_FAREWELL = 5.0  # seconds that cancelled calls get to end


class Asker(Protocol):
    """The port that sends the requests of judges and writers; a `Sampler` is one."""

    async def ask(self, lm: dspy.BaseLM, request: CompletionRequest, share: Share) -> Sequence[Choice]:
        """Send a request that is not a rollout."""

    async def embed(self, request: EmbeddingRequest, share: Share) -> Embeddings:
        """Embed texts."""


def metered(lm: dspy.BaseLM) -> MeteredLM:
    """Wrap an LM that a metric, an objective or a proposer holds itself, so that its calls count in the run's budget.

        judge = dspy.Predict("question, answer -> good: bool")
        judge.set_lm(metered(dspy.LM("openai/gpt-4o", max_tokens=200)))

    Outside a run it acts as the LM that it wraps. Calls through `dspy.settings.lm` need no wrapper.

    Raises:
        ConfigurationError: It is not a `dspy.BaseLM`.
    """
    if isinstance(lm, MeteredLM):
        return lm
    if not isinstance(lm, dspy.BaseLM):
        raise ConfigurationError(f"metered({lm!r}): give a dspy.LM.")
    return MeteredLM(lm)


class MeteredLM(StandInLM):
    """An LM whose calls are metered while a run scores or writes, and its own otherwise. Made by `metered`."""

    def __init__(self, lm: dspy.BaseLM) -> None:
        super().__init__(lm, cache=lm.cache)
        self._given = dict(lm.kwargs)

    @property
    def metered_lm(self) -> dspy.BaseLM:
        """The LM itself."""
        return self._lm

    def dump_state(self) -> dict[str, Any]:
        """Return the state of the LM itself."""
        state: dict[str, Any] = self._lm.dump_state()
        return state

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Return outputs as DSPy adapters expect them.

        Raises:
            BudgetExceeded: The call does not fit into what is left of the run's budget.
        """
        scope: Case | None = dspy.settings.get(METERING)
        if scope is None:
            with as_adapter(self._lm, messages):
                return self._lm(prompt, messages=messages, **self._changed(), **kwargs)
        with noted():
            return run_on_loop(scope.metering.ask(scope, self._lm, *self._request(prompt, messages, kwargs)))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Return outputs as DSPy adapters expect them; see `__call__`."""
        scope: Case | None = dspy.settings.get(METERING)
        if scope is None:
            with as_adapter(self._lm, messages):
                return await self._lm.acall(prompt, messages=messages, **self._changed(), **kwargs)
        with noted():
            return await await_on_loop(scope.metering.ask(scope, self._lm, *self._request(prompt, messages, kwargs)))

    def _changed(self) -> dict[str, Any]:
        """Settings that `copy` has given this stand-in alone."""
        return {k: v for k, v in self.kwargs.items() if k not in self._given or self._given[k] is not v}

    def _request(
        self, prompt: Any, messages: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[dict[str, Any]], dict[str, Any], int]:
        if not (messages or isinstance(prompt, str)):
            raise TypeError("While a run scores or writes, an LM takes a prompt or messages, not an lm15 Request.")
        merged = {**self.kwargs, "cache": self.cache, **kwargs}
        return list(messages) if messages else [{"role": "user", "content": prompt}], merged, int(merged.get("n") or 1)


@dataclass
class Case:
    """One completion that is scored or one generation that is written, and the errors of its LM calls.

    Attributes:
        metering: Sends the calls.
        refused: A call did not fit into the budget, or its provider was down. The score must not be used then, for the
            metric may have caught the error.
        fatal: A call failed in a way that no other call could escape.
        name: Names it in the ledger.
        asked: How often each call was made that is not remembered.
        answers: Calls that were answered.
    """

    metering: Metering
    name: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    refused: Exception | None = None
    fatal: Exception | None = None
    answers: int = 0
    _over: Exception | None = None
    _sent: set[asyncio.Future[Any]] = field(default_factory=set)

    def note(self, error: Exception) -> None:
        """Remember an error that kept a call from being answered."""
        if is_undrawn(error):
            self.refused = error
        elif self.fatal is None and isinstance(error, (ConfigurationError, LMRefused)):
            self.fatal = error

    async def send(self, work: Coroutine[Any, Any, T]) -> T:
        """Await a request on the sampling loop, as long as the case is not over.

        Raises:
            Exception: The one that `end` was given, or the request's own.
        """
        if self._over is not None:
            work.close()
            raise self._over
        task = asyncio.ensure_future(work)
        self._sent.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._over is not None:
                raise self._over from None
            raise
        finally:
            self._sent.discard(task)

    def end(self, error: Exception) -> None:
        """Cancel the requests in flight, and let every later one raise this error; not to be called on the loop."""

        async def cancel() -> None:
            self._over = error
            for task in (sent := list(self._sent)):
                task.cancel()
            if sent:
                await asyncio.wait(sent, timeout=_FAREWELL)

        run_on_loop(cancel())

    def conclude(self) -> bool:
        """Return whether the score can be used.

        Raises:
            ConfigurationError: A call cannot be held within the budget as it is set up.
            LMRefused: A provider refuses every call.
        """
        if self.fatal is not None:
            raise self.fatal
        return self.refused is None


class Metering:
    """Meters the LM calls that one run makes beside its task's, either those of judges or those of writers.

    Identical calls of one run are answered once where the LM's `cache` is on, as DSPy's own cache does it. DSPy's cache
    is neither read nor written, so that exactly the calls that are paid are counted.

    Args:
        asker: Sends the requests and counts them.
        share: Whose calls they are.
        known: Returns the answer that an earlier process of the run paid for, by its key.
        keep: Told of every answer before it is used.
    """

    def __init__(
        self,
        asker: Asker,
        *,
        share: Share = "judge",
        known: Callable[[str], VerdictRecord | None] = lambda key: None,
        keep: Callable[[VerdictRecord], None] = lambda record: None,
    ) -> None:
        self._asker = asker
        self._share = share
        self._known = known
        self._keep = keep
        self._answers: AsyncOnce[str, list[Any]] = AsyncOnce(_REMEMBERED)
        self._drawn: Once[str, Any] = Once()
        self._kept: dict[int, dspy.BaseLM] = {}  # ids name LMs in keys, so that the LMs must live as long
        self._stand_ins: IdentityCache[MeteredLM] = IdentityCache()
        self._watcher = LMWatcher(self._warn_once)
        self._warned = False

    @classmethod
    def of(cls, asker: Asker, meter: Meter, ledger: LedgerPort, share: Share) -> Metering:
        """Return the metering of a run.

        Args:
            asker: Sends the requests and counts them.
            meter: Counts them in.
            ledger: Keeps the answers.
            share: Whose calls they are.
        """

        def keep(record: VerdictRecord) -> None:
            meter.write_journal()  # the spending first: after a crash in between, the ledger says too much
            ledger.append(record)

        return cls(asker, share=share, known=ledger.verdict, keep=keep)

    @contextlib.contextmanager
    def case(self, name: str = "") -> Iterator[Case]:
        """Meter the calls made within; the caller must ask `Case.conclude` afterwards.

        Args:
            name: Names what is scored or written: its calls are found again in the ledger by it.
        """
        case = Case(self, name)
        settings: dict[str, Any] = {METERING: case, "callbacks": [*dspy.settings.get("callbacks", []), self._watcher]}
        lm = dspy.settings.lm
        if isinstance(lm, dspy.BaseLM):
            settings["lm"] = self._stand_ins.get(lm, lambda: metered(lm))
        with dspy.context(**settings):
            yield case

    def _warn_once(self, lm: Any) -> None:
        """Say that an LM is called which nobody meters; calls of metered LMs do not get as far as DSPy's callbacks."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s the LM %r that it holds itself, which the budget does not count. Wrap it: iapo_dspy.metered(lm).",
                _CALLS[self._share],
                getattr(lm, "model", lm),
            )

    async def ask(
        self, case: Case, lm: dspy.BaseLM, messages: Sequence[dict[str, Any]], params: Mapping[str, Any], n: int
    ) -> Any:
        """Return n outputs, on the sampling loop.

        An answer that an earlier process of the run paid for is not asked for again. It is found by the request. Where
        the LM's `cache` is off, it belongs to one completion, and to the first, second, ... such request for that one.

        Raises:
            BudgetExceeded: They do not fit into the budget.
            Exception: The call failed, after all retries.
        """
        sent = {k: v for k, v in params.items() if k not in NOT_SENT and v is not None}
        address = params.get("api_base") or params.get("base_url")
        what = [call_of(lm, messages, sent), n, params.get("rollout_id"), address and str(address)]
        call = _hash(what)
        if not params.get("cache"):
            name = f"{call}/{case.name}/{case.asked[call]}"
            case.asked[call] += 1
            outputs = await self._answer(case, name, lm, messages, sent, n)
            case.answers += 1
            return outputs
        key = canonical([id(lm), messages, sent, n, params.get("rollout_id")])
        self._kept[id(lm)] = lm
        outputs = await self._answers(key, lambda: self._answer(case, call, lm, messages, sent, n))
        case.answers += 1
        return list(outputs)

    def drawn_once(self, key: str, draw: Callable[[], T], keep: bool) -> T:
        """Return what was drawn under a key, in this run or in an earlier process of it; see `drawn_once`."""

        def work() -> T:
            if keep and (known := self._known(key)) is not None and known.outputs:
                return cast(T, known.outputs[0])
            found = draw()
            if keep:
                self._keep(VerdictRecord(key=key, outputs=[found]))
            return found

        return cast(T, self._drawn(key, work))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts, on the sampling loop. Embedders remember by themselves what they have embedded.

        Texts that an earlier process of the run has embedded are found in the ledger, with single precision.

        Raises:
            BudgetExceeded: They do not fit into the budget.
            Exception: The call failed, after all retries.
        """
        what = [request.model, generation_params(request.settings), str(request.settings.get("api_base"))]
        names = [_hash(["embedding", what, text]) for text in request.texts]
        records = {name: record for name in names if (record := self._known(name)) is not None}
        vectors = {name: vector_of(record) for name, record in records.items()}
        usage = Usage()
        missing = {name: text for name, text in zip(names, request.texts, strict=True) if name not in vectors}
        if missing:
            found = await self._asker.embed(replace(request, texts=tuple(missing.values())), self._share)
            usage = found.usage
            for name, vector in zip(missing, found.vectors, strict=True):
                record = VerdictRecord(key=name, outputs=[base64.b64encode(vector.astype("<f4").tobytes()).decode()])
                self._keep(record)
                vectors[name] = vector_of(record)
        return Embeddings(vectors=np.array([vectors[name] for name in names]), usage=usage)

    async def _answer(
        self, case: Case, name: str, lm: dspy.BaseLM, messages: Sequence[Any], params: Mapping[str, Any], n: int
    ) -> list[Any]:
        """Return the answer that is known under a name, or ask for it and keep it."""
        if (known := self._known(name)) is not None and len(known.outputs) == n:
            return list(known.outputs)
        request = CompletionRequest(model=lm.model, messages=messages, n=n, params=params, key=self._share)
        choices = await case.send(self._asker.ask(lm, request, self._share))
        for choice in choices:
            if choice.error is not None:
                raise choice.error
        outputs = [choice.output for choice in choices]
        self._keep(VerdictRecord(key=name, outputs=outputs))
        return outputs


def vector_of(record: VerdictRecord) -> FloatArray:
    """Return the embedding that a record holds [d].

    Raises:
        LedgerError: It holds none.
    """
    try:
        return np.frombuffer(base64.b64decode(record.outputs[0]), dtype="<f4").astype(float)
    except (IndexError, TypeError, ValueError) as error:
        raise LedgerError(f"The ledger's record {record.key} is no embedding; remove its line.") from error


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode(errors="surrogatepass")).hexdigest()[:32]


def drawn_once(key: str, draw: Callable[[], T], *, keep: bool = True) -> T:
    """Return what a run draws once under a key, however many threads ask; outside of a run, draw it.

    Args:
        key: Equal keys have equal results.
        draw: Returns JSON data; where it raises, the next caller tries again.
        keep: Whether the ledger keeps it, so that a run that is resumed has the same.
    """
    scope: Case | None = dspy.settings.get(METERING)
    if scope is None or _refuse(scope) is not None:
        return draw()
    with noted():  # a caller that waits for another one's draw takes part in its errors
        return scope.metering.drawn_once(key, draw, keep)


def tried(*models: object) -> None:
    """Tell the check that tries objectives before a run that models have scored one completion, which is enough."""
    scope: Case | None = dspy.settings.get(METERING)
    refuse = _refuse(scope)
    if refuse is not None and models:
        refuse(*models)


def _refuse(scope: Case | None) -> Callable[..., Any] | None:
    return getattr(scope.metering, "refuse", None) if scope is not None else None


@contextlib.contextmanager
def refusing(error: Exception) -> Iterator[list[Any]]:
    """Let every metered call raise `error` instead of being made.

    Yields:
        The models that are called: LMs, requests for embeddings, and reward models, which no budget counts.
    """
    called: list[Any] = []

    class Refusal:
        def refuse(self, *models: Any) -> Any:
            called.extend(models)
            raise error

        async def ask(self, case: Case, lm: dspy.BaseLM, *_: Any) -> Any:
            self.refuse(lm)

        async def embed(self, request: EmbeddingRequest) -> Any:
            self.refuse(request)

    refusal: Any = Refusal()
    with dspy.context(**{METERING: Case(refusal)}):
        yield called
