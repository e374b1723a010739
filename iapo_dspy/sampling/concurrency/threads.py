"""Daemon threads that are used again.

Starting a thread makes the starter wait until the new thread has run for the first time. On the event loop, where eight
rollouts of a pull start at once, that wait was most of what a pull took.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial

from iapo_dspy.sampling.concurrency.contained import exited
from iapo_dspy.sampling.concurrency.loop import Mailbox, T

_IDLE = 10.0  # seconds after which a thread without work ends


class Workers:
    """Runs every function at once: in a thread that has nothing to do, or else in a new one.

    There is no upper bound, because functions may wait for each other; callers bound them by a `ThreadGate`. All
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
        self._free = 0  # waiting threads that no work is on its way to
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
            del function  # its objects must not live until the next work arrives
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
                # Work is on its way to every waiting thread: this one waits on.


WORKERS = Workers()


def in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in a daemon thread, in a copy of the current context; await the result on this loop.

    Raises:
        CodeExited: When awaited: the function raised `SystemExit` or the like.
    """
    loop = asyncio.get_running_loop()
    mailbox = Mailbox.of(loop)
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(settle: Callable[[], None]) -> None:
        if not future.done():
            settle()

    def work() -> None:
        try:
            settle = partial(future.set_result, context.run(function))
        except BaseException as caught:  # noqa: BLE001 - handed to the awaiting task, which decides
            # A future refuses StopIteration, and an exit asked for by a program must not end the loop.
            plain = isinstance(caught, Exception) and not isinstance(caught, StopIteration)
            settle = partial(future.set_exception, caught if plain else exited(caught))
        if not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop was closed between the check and the call
                mailbox.post(deliver, settle)

    WORKERS.submit(work)
    return future


class ThreadGate:
    """Admits whole groups of threads, first come first served.

    The rollouts of one pull wait for each other, so all of them must be able to run at once: half a group admitted
    would wait for the other half forever. A group larger than the limit runs alone.

    Args:
        limit: Threads at most, unless one group alone needs more.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._queue: list[tuple[int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def __call__(self, size: int) -> AsyncIterator[None]:
        """Hold `size` threads."""
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, ticket)
        self._queue.append(entry)
        self._admit()
        try:
            await ticket
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
            elif ticket.done() and not ticket.cancelled():
                self._leave(size)
            self._admit()
            raise
        try:
            yield
        finally:
            self._leave(size)

    def _leave(self, size: int) -> None:
        self._used -= size
        self._admit()

    def _admit(self) -> None:
        while self._queue and (not self._used or self._used + self._queue[0][0] <= self.limit):
            size, ticket = self._queue.pop(0)
            if ticket.done():  # its pull was cancelled while it waited
                continue
            self._used += size
            ticket.set_result(None)
