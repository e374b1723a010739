"""One result for several callers who ask for the same at the same time: only the first one does the work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Hashable, MutableMapping, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import cachetools

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Once(Generic[K, V]):
    """Works each key out once, however many threads ask. Thread-safe.

        >>> squares = Once()
        >>> squares(3, lambda: 3 * 3), squares(3, lambda: 1 / 0)
        (9, 9)

    Args:
        most: Results kept, of the keys used last; None keeps all.
        keep_errors: Whether a failure is a result as well. Otherwise the next one who asks tries again.
    """

    def __init__(self, most: int | None = None, *, keep_errors: bool = False) -> None:
        self._lock = threading.Lock()
        self._keep_errors = keep_errors
        self._results: MutableMapping[K, Future[V]] = {} if most is None else cachetools.LRUCache(most)

    def __call__(self, key: K, compute: Callable[[], V]) -> V:
        """Return the result of one key, computed here or by another caller.

        Raises:
            Exception: What `compute` raised. It must not ask for the same key.
        """
        return self.all([key], lambda _: [compute()])[0].result()

    def all(self, keys: Sequence[K], compute: Callable[[list[K]], Sequence[V]]) -> list[Future[V]]:
        """Return one result for each key, after computing in one go those that nobody has asked for yet.

        Args:
            keys: Keys, repeated or not.
            compute: New keys, each once -> their results, in the same order.

        Returns:
            Futures. Those of other callers may still be pending.

        Raises:
            Exception: What `compute` raised.
        """
        futures: dict[K, Future[V]] = {}
        new: list[K] = []
        with self._lock:
            for key in dict.fromkeys(keys):
                if key not in self._results:
                    new.append(key)
                    self._results[key] = Future()
                futures[key] = self._results[key]
        try:
            # This comes before this caller waits for others, because they may wait for these keys.
            results = compute(new) if new else ()
        except BaseException as error:
            with self._lock:
                for key in new if not self._keep_errors else ():
                    self._results.pop(key, None)
            for key in new:
                futures[key].set_exception(error)
            raise
        for key, result in zip(new, results, strict=True):
            futures[key].set_result(result)
        return [futures[key] for key in keys]


class AsyncOnce(Generic[K, V]):
    """Works each key out once, however many tasks of one event loop ask. A failure is not kept.

    Args:
        most: Results kept, of the keys used last. With 0, a result serves only the callers who wait for it.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._tasks: MutableMapping[K, asyncio.Task[V]] = cachetools.LRUCache(most) if most else {}

    async def __call__(self, key: K, compute: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return the result of one key. A caller that is cancelled does not take it away from the others.

        Raises:
            Exception: What `compute` raised.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(compute())
            task.add_done_callback(lambda done: self._settle(key, done))
        return await asyncio.shield(task)

    def _settle(self, key: K, done: asyncio.Task[V]) -> None:
        if done.cancelled() or done.exception() is not None or not self._most:
            self._tasks.pop(key, None)

    def cancel(self) -> None:
        """Give up what is still worked on."""
        for task in list(self._tasks.values()):
            task.cancel()
