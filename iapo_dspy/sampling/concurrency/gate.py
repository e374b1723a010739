"""Bound the requests in flight: as many as the provider bears, and never more than the user allows."""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Slot:
    """One place in flight; an asynchronous context manager that knows when its request was sent."""

    __slots__ = ("_gate", "sent")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.sent = 0.0

    async def __aenter__(self) -> Slot:
        """Wait for the place."""
        gate, within = self._gate, self._gate._within
        await gate._enter()
        if within is not None:
            try:
                await within._enter()
                while gate._wait() > 0:  # while it pauses, it must not keep others from this place
                    within._leave()
                    await gate._pause_over()
                    await within._enter()
            except asyncio.CancelledError:
                gate._leave()
                raise
        self.sent = gate._clock()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Give it back."""
        if self._gate._within is not None:
            self._gate._within._leave()
        self._gate._leave()

    def succeeded(self) -> None:
        """Say that the provider answered: a little more may be tried."""
        gate = self._gate
        if self.sent >= gate._halved and gate._width < gate.limit:
            gate._width = min(gate._width + 1.0 / gate._width, float(gate.limit))
            gate._admit()

    def throttled(self) -> None:
        """Say that the provider answered by a 429: half as much is tried from now on."""
        gate = self._gate
        if self.sent >= gate._halved:
            gate._halved = gate._clock()
            gate._width = max(gate._width / 2.0, float(gate._least))
            logger.info("The provider asks for less; at most %d requests are in flight now.", gate.width)


class Gate:
    """Bounds the requests in flight, and adapts the bound as TCP does its window.

    A 429 halves the width, but not below `least`, and at most once per round trip. Requests that were in flight
    together are refused for the same reason, so only a request that was sent after the last halving brings news. For
    the same reason only answers to such requests widen the gate: each adds 1 / width, which is one more place per round
    trip, up to the limit. A provider that asks for patience pauses all requests.

    Args:
        limit: Requests in flight at most, >= 1; where the width starts.
        least: The width never falls below it.
        within: A gate that bounds this one and others together. A provider that throttles one of them says nothing
            about the others.
        clock: Seconds that never go back; for tests.
    """

    def __init__(
        self,
        limit: int,
        *,
        least: int = 1,
        within: Gate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.in_flight = 0
        self._least = min(least, limit)
        self._within = within
        self._clock = clock
        self._width = float(limit)
        self._halved = float("-inf")
        self._queue: collections.deque[asyncio.Future[None]] = collections.deque()
        self._not_before = 0.0

    @property
    def width(self) -> int:
        """Requests that may be in flight now."""
        return int(self._width)

    def __call__(self) -> Slot:
        """Return a place to be held with `async with`."""
        return Slot(self)

    def pause(self, seconds: float) -> None:
        """Let no further request start for so long."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    async def _enter(self) -> None:
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
        except asyncio.CancelledError:
            self._leave()
            raise

    def _wait(self) -> float:
        return self._not_before - self._clock()

    async def _pause_over(self) -> None:
        while (wait := self._wait()) > 0:
            await asyncio.sleep(wait)

    def _leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._queue and self.in_flight < self.width:
            turn = self._queue.popleft()
            if not turn.done():  # a cancelled one has left by itself
                self.in_flight += 1
                turn.set_result(None)
