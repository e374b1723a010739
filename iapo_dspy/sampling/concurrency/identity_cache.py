"""A small memory of things made for objects, by identity."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["IdentityCache"]

V = TypeVar("V")


class IdentityCache(Generic[V]):
    """Keeps what was made for the objects used last. Thread-safe.

    Objects are kept alive beside what was made for them: an id is only unique among living objects.

    Args:
        size: Entries at most.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._lock = threading.RLock()
        self._entries: OrderedDict[int, tuple[Any, V]] = OrderedDict()

    def get(self, owner: Any, make: Callable[[], V], fresh: Callable[[V], bool] = lambda _: True) -> V:
        """Return what was made for `owner`, made anew where there is nothing or it is not fresh."""
        with self._lock:
            entry = self._entries.get(id(owner))
            if entry is None or not fresh(entry[1]):
                entry = (owner, make())
                self._entries[id(owner)] = entry
                while len(self._entries) > self._size:
                    self._entries.popitem(last=False)
            self._entries.move_to_end(id(owner))
            return entry[1]
