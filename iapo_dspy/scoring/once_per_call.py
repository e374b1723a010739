"""Facts that all completions of one call share are worked out once, however many threads read them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

from iapo_dspy.sampling.concurrency.once import Once

T = TypeVar("T")
_SHARED: contextvars.ContextVar[Once[Hashable, Any] | None] = contextvars.ContextVar("iapo_shared", default=None)


@contextlib.contextmanager
def sharing(shared: Once[Hashable, Any] | None = None) -> Iterator[None]:
    """Let everything within, also in threads that copy the context, share what `once` computes.

    Args:
        shared: What was computed before, such as in the first wave of a call; None for nothing.
    """
    token = _SHARED.set(shared if shared is not None else Once(keep_errors=True))
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
    result: T = compute() if shared is None else shared(key, compute)
    return result
