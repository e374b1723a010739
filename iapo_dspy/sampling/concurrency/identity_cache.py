"""A small cache of values made for objects, by identity."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cachetools import LRUCache

V = TypeVar("V")


class IdentityCache(Generic[V]):
    """Keeps the values of the objects used last. Thread-safe.

    Each object is kept alive beside its value: an id is only unique among living objects.

    Args:
        size: Entries at most.
    """

    def __init__(self, size: int = 256) -> None:
        self._lock = threading.RLock()
        self._entries: LRUCache[int, tuple[Any, V]] = LRUCache(size)

    def get(self, owner: Any, make: Callable[[], V], fresh: Callable[[V], bool] = lambda _: True) -> V:
        """Return the value of `owner`; make it where there is none, or the one there is not fresh."""
        with self._lock:
            entry = self._entries.get(id(owner))
            if entry is None or not fresh(entry[1]):
                entry = self._entries[id(owner)] = (owner, make())
            return entry[1]
