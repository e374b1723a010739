"""Daemon threads that are used again.

Starting a thread makes the starter wait until the new thread has run for the first time. On the event loop, where eight
rollouts of a pull start at once, that wait was most of what a pull took.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

__all__ = ["WORKERS", "Workers"]

_IDLE = 10.0  # seconds after which a thread without work ends


class Workers:
    """Runs every function at once: in a thread that has nothing to do, or else in a new one.

    There is no upper bound, because functions may wait for each other; who submits bounds them (`ThreadGate`). All
    threads are daemons: an LM that never answers must not keep the interpreter from ending.

    Args:
        idle: Seconds after which a thread without work ends.
    """

    def __init__(self, idle: float = _IDLE) -> None:
        self._idle = idle
        self._renew()

    @property
    def busy(self) -> int:
        """Threads that run a function now."""
        with self._lock:
            return self._busy

    def _renew(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._busy = 0
        self._free = 0  # threads that wait for work which nobody has promised them yet
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, function: Callable[[], None]) -> None:
        """Run a function, which must not raise, in a thread."""
        if self._process != os.getpid():  # a forked child has none of its parent's threads
            self._renew()
        with self._lock:
            found = self._free > 0
            self._free -= found
            self._busy += 1
        self._work.put(function)
        if not found:
            threading.Thread(target=self._serve, name="iapo-dspy-rollout", daemon=True).start()

    def _serve(self) -> None:
        while (function := self._next()) is not None:
            function()
            del function  # what it holds must not live until the next work arrives
            with self._lock:
                self._busy -= 1
                self._free += 1

    def _next(self) -> Callable[[], None] | None:
        while True:
            try:
                return self._work.get(timeout=self._idle)
            except queue.Empty:
                with self._lock:
                    if self._free > 0:
                        self._free -= 1
                        return None
                # All waiting threads are promised work that is about to arrive: this one takes its share.


WORKERS = Workers()
