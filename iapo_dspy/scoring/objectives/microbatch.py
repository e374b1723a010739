"""Calls of many threads as few batches, without a clock: whoever comes while a batch runs is in the next one."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["MicroBatcher"]

I = TypeVar("I")  # noqa: E741  # item
R = TypeVar("R")


class _Entry(Generic[I, R]):
    __slots__ = ("done", "error", "item", "result")

    def __init__(self, item: I) -> None:
        self.item = item
        self.done = False
        self.result: R | None = None
        self.error: BaseException | None = None


class MicroBatcher(Generic[I, R]):
    """Runs a function of batches for callers that have one item each. Thread-safe.

    A call that finds nothing running runs at once, alone: nobody waits for company. Calls that come meanwhile wait and
    are taken together, first come first served, by one of them. There is no thread and no timer of its own.

    Args:
        run: Items -> results, in the same order; one batch at a time.
        size: Items of a batch at most, >= 1.
    """

    def __init__(self, run: Callable[[Sequence[I]], Sequence[R]], size: int) -> None:
        self._run = run
        self._size = size
        self._changed = threading.Condition()
        self._waiting: collections.deque[_Entry[I, R]] = collections.deque()
        self._busy = False

    def __call__(self, item: I) -> R:
        """Return the result of one item.

        Raises:
            Exception: What the function raised for this item alone: a batch that fails is run again one by one, so
                that an item that cannot be worked on takes no other with it.
        """
        entry: _Entry[I, R] = _Entry(item)
        with self._changed:
            self._waiting.append(entry)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: entry.done or not self._busy)
                if entry.done:
                    break
                self._busy = True
                batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            try:
                self._work(batch)
            finally:
                with self._changed:
                    for each in batch:
                        each.done = True
                    self._busy = False
                    self._changed.notify_all()
        if entry.error is not None:
            raise entry.error
        return entry.result  # type: ignore[return-value]  # it is done without an error

    def _work(self, batch: Sequence[_Entry[I, R]]) -> None:
        try:
            results = self._run([each.item for each in batch])
            for each, result in zip(batch, results, strict=True):
                each.result = result
        except Exception as error:  # noqa: BLE001  # handed to whom it belongs
            if len(batch) == 1:
                batch[0].error = error
                return
            for each in batch:
                self._work([each])
        except BaseException as error:
            for each in batch:
                each.error = RuntimeError(f"The batch was stopped: {type(error).__name__}.")
            raise
