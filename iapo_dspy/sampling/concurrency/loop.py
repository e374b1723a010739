"""One private event loop for all LM calls of the process, and daemon threads for programs.

A loop of its own makes the same code work in a script, in a worker thread and inside a running loop (a notebook). All
threads are daemons: an LM that never answers must not keep the interpreter from ending. The loop is never stopped:
LiteLLM keeps a worker task on it, which logs an error when it is cancelled and flushes itself at exit when it is not.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner: int | None = None
_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()
_POLL = 1.0  # seconds; a wait without a timeout cannot be interrupted by Ctrl-C on Windows
_FAREWELL = 5.0  # seconds that cancelled work gets to end


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the private loop; started at first use, and again in a forked child."""
    global _loop, _owner
    with _lock:
        if _loop is None or _loop.is_closed() or _owner != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="iapo-dspy-loop", daemon=True).start()
            _loop, _owner = loop, os.getpid()
        return _loop


def run_on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the private loop, in the caller's context, and wait for it.

    Raises:
        KeyboardInterrupt: After what was in flight has been cancelled.
    """
    loop = background_loop()
    if _running_loop() is loop:
        coroutine.close()
        raise RuntimeError("A coroutine on the sampling loop must await, not block; use the async form.")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        while not concurrent.futures.wait([future], timeout=_POLL).done:
            pass
    except BaseException:
        future.cancel()
        # Give cancelled tasks a moment to undo their reservations.
        concurrent.futures.wait([asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop)], timeout=_FAREWELL)
        raise
    return future.result()


async def await_on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the private loop and await it from any loop; cancelling the wait cancels the work."""
    loop = background_loop()
    if _running_loop() is loop:
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Mailbox:
    """Passes calls from threads to a loop, and wakes the loop once for all that have come meanwhile.

    `call_soon_threadsafe` writes to a pipe each time; the rollouts of a pull come in crowds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._calls: collections.deque[tuple[Callable[..., object], tuple[Any, ...]]] = collections.deque()
        self._called = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Mailbox:
        """Return the mailbox of a loop."""
        with _lock:
            if loop not in _mailboxes:
                _mailboxes[loop] = cls(loop)
            return _mailboxes[loop]

    def post(self, call: Callable[..., object], *args: Any) -> None:
        """Have the loop make a call soon; from any thread, in order.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._calls.append((call, args))
        # Append first, then look at the flag: `_open` clears the flag first, then looks into the box.
        if not self._called:
            self._called = True
            loop = self._loop()
            try:
                if loop is None:
                    raise RuntimeError("Event loop is closed")
                loop.call_soon_threadsafe(self._open)
            except RuntimeError:
                self._called = False
                raise

    def _open(self) -> None:
        self._called = False
        loop = self._loop()
        while self._calls and loop is not None:
            call, args = self._calls.popleft()
            loop.call_soon(call, *args)  # one by one: a call that raises must not stop the others


async def within(coroutine: Coroutine[Any, Any, T], seconds: float | None) -> T:
    """Await a coroutine for some seconds at most; without a task of its own, where Python has `asyncio.timeout`."""
    if sys.version_info >= (3, 11):
        async with asyncio.timeout(seconds):
            return await coroutine
    return await asyncio.wait_for(coroutine, seconds)
