"""What completions of one call have in common is worked out once, however many threads read them."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["once", "sharing"]

T = TypeVar("T")
_SHARED: contextvars.ContextVar[_Shared | None] = contextvars.ContextVar("iapo_shared", default=None)


class _Shared:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: dict[Hashable, Future[Any]] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        with self._lock:
            future = self._results.get(key)
            mine = future is None
            if future is None:
                future = self._results[key] = Future()
        if mine:
            try:
                future.set_result(compute())
            except BaseException as error:
                future.set_exception(error)
                raise
        result: T = future.result()
        return result


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Let everything within, also in threads that copy the context, share what `once` computes."""
    token = _SHARED.set(_Shared())
    try:
        yield
    finally:
        _SHARED.reset(token)


def once(key: Hashable, compute: Callable[[], T]) -> T:
    """Return what was computed under this key within `sharing`, an error included; outside of it, compute.

    Args:
        key: Equal keys have equal results.
        compute: Must not call `once` with the same key.
    """
    shared = _SHARED.get()
    return compute() if shared is None else shared.once(key, compute)
