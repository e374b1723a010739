"""The budget of a run, and the meter that keeps the run within it under any concurrency.

Every request reserves an upper bound before it is sent, and replaces it by its real usage afterwards.
Dollars are counted in whole picodollars, so that a million small sums neither drift nor overshoot.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Protocol, TypeVar

from iapo_dspy.errors import BudgetExceeded, ConfigurationError
from iapo_dspy.preferences import is_number
from iapo_dspy.sampling.concurrency.loop import within
from iapo_dspy.sampling.spending.usage import Usage

logger = logging.getLogger(__name__)

T = TypeVar("T")
Share = Literal["judge", "writer", "rewriter"]
"""Whose calls `Spent` tells apart from the task's own: those of metrics and objectives, proposers, and rewriters."""
WRITERS = 4  # one in so many tokens, dollars and seconds of a budget at most writes prompts; the rest tries them
_PICO = 10**12


@dataclass(frozen=True)
class Budget:
    """Limits of one run; whichever is reached first ends it, and none is ever exceeded.

        Budget(5_000)                       # completions
        Budget(usd=5)                       # as many completions as five dollars probably pay for
        Budget(5_000, usd=20, seconds=600)

    Args:
        completions: Completions drawn, >= 1. Without it, the run draws some completions of each prompt, and plans for
            as many as the tokens or dollars will probably pay for.
        tokens: Prompt and completion tokens together, as billed, >= 1. Needs `max_tokens` on the LM.
        usd: Dollars, > 0. Needs `max_tokens` on the LM and a known price.
        seconds: Wall-clock time, > 0. Requests in flight at the end are cancelled, and count with their upper bound.

    Raises:
        ConfigurationError: A limit is not a positive, finite number; or there are neither completions nor tokens nor
            dollars.
    """

    completions: int | None = None
    tokens: int | None = field(default=None, kw_only=True)
    usd: float | None = field(default=None, kw_only=True)
    seconds: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, value in (("completions", self.completions), ("tokens", self.tokens)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"Budget {name}={value!r}: give a whole number >= 1.")
        for name, amount in (("usd", self.usd), ("seconds", self.seconds)):
            if amount is not None and not (is_number(amount) and amount > 0):
                raise ConfigurationError(f"Budget {name}={amount!r}: give a finite number > 0, or leave it out.")
        if self.completions is None and self.tokens is None and self.usd is None:
            raise ConfigurationError(
                f"{self} does not say how much a run may draw, for seconds alone tell no algorithm how to divide its "
                "completions. Add completions=, tokens= or usd=, such as Budget(5_000) or Budget(usd=5)."
            )

    @property
    def bounds_requests(self) -> bool:
        """Whether every request needs an upper bound of its tokens or dollars."""
        return self.tokens is not None or self.usd is not None

    @classmethod
    def of(cls, value: int | Budget) -> Budget:
        """Return a budget; a whole number is a limit on completions alone."""
        return value if isinstance(value, Budget) else cls(value)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The spending of a run, or its reservations. They add up with `+`.

    Attributes:
        completions: Completions drawn.
        requests: HTTP attempts (or LM calls), failed ones and retries included.
        prompt_tokens: Tokens read, counted once per request, those of failed attempts included.
        completion_tokens: Tokens written.
        usd: Dollars, as far as prices are known.
        seconds: Wall-clock time since the meter was made, plus that of an earlier, resumed process.
        judge_requests: The part of `requests` that judges made: LMs and embedding models of metrics and objectives.
        judge_prompt_tokens: The part of `prompt_tokens` that they read.
        judge_completion_tokens: The part of `completion_tokens` that they wrote.
        judge_usd: The part of `usd` that they took.
        writer_requests: The part of `requests` that proposers made to write prompts.
        writer_prompt_tokens: The part of `prompt_tokens` that they read.
        writer_completion_tokens: The part of `completion_tokens` that they wrote.
        writer_usd: The part of `usd` that they took.
        rewriter_requests: The part of `requests` that rewriters of queries made.
        rewriter_prompt_tokens: The part of `prompt_tokens` that they read.
        rewriter_completion_tokens: The part of `completion_tokens` that they wrote.
        rewriter_usd: The part of `usd` that they took.
    """

    completions: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    judge_requests: int = 0
    judge_prompt_tokens: int = 0
    judge_completion_tokens: int = 0
    judge_usd: float = 0.0
    writer_requests: int = 0
    writer_prompt_tokens: int = 0
    writer_completion_tokens: int = 0
    writer_usd: float = 0.0
    rewriter_requests: int = 0
    rewriter_prompt_tokens: int = 0
    rewriter_completion_tokens: int = 0
    rewriter_usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def judge_tokens(self) -> int:
        """The part of `tokens` that judges took."""
        return self.judge_prompt_tokens + self.judge_completion_tokens

    @property
    def writer_tokens(self) -> int:
        """The part of `tokens` that proposers took."""
        return self.writer_prompt_tokens + self.writer_completion_tokens

    @property
    def rewriter_tokens(self) -> int:
        """The part of `tokens` that rewriters took."""
        return self.rewriter_prompt_tokens + self.rewriter_completion_tokens

    def __add__(self, other: Spent) -> Spent:
        """Return what both took together."""
        return Spent(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Spent) -> Spent:
        """Return what this took beside the other, which is a part of it."""
        return Spent(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def to_dict(self) -> dict[str, float]:
        """Return JSON data that `from_dict` reads back; seconds are rounded to milliseconds."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Spent:
        """Read JSON data; names that it does not know are left out."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


@dataclass(eq=False, slots=True)
class Reservation:
    """A share of a budget that nobody else can spend until it is settled or released; either works once."""

    _meter: Meter
    completions: int = 0
    tokens: int = 0
    picodollars: int = 0
    share: Share | None = None
    _open: bool = True

    def settle(
        self, *, completions: int = 0, requests: int = 0, usage: Usage | None = None, counted: bool = True
    ) -> None:
        """Replace the reservation by the real spending; dollars that are not known count as 0.

        Args:
            completions: Completions drawn.
            requests: Requests made.
            usage: What they took, as far as it is known.
            counted: Whether `usage` is surely the whole bill. Otherwise the reservation is spent as a whole, at least.
        """
        if not self._open:
            return
        self._open = False
        usage = usage or Usage()
        if not counted:
            usage = usage.at_least(self.tokens, self.picodollars / _PICO)
        took: dict[str, Any] = {
            "requests": requests,
            "prompt_tokens": int(usage.prompt_tokens),
            "completion_tokens": int(usage.completion_tokens),
            "usd": usage.usd or 0.0,
        }
        part = {f"{self.share}_{name}": value for name, value in took.items()} if self.share is not None else {}
        self._meter._close(self, Spent(completions=completions, **took, **part))

    def forfeit(self, *, requests: int = 0, prompt_tokens: int = 0) -> None:
        """Count the whole reservation as spent: the bill of a request that timed out is not known."""
        usage = Usage(prompt_tokens=min(prompt_tokens, self.tokens))
        self.settle(completions=self.completions, requests=requests, usage=usage, counted=False)

    def release(self) -> None:
        """Give everything back: nothing was spent."""
        self.settle()


class RequestMeter(Protocol):
    """The part of a meter that completers use."""

    @property
    def budget(self) -> Budget | None:
        """The budget; None counts without limiting."""

    @property
    def bounds_requests(self) -> bool:
        """Whether every request needs an upper bound of its tokens or dollars."""

    async def areserve(self, *, tokens: int = 0, usd: float = 0.0) -> Reservation:
        """Set an upper bound aside; see `Meter.areserve`."""

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work until the seconds of the budget are over; see `Meter.in_time`."""


