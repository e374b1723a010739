"""Collect calls of many threads into few batches, without a clock: calls that come while a batch runs form the next."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741  # item
R = TypeVar("R")


class MicroBatcher(Generic[I, R]):
    """Runs a function of batches for callers that have one item each. Thread-safe.

    A call that finds nothing running runs at once and alone: it does not wait for company. Calls that come meanwhile
    wait. One of them then takes as many as fit, first come first served. There is no thread and no timer.

    Args:
        run: Items -> results, in the same order; one batch at a time.
        size: Items of a batch at most, >= 1.
    """

    def __init__(self, run: Callable[[Sequence[I]], Sequence[R]], size: int) -> None:
        self._run = run
        self._size = size
        self._running = threading.Lock()
        self._waiting: collections.deque[tuple[I, Future[R]]] = collections.deque()

    def __call__(self, item: I) -> R:
        """Return the result of one item.

        Raises:
            Exception: The error of this item alone. A batch that fails is run again one by one, so that an item that
                cannot be worked on does not take others with it.
        """
        future: Future[R] = Future()
        self._waiting.append((item, future))
        while not future.done():
            with self._running:
                if not future.done():
                    self._work([self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))])
        return future.result()

    def _work(self, batch: Sequence[tuple[I, Future[R]]]) -> None:
        """Give every item of a batch its result or its error."""
        try:
            self._settle(batch)
        except BaseException as error:
            for future in (f for _, f in batch if not f.done()):
                future.set_exception(RuntimeError(f"The batch was stopped: {type(error).__name__}."))
            raise

    def _settle(self, batch: Sequence[tuple[I, Future[R]]]) -> None:
        try:
            settled = list(zip(batch, self._run([item for item, _ in batch]), strict=True))
        except Exception as error:  # noqa: BLE001  # handed to the callers
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for each in batch:
                self._settle([each])
        else:
            for (_, future), result in settled:
                future.set_result(result)
