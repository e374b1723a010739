"""LM calls beside the task's own: judges in metrics and objectives, proposers, rewriters.

While a run scores, `Metering.case` puts a stand-in for `dspy.settings.lm` in place, which reserves and settles every
call in the run's budget and sends it like the run's own requests: attempts are counted, requests in flight are bounded
together. LMs that a metric holds itself are wrapped by `metered`. Both find the run through DSPy's settings, which
DSPy hands on to the threads that it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dspy
from dspy.utils.callback import BaseCallback

from iapo_dspy.errors import BudgetExceeded, ConfigurationError, LMRefused, one_line
from iapo_dspy.sampling.concurrency.loop import await_on_loop, run_on_loop
from iapo_dspy.sampling.judges.embeddings import EmbeddingRequest, Embeddings
from iapo_dspy.sampling.lm.params import NOT_SENT, canonical
from iapo_dspy.sampling.lm.proxy import METERING, StandInLM
from iapo_dspy.sampling.lm.refusals import is_fatal, secrets_of
from iapo_dspy.sampling.requests.callable_lm import as_adapter
from iapo_dspy.sampling.requests.port import Choice, CompletionRequest
from iapo_dspy.sampling.spending.budget import Budget
from iapo_dspy.sampling.spending.pricing import Prices

__all__ = ["Beside", "Case", "MeteredLM", "Metering", "metered", "noted", "refusing", "tried"]

logger = logging.getLogger(__name__)

_REMEMBERED = 4096  # answers of judges kept for identical questions


class Asker(Protocol):
    """What sends the requests; a `Sampler`."""

    async def ask(self, lm: dspy.BaseLM, request: CompletionRequest) -> Sequence[Choice]:
        """Send a request that is no rollout."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts."""


class _Scope(Protocol):
    """What a metered LM finds in DSPy's settings while somebody meters."""

    async def ask(self, lm: dspy.BaseLM, messages: Sequence[dict[str, Any]], params: Mapping[str, Any], n: int) -> Any:
        """Return n outputs as DSPy adapters expect them."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts."""

    def note(self, error: Exception) -> None:
        """Take up an error of something else that was asked."""


def metered(lm: dspy.BaseLM) -> MeteredLM:
    """Wrap an LM that a metric, an objective or a proposer holds itself, so that its calls count in the run's budget.

        judge = dspy.Predict("question, answer -> good: bool")
        judge.set_lm(metered(dspy.LM("openai/gpt-4o", max_tokens=200)))

    Outside a run it is the LM that it wraps. What is called through `dspy.settings.lm` needs no wrapper.

    Raises:
        ConfigurationError: It is no `dspy.BaseLM`.
    """
    if isinstance(lm, MeteredLM):
        return lm
    if not isinstance(lm, dspy.BaseLM):
        raise ConfigurationError(f"metered({lm!r}): give a dspy.LM.")
    return MeteredLM(lm)


class MeteredLM(StandInLM):
    """An LM whose calls are metered while a run scores, and its own otherwise. Made by `metered`."""

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
        scope: _Scope | None = dspy.settings.get(METERING)
        if scope is None:
            with as_adapter(self._lm, messages):
                return self._lm(prompt, messages=messages, **self._changed(), **kwargs)
        return run_on_loop(scope.ask(self._lm, *self._request(prompt, messages, kwargs)))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Return outputs as DSPy adapters expect them; see `__call__`."""
        scope: _Scope | None = dspy.settings.get(METERING)
        if scope is None:
            with as_adapter(self._lm, messages):
                return await self._lm.acall(prompt, messages=messages, **self._changed(), **kwargs)
        return await await_on_loop(scope.ask(self._lm, *self._request(prompt, messages, kwargs)))

    def _changed(self) -> dict[str, Any]:
        """Settings that `copy` has given this stand-in alone."""
        return {k: v for k, v in self.kwargs.items() if k not in self._given or self._given[k] is not v}

    def _request(
        self, prompt: Any, messages: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[dict[str, Any]], dict[str, Any], int]:
        if not (messages or isinstance(prompt, str)):
            raise TypeError("While a run scores, an LM takes a prompt or messages, not an lm15 Request.")
        merged = {**self.kwargs, "cache": self.cache, **kwargs}
        return list(messages) if messages else [{"role": "user", "content": prompt}], merged, int(merged.get("n") or 1)


@dataclass
class Case:
    """One thing that is scored, and what kept its LM calls from being answered.

    Attributes:
        refused: A call did not fit into the budget. What the metric returned then is not to be used, whatever it is:
            it may have caught the error.
        fatal: A call failed in a way that no other call could escape.
    """

    metering: Metering
    refused: BudgetExceeded | None = None
    fatal: Exception | None = None

    async def ask(self, lm: dspy.BaseLM, messages: Sequence[dict[str, Any]], params: Mapping[str, Any], n: int) -> Any:
        """Answer one LM call of what scores."""
        try:
            return await self.metering.ask(lm, messages, params, n)
        except Exception as error:
            self.note(error)
            raise

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts for what scores."""
        try:
            return await self.metering.embed(request)
        except Exception as error:
            self.note(error)
            raise

    def note(self, error: Exception) -> None:
        """Take up what kept a call from being answered."""
        if isinstance(error, BudgetExceeded):
            self.refused = error
        elif self.fatal is None and (is_fatal(error) or isinstance(error, LMRefused)):
            self.fatal = error

    def conclude(self) -> bool:
        """Return whether the score can be used.

        Raises:
            ConfigurationError: A call cannot be held within the budget as it is set up.
            LMRefused: A provider refuses every call.
        """
        if isinstance(self.fatal, (ConfigurationError, LMRefused)):
            raise self.fatal
        if self.fatal is not None:
            cause = one_line(self.fatal, self.metering.secrets)
            raise LMRefused(f"A provider refuses every call of the metric: {cause}")
        return self.refused is None