class Meter:
    """Counts the spending of a run and refuses requests that would exceed its budget. Thread-safe.

    Args:
        budget: The limits; None counts without limiting.
        spent: The spending of earlier processes of the same run.
        others: Tokens and dollars that other runs have paid from the same budget since the run began; they are not in
            `spent`.
        stored: Completions that earlier processes of the same run have paid for; they are in `spent` as soon as the
            run uses them again (`replay`), and are kept free until then.
        clock: Seconds that only grow; for tests.
    """

    def __init__(
        self,
        budget: Budget | int | None = None,
        *,
        spent: Spent | None = None,
        others: Spent | None = None,
        stored: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = None if budget is None else Budget.of(budget)
        self._clock = clock
        self._start = clock() - (spent.seconds if spent else 0.0)
        self._lock = threading.RLock()
        self._spent = spent or Spent()
        self.others = others or Spent()
        self.stored = stored
        self._pico = round(self._spent.usd * _PICO)
        self._judge_pico = round(self._spent.judge_usd * _PICO)
        self._writer_pico = round(self._spent.writer_usd * _PICO)
        self._rewriter_pico = round(self._spent.rewriter_usd * _PICO)
        self._reserved_completions = 0
        self._reserved_tokens = 0
        self._reserved_pico = 0
        self._writing = [0, 0]  # tokens and picodollars that are reserved by writers
        self._waiters: list[asyncio.Future[None]] = []
        self._journal: Callable[[Spent, Spent], None] | None = None
        self._journal_lock = threading.Lock()

    def keep_journal(self, journal: Callable[[Spent, Spent], None]) -> None:
        """Have spending and reservations written down before each request that a limit bounds.

        Args:
            journal: Called with (spent, reserved), one call at a time. Its last entry is never less than the bill can
                become, so that a limit holds although the process may be killed.
        """
        self._journal = journal

    def write_journal(self) -> None:
        """Write down the spending and the reservations of this moment."""
        if self._journal is None:
            return
        with self._journal_lock:  # the order of the entries is the order in which they were true
            with self._lock:
                spent, reserved = self.spent, self.reserved
            self._journal(spent, reserved)

    def part(self, share: Share) -> RequestMeter:
        """Return the same budget for judges, writers or rewriters, which `Spent` tells apart."""
        return _Share(self, share)

    @property
    def bounds_requests(self) -> bool:
        """Whether every request needs an upper bound of its tokens or dollars."""
        return self.budget is not None and self.budget.bounds_requests

    @property
    def spent(self) -> Spent:
        """The spending so far."""
        with self._lock:
            return replace(
                self._spent,
                usd=self._pico / _PICO,
                judge_usd=self._judge_pico / _PICO,
                writer_usd=self._writer_pico / _PICO,
                rewriter_usd=self._rewriter_pico / _PICO,
                seconds=self._clock() - self._start,
            )

    @property
    def reserved(self) -> Spent:
        """The reservations of this moment; the tokens stand under `completion_tokens`."""
        with self._lock:
            return Spent(
                completions=self._reserved_completions,
                completion_tokens=self._reserved_tokens,
                usd=self._reserved_pico / _PICO,
            )

    @property
    def exhausted(self) -> bool:
        """Whether the spending alone has used up some limit."""
        return self._obstacle(1, 1, 1, spent_only=True) is not None

    def reserve(
        self, *, completions: int = 0, tokens: int = 0, usd: float = 0.0, share: Share | None = None
    ) -> Reservation:
        """Set an upper bound aside; `share` says whose it is, where it is not the task's own.

        Raises:
            BudgetExceeded: It does not fit beside the spending and the other reservations.
        """
        pico = math.ceil(usd * _PICO)
        with self._lock:
            obstacle = self._obstacle(completions, tokens, pico, share)
            if obstacle is not None:
                raise BudgetExceeded(obstacle)
            self._count_writing(tokens, pico, share)
            self._reserved_completions += completions
            self._reserved_tokens += tokens
            self._reserved_pico += pico
        if tokens or pico:
            self.write_journal()
        return Reservation(self, completions, tokens, pico, share)

    async def areserve(self, *, tokens: int = 0, usd: float = 0.0, share: Share | None = None) -> Reservation:
        """Like `reserve`, but wait where requests in flight may still give enough back.

        Upper bounds are several times as large as real usage; without waiting, a run would end while most of its budget
        is only set aside.
        """
        pico = math.ceil(usd * _PICO)
        while True:
            try:
                return self.reserve(tokens=tokens, usd=usd, share=share)
            except BudgetExceeded:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                with self._lock:
                    nothing_in_flight = not self._reserved_tokens and not self._reserved_pico
                    if nothing_in_flight and self._obstacle(0, tokens, pico, share) is None:
                        continue
                    if nothing_in_flight or self._obstacle(0, tokens, pico, share, spent_only=True) is not None:
                        raise
                    self._waiters.append(waiter)
            await waiter

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work until the seconds of the budget are over; then cancel it.

        Raises:
            BudgetExceeded: They are over.
        """
        limit = None if self.budget is None else self.budget.seconds
        if limit is None:
            return await work
        try:
            if (left := limit - self.spent.seconds) > 0:
                return await within(work, left)
            work.close()
        except (TimeoutError, asyncio.TimeoutError):
            if limit > self.spent.seconds:
                raise
        raise BudgetExceeded(f"The {limit:g} seconds of the budget are over.")

    def limit_completions(self, completions: int) -> None:
        """Limit the completions of a budget that says nothing about them."""
        with self._lock:
            assert self.budget is not None
            self.budget = replace(self.budget, completions=completions)

    def charge(self, spent: Spent) -> None:
        """Count spending that had no reservation, such as the stored completions of a resumed run."""
        with self._lock:
            self._pico += _picodollars(spent.usd)
            self._judge_pico += _picodollars(spent.judge_usd)
            self._writer_pico += _picodollars(spent.writer_usd)
            self._rewriter_pico += _picodollars(spent.rewriter_usd)
            self._spent += spent

    def replay(self, completions: int, *, own: int) -> None:
        """Count stored completions that the run uses.

        Args:
            completions: How many, of this run and of others; their tokens and dollars are counted already.
            own: How many of them are of `stored`.
        """
        with self._lock:
            self.stored -= own
            self.charge(Spent(completions=completions))

    def _obstacle(
        self, completions: int, tokens: int, pico: int, share: Share | None = None, *, spent_only: bool = False
    ) -> str | None:
        """Say which limit an addition would exceed, None if it fits. Needs no lock to be safe, only to be exact."""
        budget = self.budget
        if budget is None:
            return None
        held = 0 if spent_only else 1
        if share == "writer" and (found := self._of_writers(budget, tokens, pico, held)) is not None:
            return found
        used = self._spent.completions + self.stored + held * self._reserved_completions
        if budget.completions is not None and completions and used + completions > budget.completions:
            return f"{completions} completions do not fit: {used} of {budget.completions} are spent or reserved."
        used = self._spent.tokens + self.others.tokens + held * self._reserved_tokens
        if budget.tokens is not None and used + tokens > budget.tokens:
            return f"Up to {tokens} tokens do not fit: {used} of {budget.tokens} are spent or reserved."
        used = self._pico + _picodollars(self.others.usd) + held * self._reserved_pico
        if budget.usd is not None and used + pico > math.floor(budget.usd * _PICO):
            return f"Up to {pico / _PICO} dollars do not fit: {used / _PICO} of {budget.usd} are spent or reserved."
        if budget.seconds is not None and self._clock() - self._start >= budget.seconds:
            return f"The {budget.seconds:g} seconds of the budget are over."
        return None

    def _of_writers(self, budget: Budget, tokens: int, pico: int, held: int) -> str | None:
        """Say which part of a limit that writers may take an addition of theirs would exceed, None if it fits."""
        used, most = self._spent.writer_tokens + held * self._writing[0], (budget.tokens or 0) // WRITERS
        if budget.tokens is not None and used + tokens > most:
            return f"Up to {tokens} tokens do not fit: writers have taken or reserved {used} of their {most} tokens."
        used, most = self._writer_pico + held * self._writing[1], math.floor((budget.usd or 0.0) * _PICO) // WRITERS
        if budget.usd is not None and used + pico > most:
            return (
                f"Up to {pico / _PICO} dollars do not fit: writers have taken or reserved {used / _PICO} of their "
                f"{most / _PICO} dollars."
            )
        return None

    def _count_writing(self, tokens: int, pico: int, share: Share | None) -> None:
        if share == "writer":
            self._writing = [self._writing[0] + tokens, self._writing[1] + pico]

    def _close(self, reservation: Reservation, spent: Spent) -> None:
        with self._lock:
            self._count_writing(-reservation.tokens, -reservation.picodollars, reservation.share)
            self._reserved_completions -= reservation.completions
            self._reserved_tokens -= reservation.tokens
            self._reserved_pico -= reservation.picodollars
            self.charge(spent)
            waiters, self._waiters = self._waiters, []
        beyond = []
        if self.bounds_requests and spent.tokens > reservation.tokens > 0:
            beyond.append(f"{spent.tokens} tokens instead of at most {reservation.tokens}")
        if spent.completions > reservation.completions:
            beyond.append(f"{spent.completions} completions instead of at most {reservation.completions}")
        if beyond:
            logger.warning("A request took more than its upper bound: %s.", "; ".join(beyond))
        for waiter in waiters:
            loop = waiter.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, waiter)


@dataclass(frozen=True)
class _Share:
    """A meter's share for one of the `Share`s; see `Meter.part`."""

    _meter: Meter
    _share: Share

    @property
    def budget(self) -> Budget | None:
        return self._meter.budget

    @property
    def bounds_requests(self) -> bool:
        return self._meter.bounds_requests

    async def areserve(self, *, tokens: int = 0, usd: float = 0.0) -> Reservation:
        return await self._meter.areserve(tokens=tokens, usd=usd, share=self._share)

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._meter.in_time(work)


def _picodollars(usd: float) -> int:
    """Return whole picodollars, rounded up so that no sum shown here is below the provider's."""
    return math.ceil(round(usd * _PICO, 3))


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
