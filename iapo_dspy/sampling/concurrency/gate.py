"""Bound the requests in flight: as many as the provider bears, one at a time while it is down, and never too many.

One gate belongs to one deployment, so what one of them does holds up no other.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Callable

from iapo_dspy.errors import ProviderDown, one_line

logger = logging.getLogger(__name__)

_FEW = 3  # refusals that are not a crowd, however narrow the gate is
_ROUND_TRIP = 8  # answers that are looked at together at least
_LONGEST_HOLD = 15  # round trips between two tries of a width that is not known to be borne
_OPENS = 5  # failures in a row, without an answer to any request in between, after which a provider is down
_LOOKS_AGAIN = 0.25  # seconds after which a request that waits for a probe looks again
_FIRST_PROBE, _LAST_PROBE = 0.5, 30.0  # seconds between two probes, at first and at most


class Slot:
    """One place in flight; an asynchronous context manager that knows when its request was sent."""

    __slots__ = ("_gate", "_is_probe", "sent")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._is_probe = False
        self.sent = 0.0

    async def __aenter__(self) -> Slot:
        """Wait for the place.

        Raises:
            ProviderDown: The provider was down for longer than the gate's patience.
        """
        gate, within = self._gate, self._gate._within
        await gate._enter()
        if within is not None:
            try:
                await within._enter()
                while gate._pauses():  # meanwhile it must not keep others from this place
                    within._leave()
                    await gate._pause_over()
                    await within._enter()
            except BaseException:
                gate._leave()
                raise
        self._is_probe = gate._probing = gate.is_down
        self.sent = gate.now()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Give it back."""
        if self._is_probe:
            self._gate._probing = False
            self._gate._change()
        if self._gate._within is not None:
            self._gate._within._leave()
        self._gate._leave()

    def succeeded(self) -> None:
        """Say that the provider answered the request."""
        gate = self._gate
        self.answered()
        if self.sent >= gate._resized:
            gate._count(refused=False)

    def answered(self) -> None:
        """Say that the provider answered, if only to refuse this one request: it is not down."""
        self._gate._close()

    def throttled(self, asked: float | None = None) -> None:
        """Say that the provider answered by a 429, and for how many seconds it asked.

        A request that is refused while others are answered waits for itself. Only a crowd of refusals narrows the gate
        and makes all requests wait.
        """
        gate = self._gate
        gate._in_trouble()
        if self.sent >= gate._resized:
            crowd = gate._count(refused=True)
        else:  # it was in flight when the width was changed
            crowd = gate._wait() > 0
        if crowd and asked is not None:
            gate.pause(asked)

    def failed(self, error: BaseException) -> None:
        """Say that the provider was not reached, broke off, or failed by itself (5xx)."""
        self._gate._fail(error, sent=self.sent)