class Metering:
    """Meters the LM calls that one run makes beside its task's.

    Identical calls of one run are answered once where the LM's `cache` is on, as DSPy's own cache does it. DSPy's cache
    is neither read nor written, so that nothing is counted that was not paid, and nothing paid that was not counted.

    Args:
        asker: Sends the requests and counts them.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, asyncio.Future[list[Any]]] = OrderedDict()
        self._kept: dict[int, dspy.BaseLM] = {}  # ids name LMs in keys, so that the LMs must live as long
        self._stand_ins: dict[int, MeteredLM] = {}
        self._watcher = _Watcher()
        self.secrets: tuple[str, ...] = ()

    @contextlib.contextmanager
    def case(self) -> Iterator[Case]:
        """Meter what is called within; whoever enters must ask `Case.conclude` afterwards."""
        case = Case(self)
        settings: dict[str, Any] = {METERING: case, "callbacks": [*dspy.settings.get("callbacks", []), self._watcher]}
        lm = dspy.settings.lm
        if isinstance(lm, dspy.BaseLM):
            settings["lm"] = self._stand_in(lm)
        with dspy.context(**settings):
            yield case

    def _stand_in(self, lm: dspy.BaseLM) -> MeteredLM:
        with self._lock:
            found = self._stand_ins.get(id(lm))
            if found is None:
                found = self._stand_ins[id(lm)] = metered(lm)
            return found

    async def ask(self, lm: dspy.BaseLM, messages: Sequence[dict[str, Any]], params: Mapping[str, Any], n: int) -> Any:
        """Return n outputs, on the sampling loop.

        Raises:
            BudgetExceeded: They do not fit into the budget.
            Exception: The call failed, after all retries.
        """
        sent = {k: v for k, v in params.items() if k not in NOT_SENT and v is not None}
        self.secrets = tuple({*self.secrets, *secrets_of(lm.kwargs)})
        if not params.get("cache"):
            return await self._send(lm, messages, sent, n)
        key = canonical([id(lm), messages, sent, n, params.get("rollout_id")])
        self._kept[id(lm)] = lm
        known = self._answers.get(key)
        if known is None:
            known = self._answers[key] = asyncio.ensure_future(self._send(lm, messages, sent, n))
            known.add_done_callback(lambda done: self._forget(key, done))
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        return list(await asyncio.shield(known))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts, on the sampling loop. Embedders remember by themselves what they have embedded.

        Raises:
            BudgetExceeded: They do not fit into the budget.
            Exception: The call failed, after all retries.
        """
        self.secrets = tuple({*self.secrets, *secrets_of(request.settings)})
        return await self._asker.embed(request)

    def _forget(self, key: str, done: asyncio.Future[list[Any]]) -> None:
        """Keep no failure: the next one who asks may be luckier."""
        if done.cancelled() or done.exception() is not None:
            self._answers.pop(key, None)

    async def _send(
        self, lm: dspy.BaseLM, messages: Sequence[dict[str, Any]], params: Mapping[str, Any], n: int
    ) -> list[Any]:
        request = CompletionRequest(model=lm.model, messages=messages, n=n, params=params, key="judge")
        choices = await self._asker.ask(lm, request)
        for choice in choices:
            if choice.error is not None:
                raise choice.error
        return [choice.output for choice in choices]


class Beside(Protocol):
    """A model beside the LMs that an objective asks: one for embeddings, a reward model."""

    @property
    def billed(self) -> bool:
        """Whether its calls count in budgets."""

    def check_budget(self, budget: Budget, prices: Prices | None) -> None:
        """Raise ConfigurationError if its calls cannot be held within the budget."""


def tried(model: Beside) -> None:
    """Tell whoever tries an objective before a run that a model has scored one completion, which is enough."""
    refuse = getattr(dspy.settings.get(METERING), "refuse", None)
    if refuse is not None:
        refuse(model)


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Tell the run that scores, if there is one, of errors within that no other completion could escape."""
    try:
        yield
    except Exception as error:
        scope: _Scope | None = dspy.settings.get(METERING)
        if scope is not None:
            scope.note(error)
        raise


@contextlib.contextmanager
def refusing(error: Exception) -> Iterator[list[dspy.BaseLM | Beside]]:
    """Let every metered call raise `error` instead of being made; yields a list that takes up what was called."""
    called: list[dspy.BaseLM | Beside] = []

    class Refusal:
        def refuse(self, model: Any) -> Any:
            called.append(model)
            raise error

        async def ask(self, lm: dspy.BaseLM, *_: Any) -> Any:
            self.refuse(lm)

        async def embed(self, request: EmbeddingRequest) -> Any:
            self.refuse(request)

        def note(self, error: Exception) -> None:
            pass

    with dspy.context(**{METERING: Refusal()}):
        yield called


class _Watcher(BaseCallback):  # type: ignore[misc]  # dspy ships no types
    """Says once that a metric calls an LM which nobody meters."""

    def __init__(self) -> None:
        self._said = False

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Called by DSPy before an LM call of its own; metered ones never get there."""
        if not self._said:
            self._said = True
            logger.warning(
                "The metric calls the LM %r that it holds itself, which the budget does not count. Wrap it: "
                "iapo_dspy.metered(lm).", getattr(instance, "model", instance),
            )  # fmt: skip
