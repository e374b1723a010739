"""Identical requests of the rollouts of one pull become one request with n = their number.

The rollouts of a pull run in threads of their own. Their LM calls arrive at a `Group`, which counts: as soon as every
unfinished rollout waits for an LM, equal calls are put together and sent, one request for each set of equal calls. No
clock is involved, so the number of requests is the same on a fast and on a slow machine. `patience` is only a safety
net: a rollout may wait for something that another one holds, such as a lock, and would hold up all of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import itertools
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import dspy

from iapo_dspy.sampling.concurrency.loop import Mailbox, background_loop
from iapo_dspy.sampling.concurrency.threads import in_thread
from iapo_dspy.sampling.lm.params import call_of, canonical, limit_output, max_output_tokens
from iapo_dspy.sampling.lm.refusals import is_fatal, is_refused, is_retryable, is_undrawn, is_unsent
from iapo_dspy.sampling.requests.history import recorder
from iapo_dspy.sampling.requests.port import Choice, Completer, CompletionRequest
from iapo_dspy.sampling.rollouts.pipeline import Phase, Upstream, Watch
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.types import Decoding

T = TypeVar("T")


class Aborted(BaseException):
    """Ends a rollout whose pull was cancelled; no `except Exception` of a program must hold it up."""


class TokensUsedUp(Exception):
    """Ends a rollout that has taken the output tokens it may take; it becomes a failed completion."""


@dataclass(eq=False)
class Seat:
    """One rollout of a group, and the usage of its LM calls so far."""

    group: Group
    index: int
    watch: Watch | None = None
    pending: int = 0
    usage: Usage = field(default_factory=Usage)
    saved_s: float = 0.0  # waits that were spared, because others had asked the same before
    before: Counter[str] = field(default_factory=Counter)  # its calls before the inner module
    text: str | None = None
    finish: str | None = None
    logprob: float | None = None
    seed: int | None = None
    undrawn: bool = False
    passing: bool = False  # one of its calls failed in a way that may pass by waiting
    calls: int = 0
    granted: int = 0  # output tokens that calls in flight may take
    taken: int = 0  # output tokens that its calls took, or may have taken, as far as they are limited
    work: asyncio.Future[Any] | None = None
    since: float = 0.0  # when the program last began to work by itself
    expired: bool = False

    def take(self, choice: Choice, merged: int) -> None:
        """Book one choice of a request that was merged from the calls of so many rollouts.

        The prompt of a call that all rollouts make together costs a query once. The prompt of a call that each makes
        alone costs it once per completion. Calls that only some of them make together lie between. A rollout without
        others shares its first call: others would make it with the same inputs.
        """
        size = len(self.group.seats)
        share = (merged - 1) / (size - 1) if size > 1 else float(not self.calls)
        self.calls += 1
        took = choice.usage
        self.usage += replace(took, shared_tokens=share * took.shared_tokens, shared_usd=share * took.shared_usd)
        self.seed = choice.seed if self.seed is None else self.seed
        self._note(choice.error)
        if choice.error is None:
            self.text, self.finish, self.logprob = choice.text, choice.finish_reason, choice.logprob

    def take_around(self, choice: Choice, merged: int) -> None:
        """Book one choice of a request that so many rollouts made before or after the inner module.

        A deployed program makes this request once and pays the whole prompt. Of m rollouts each has an m-th of it.
        """
        size, took = len(self.group.seats), choice.usage
        prompt = (took.prompt_tokens + (merged - 1) * took.shared_tokens) / size
        usd = None if took.usd is None else (took.usd + (merged - 1) * took.shared_usd) / size
        self.usage += Usage(
            prompt_tokens=prompt,
            completion_tokens=took.completion_tokens / size,
            usd=usd,
            shared_tokens=prompt,
            shared_completion_tokens=took.completion_tokens / size,
            shared_usd=usd or 0.0,
        )
        self._note(choice.error)

    def _note(self, error: Exception | None) -> None:
        self.undrawn |= is_undrawn(error)
        self.passing |= error is not None and is_retryable(error)


@dataclass(eq=False)
class _Ticket:
    """One LM call of one rollout that waits for its answer."""

    seat: Seat
    order: int
    lm: dspy.BaseLM
    messages: Sequence[dict[str, Any]]
    params: Mapping[str, Any]
    same: str
    granted: int = 0
    phase: Phase | None = None
    answer: concurrent.futures.Future[Any] = field(default_factory=concurrent.futures.Future)


class Group:
    """The rollouts of one pull. All state is changed on the sampling loop only.

    Args:
        size: Rollouts.
        key: Names the pull; equal keys give equal seeds.
        completer: Finds the completer of an LM.
        decoding: Applies to every LM call of the pull.
        record: Whether requests are written to DSPy's history.
        patience: Seconds without any news after which waiting requests are sent, all present or not.
        longest: Seconds that a program may work without asking an LM; None does not limit it.
        most_tokens: Output tokens that each rollout may take, all its LM calls together; None does not limit them.
        upstream: Given for pipelines around an inner module: the answers to the calls before that module. The decoding
            then applies inside of the inner module only.
    """

    def __init__(
        self,
        size: int,
        *,
        key: Any,
        completer: Callable[[dspy.BaseLM], Completer],
        decoding: Decoding | None = None,
        record: bool = False,
        patience: float = 1.0,
        longest: float | None = None,
        most_tokens: int | None = None,
        upstream: Upstream | None = None,
    ) -> None:
        self.seats = [Seat(self, i, Watch() if upstream is not None else None) for i in range(size)]
        self._upstream = upstream
        self.decoding = decoding
        self.fatal: BaseException | None = None
        self.records = record
        self._patience = patience
        self._key = key
        self._completer = completer
        self._longest = longest
        self._most_tokens = most_tokens
        self._watch: asyncio.TimerHandle | None = None
        self._loop = background_loop()
        self._mailbox = Mailbox.of(self._loop)
        # Requests are made in the context of the pull, not of the rollout whose call happened to be the last.
        self._context = contextvars.copy_context()
        self._active = set(self.seats)
        self._thinking = size  # active seats without a call that waits for its answer
        self._waiting: list[_Ticket] = []
        self._open: set[_Ticket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: dict[str, int] = {}
        self._orders = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._news = 0.0  # when something last arrived, was answered or left

    def arrive(
        self, seat: Seat, lm: dspy.BaseLM, messages: Sequence[dict[str, Any]], params: Mapping[str, Any]
    ) -> concurrent.futures.Future[Any]:
        """Hand in an LM call, from any thread; the future brings the output that DSPy adapters expect."""
        phase = seat.watch.phase if seat.watch is not None else None
        same = canonical([id(lm), messages, params, phase])
        ticket = _Ticket(seat, next(self._orders), lm, messages, params, same, phase=phase)
        self._mailbox.post(self._arrived, ticket)
        return ticket.answer

    def start(self, seat: Seat, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a rollout's program in a thread; its time runs from now on, except while it waits for an LM.

        A thread cannot be ended. One whose program takes too long is left to itself: its rollout has failed, and it
        gets no answer any more. As a daemon it does not keep the interpreter from ending.

        Raises:
            TimeoutError: When awaited: the program took longer than it may.
        """
        seat.since = self._loop.time()
        seat.work = work = in_thread(function)
        if self._longest is not None and self._watch is None:
            self._watch = self._loop.call_later(self._longest, self._look)
        return work

    def _look(self) -> None:
        """Give up on programs that take too long, and look again when the next one may."""
        assert self._longest is not None
        self._watch = None
        now = self._loop.time()
        latest = now - self._longest
        working = [seat for seat in self._active if not seat.pending and seat.work is not None]
        for seat in working:
            if seat.since <= latest and seat.work is not None and not seat.work.done():
                seat.expired = True
                seat.work.set_exception(
                    TimeoutError(
                        f"the program worked for {self._longest:g} seconds without asking an LM; its thread was left "
                        "to itself. If it needs that long, raise rollout_timeout"
                    )
                )
        first = min((seat.since for seat in working if not seat.expired), default=now)
        if self._active:
            self._watch = self._loop.call_at(first + self._longest, self._look)

    def leave(self, seat: Seat) -> None:
        """Say that a rollout has ended."""
        if seat in self._active:
            self._active.discard(seat)
            self._thinking -= not seat.pending
        if not self._active and self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._consider()

    def abort(self, reason: BaseException) -> None:
        """Fail everything that waits, and everything that is still to come."""
        self.fatal = self.fatal or reason
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._waiting.clear()
        for ticket in list(self._open):
            self._answer(ticket, None, reason)

    def _arrived(self, ticket: _Ticket) -> None:
        self._open.add(ticket)
        self._thinking -= not ticket.seat.pending and ticket.seat in self._active
        ticket.seat.pending += 1
        if self.fatal is not None or ticket.seat.expired:
            self._answer(ticket, None, self.fatal or Aborted())
            return
        if ticket.phase == "before" and self._upstream is not None:
            self._start(self._ask_once(ticket, self._upstream))
        else:
            self._waiting.append(ticket)
        self._consider()

    def _consider(self) -> None:
        """Send when no other call can arrive before an answer does."""
        self._news = self._loop.time()
        if self._ready():
            # One turn of the loop later, because a rollout may hand in several calls at a time.
            self._loop.call_soon(self._send_if_ready)
        elif self._timer is None and self._waiting and not self._holds():
            self._timer = self._loop.call_later(self._patience, self._lose_patience)

    def _lose_patience(self) -> None:
        self._timer = None
        if not self._waiting or self._holds():
            return
        quiet = self._loop.time() - self._news
        if quiet >= self._patience:
            self._send()
        else:  # there was news: one timer that looks again costs less than one per piece of news
            self._timer = self._loop.call_later(self._patience - quiet, self._lose_patience)

    def _ready(self) -> bool:
        return bool(self._waiting) and not self._thinking and not self._holds()

    def _holds(self) -> bool:
        """Whether the calls that have arrived must wait for those in flight.

        Without a seed it does not wait: rollouts that differ have nothing to merge. With a seed, the requests that are
        merged must not depend on which answer came first, or a run would not repeat.
        """
        in_flight = len(self._open) > len(self._waiting)
        return in_flight and any(ticket.lm.kwargs.get("seed") is not None for ticket in self._waiting)

    def _send_if_ready(self) -> None:
        if self._ready():
            self._send()

    def _send(self) -> None:
        batches: dict[str, list[_Ticket]] = {}
        waiting = sorted(self._waiting, key=lambda t: (t.seat.index, t.order))
        self._waiting.clear()
        for ticket in waiting if self._most_tokens is None else self._limited(waiting, self._most_tokens):
            batches.setdefault(ticket.same, []).append(ticket)
        for batch in batches.values():
            self._start(self._ask(batch))

    def _start(self, asking: Coroutine[Any, Any, None]) -> None:
        task = self._context.run(self._loop.create_task, asking)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_once(self, ticket: _Ticket, upstream: Upstream) -> None:
        """Bring the answer that all rollouts of the query share."""
        repeat = ticket.seat.before[ticket.same]
        ticket.seat.before[ticket.same] += 1
        request = CompletionRequest(
            model=ticket.lm.model,
            messages=ticket.messages,
            n=1,
            params=ticket.params,
            key=["before", upstream.query],
            first=repeat,
        )

        async def draw() -> Choice:
            return (await self._completer(ticket.lm).complete(request))[0]

        start = self._loop.time()
        try:
            choice = await upstream.answer(call_of(ticket.lm, ticket.messages, ticket.params), repeat, draw)
        except Exception as error:  # noqa: BLE001 - as in `_ask`
            if is_fatal(error):
                self.abort(error)
            self._answer(ticket, None, error)
        else:
            ticket.seat.take_around(choice, 1)
            ticket.seat.saved_s += max(choice.usage.latency_s - (self._loop.time() - start), 0.0)
            self._answer(ticket, choice.output, choice.error)
        self._consider()

    def _limited(self, waiting: Sequence[_Ticket], most: int) -> list[_Ticket]:
        """Limit calls to the remaining tokens of their rollouts, and return those that can be sent.

        Calls that a rollout makes at a time share its remaining tokens, and none takes more than its own limit. A call
        waits where calls in flight may leave it less than that, and fails where nothing is left.
        """
        sent: list[_Ticket] = []
        for seat, group in itertools.groupby(waiting, key=lambda t: t.seat):
            calls, in_flight = list(group), seat.granted
            for i, ticket in enumerate(calls):
                free = most - seat.taken - seat.granted
                share = free // (len(calls) - i)
                if in_flight and (max_output_tokens(ticket.params) or math.inf) > share:
                    self._waiting.append(ticket)
                elif share >= 1:
                    ticket.params = limit_output(ticket.params, ticket.lm.model, share)
                    ticket.same = canonical([id(ticket.lm), ticket.messages, ticket.params, ticket.phase])
                    ticket.granted = max_output_tokens(ticket.params) or share
                    seat.granted += ticket.granted
                    sent.append(ticket)
                elif seat.granted:  # the others of this moment have it all
                    self._waiting.append(ticket)
                else:
                    used_up = f"the {most} output tokens that a completion may take are used up"
                    self._answer(ticket, None, TokensUsedUp(used_up))
        return sent

    async def _ask(self, batch: list[_Ticket]) -> None:
        ticket = batch[0]
        first = self._asked.get(ticket.same, 0)
        self._asked[ticket.same] = first + len(batch)
        request = CompletionRequest(
            model=ticket.lm.model,
            messages=ticket.messages,
            n=len(batch),
            params=ticket.params,
            key=self._key,
            first=first,
            record=recorder(ticket.lm) if self.records else None,
            once=self._most_tokens is not None,
        )
        try:
            choices = await self._completer(ticket.lm).complete(request)
        except Exception as error:  # noqa: BLE001 - it goes to the rollouts; a fatal one also ends the pull
            if is_fatal(error):
                self.abort(error)
            for ticket in batch:
                self._answer(ticket, None, error)
            self._consider()
            return
        merged = len({ticket.seat for ticket in batch})
        for ticket, choice in zip(batch, choices, strict=True):
            ticket.seat.taken += _taken(choice, ticket.granted)
            if ticket.phase in (None, "inside"):
                ticket.seat.take(choice, merged)
                self._answer(ticket, choice.output, choice.problem)
            else:  # after deployment this step asks its LM itself, which goes on with what was cut off
                ticket.seat.take_around(choice, len(batch))
                self._answer(ticket, choice.output, choice.error)
        self._consider()

    def _answer(self, ticket: _Ticket, output: Any, error: BaseException | None) -> None:
        if ticket not in self._open:
            return
        self._open.discard(ticket)
        ticket.seat.granted -= ticket.granted
        ticket.seat.pending -= 1
        ticket.seat.since = self._loop.time()
        self._thinking += not ticket.seat.pending and ticket.seat in self._active
        if ticket.answer.set_running_or_notify_cancel():
            if error is None:
                ticket.answer.set_result(output)
            else:
                ticket.answer.set_exception(error)


def _taken(choice: Choice, granted: int) -> int:
    """Return the output tokens of a call: all that it was granted, where nobody knows what was billed."""
    error, usage = choice.error, choice.usage
    if usage.recounted or (error is not None and not (is_unsent(error) or is_refused(error))):
        return granted
    return math.ceil(usage.completion_tokens)