class Gate:
    """Bounds the requests in flight, adapts the bound as TCP does its window, and breaks the circuit of an outage.

    Each round trip (`width` answers, at least 8) is judged by its share of 429s. A width is borne where the share is at
    most a fifth. Then the gate is widened by 1, 2, 4, ... places, up to the limit, if at least half of its places are
    in use. A wider gate that is not borne goes back to the widest one that was, and rests for 1, 3, 7 and at last 15
    round trips before it tries again. So it stays near what the provider bears, and seldom asks whether that is more
    by now. Where more than a third is refused at a width that was borne, the provider bears less than before: the width
    is halved, but not below `least`, and at most once per round trip, because requests that were in flight together
    are refused for the same reason. If the provider asked for patience, all requests pause for as long.

    With a patience, failures in a row without any answer break the circuit: from then on one request at a time is
    sent, after growing pauses. The first one that is answered closes the circuit. An outage that lasts longer ends all
    requests with `ProviderDown`.

    Args:
        limit: Requests in flight at most, >= 1; where the width starts.
        least: The width never falls below it.
        within: A gate that bounds this one and others together.
        name: Of the deployment, for messages.
        patience: Seconds for which requests wait for a provider that is down; None sends them all the same.
        clock: Seconds that never go back; for tests.

    Attributes:
        in_flight: Requests in flight.
        has_answered: Whether there ever was an answer.
        outage: Why requests are given up; None while they are not.
    """

    def __init__(
        self,
        limit: int,
        *,
        least: int = 1,
        within: Gate | None = None,
        name: str = "The provider",
        patience: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.patience = patience
        self.in_flight = 0
        self.has_answered = False
        self.outage: str | None = None
        self.now = clock
        self._least = min(least, limit)
        self._within = within
        self._name = name
        self._width = self._known_width = float(limit)  # the latter is the widest that the provider is known to bear
        self._step = 1.0  # by which it is widened next
        self._hold = self._next_hold = 0  # round trips before it is widened: left, and after the next refusal
        self._resized = float("-inf")  # when the width was changed; what was sent earlier says nothing about it
        self._seen = self._refused = 0  # answers of this round trip, and 429s among them
        self._queue: collections.deque[asyncio.Future[None]] = collections.deque()
        self._not_before = 0.0
        self._last_answer = float("-inf")
        self._trouble_since: float | None = None  # when the first request failed after the last answer
        self._failures = 0  # in a row
        self._opened: float | None = None  # when the circuit was broken
        self._probes = 0  # that failed since then
        self._probing = False  # whether one is in flight
        self._probe_at = 0.0
        self._changed = asyncio.Event()

    @property
    def width(self) -> int:
        """Requests that may be in flight now."""
        return 1 if self.is_down else int(self._width)

    @property
    def is_down(self) -> bool:
        """Whether the circuit is broken: one request at a time is sent."""
        return self._opened is not None and self.outage is None

    def __call__(self) -> Slot:
        """Return a place to be held with `async with`."""
        return Slot(self)

    def answered_since(self, moment: float) -> bool:
        """Whether any request was answered after a moment of the gate's clock."""
        return self._last_answer > moment

    def lose_patience(self, error: BaseException, *, retries: int, tries: int, asked: float | None = None) -> None:
        """Give up all requests if the provider has not answered for too long; called after a failure.

        A provider that has never answered is given up after a few tries: its address may be wrong.

        Args:
            error: The failure.
            retries: Tries after the first one, for a provider that has never answered.
            tries: Tries of the request that failed.
            asked: Seconds that the provider asks to wait.

        Raises:
            ProviderDown: The requests are given up.
        """
        enough = max(retries, 2)  # one failure, or two, may be chance
        if self.patience is None or self._trouble_since is None or max(tries - 1, self._probes) < enough:
            return
        silent, wait = self.now() - self._trouble_since, max(asked or 0.0, self._wait(), 0.0)
        if not self.has_answered and asked is None:
            self._give_up(f"has not answered once ({one_line(error)})")
        elif silent + wait > self.patience:
            self._give_up(f"has not answered for {silent:.0f} seconds ({one_line(error)})")
        self._check()

    def _give_up(self, reason: str) -> None:
        if self.outage is None:
            self.outage = f"{self._name} {reason}"
            self._change()
            self._admit()

    def _change(self) -> None:
        """Wake those who wait for the end of a pause, to look again."""
        self._changed.set()
        self._changed.clear()

    def _check(self) -> None:
        if self.outage is not None:
            raise ProviderDown(f"{self.outage}.")

    def _fail(self, error: BaseException, *, sent: float) -> None:
        self._failures += 1
        now = self._in_trouble()
        if self.patience is None:
            return
        if self._opened is None:
            if self._failures >= _OPENS:
                self._opened, self._probes, self._probe_at = now, 0, now + _FIRST_PROBE
                logger.warning(
                    "%s does not answer (%s). Its requests wait until it does, for %.0f seconds at most.",
                    self._name, one_line(error), self.patience,
                )  # fmt: skip
        elif sent > self._opened:
            self._probes += 1
            self._probe_at = now + min(_FIRST_PROBE * 2.0 ** min(self._probes, 16), _LAST_PROBE)

    def _in_trouble(self) -> float:
        now = self.now()
        if self._trouble_since is None:
            self._trouble_since = now
        return now

    def _close(self) -> None:
        """Note an answer; after an outage, let requests in again, few at first."""
        self.has_answered, self._last_answer = True, self.now()
        self._trouble_since, self._failures = None, 0
        if self.is_down and self._opened is not None:
            logger.warning("%s answers again, after %.0f seconds.", self._name, self.now() - self._opened)
            self._opened, self._probe_at = None, 0.0
            self._width = float(self._least)
            self._change()
            self._admit()

    def _count(self, *, refused: bool) -> bool:
        """Count an answer of this round trip, adapt the width, and return whether it was refused in a crowd."""
        self._seen += 1
        self._refused += refused
        if not refused and self._width < self._known_width:  # after an outage
            self._width += 1.0
            self._admit()
        crowd = self._refused > max(_FEW, self._width / 3.0)
        if not crowd and self._seen < max(self._width, _ROUND_TRIP):
            return False
        borne = self._refused <= max(1.0, self._seen / 5.0)
        self._seen = self._refused = 0
        if crowd or (self._width > self._known_width and not borne):
            self._narrow()
        elif borne and self.in_flight >= self._width / 2.0:
            self._widen()
        return crowd

    def _narrow(self) -> None:
        """Go back to the width that is known to be borne, or halve it if it is no longer borne."""
        if self._width > self._known_width:
            self._width = self._known_width
            self._next_hold = min(2 * self._next_hold + 1, _LONGEST_HOLD)
        else:
            self._width = self._known_width = max(self._width / 2.0, float(self._least))
            self._next_hold = 0
        self._hold, self._step, self._resized = self._next_hold, 1.0, self.now()
        logger.info("%s asks for less; at most %d requests are in flight now.", self._name, self.width)

    def _widen(self) -> None:
        """Note that the width is borne, and try a larger one if it is time."""
        self._known_width = max(self._known_width, self._width)
        if self._hold:
            self._hold -= 1
        elif self._width < self.limit:
            self._width, self._resized = min(self._width + self._step, float(self.limit)), self.now()
            self._step *= 2.0
            self._admit()

    def pause(self, seconds: float) -> None:
        """Let no further request start for so long."""
        self._not_before = max(self._not_before, self.now() + seconds)

    async def _enter(self) -> None:
        self._check()
        if self.in_flight < self.width and not self._queue:
            self.in_flight += 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn  # the caller that admits it has counted it already
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave()
                raise
        try:
            await self._pause_over()
        except BaseException:
            self._leave()
            raise

    def _wait(self) -> float:
        """Return the seconds until the next request may start."""
        return max(self._not_before, self._probe_at) - self.now()

    def _pauses(self) -> bool:
        self._check()
        return self._wait() > 0 or (self.is_down and self._probing)

    async def _pause_over(self) -> None:
        while self._pauses():
            wait = self._wait()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                # Up to Python 3.11 `wait_for` begins to wait a little later, and a change in between is not seen.
                await asyncio.wait_for(self._changed.wait(), wait if wait > 0 else _LOOKS_AGAIN)

    def _leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._queue and self.in_flight < self.width:
            turn = self._queue.popleft()
            if not turn.done():  # a cancelled one has left by itself
                self.in_flight += 1
                turn.set_result(None)
