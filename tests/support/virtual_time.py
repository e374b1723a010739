"""An event loop that does not wait: where nothing is ready, its clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class _Jumps(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(timeout or 0.0, 0.0)
        return super().select(0)


class _VirtualTime(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumps = _Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now


def run_in_virtual_time(work: Callable[[Callable[[], float]], Awaitable[T]]) -> T:
    """Run a coroutine function, which is given the clock in seconds."""
    loop = _VirtualTime()
    try:
        return loop.run_until_complete(work(loop.time))
    finally:
        loop.close()
