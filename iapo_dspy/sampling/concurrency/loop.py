"""One private event loop for all LM calls of the process, and daemon threads for programs.

A loop of its own makes the same code work in a script, in a worker thread and inside a running loop (a notebook). All
threads are daemons: an LM that never answers must not keep the interpreter from ending. The loop is never stopped:
LiteLLM keeps a worker task on it, which logs an error when it is cancelled and flushes itself at exit when it is not.
A loop that an exit has left goes on, and one that has died is replaced.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import logging
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from iapo_dspy.sampling.concurrency.contained import contained_wait, on_loop

logger = logging.getLogger(__name__)

T = TypeVar("T")
Calls = queue.SimpleQueue[Callable[[], object]]
"""Functions that a thread calls while it waits for the loop, in order."""

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_owner: int | None = None
_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()
_POLL = 1.0  # seconds; a wait without a timeout cannot be interrupted by Ctrl-C on Windows
_FAREWELL = 5.0  # seconds that cancelled work gets to end


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the private loop; started at first use, and again in a forked child or where it has died."""
    global _loop, _thread, _owner
    with _lock:
        if _loop is None or _thread is None or _owner != os.getpid() or not _thread.is_alive():
            if _loop is not None and _owner == os.getpid():
                logger.warning("The event loop of all LM calls had died; there is a new one.")
            loop = asyncio.new_event_loop()
            loop.set_default_executor(_Executor(thread_name_prefix="iapo-dspy-executor"))
            _thread = threading.Thread(target=_serve, args=(loop,), name="iapo-dspy-loop", daemon=True)
            _thread.start()
            _loop, _owner = loop, os.getpid()
        return _loop


class _Executor(concurrent.futures.ThreadPoolExecutor):
    """Runs the first part of each call of LiteLLM, which returns a coroutine with the rest."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Run a function; a coroutine that it returns may be dropped."""
        return super().submit(lambda: _droppable(fn(*args, **kwargs)))


def _droppable(result: Any) -> Any:
    return _Droppable(result) if asyncio.iscoroutine(result) else result


class _Droppable(Coroutine[Any, Any, Any]):
    """A coroutine that is closed where nobody awaits it: a call that is cancelled in its first part leaves one behind.

    Python would warn of it, once for every request that was in flight.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __del__(self) -> None:
        self._coroutine.close()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is closed, whatever its tasks raise or stop: it has the work of other runs on it."""
    while not loop.is_closed():
        try:
            loop.run_forever()
        except BaseException as error:  # noqa: BLE001 - the task that raised it has it, too
            logger.error("A task raised %s on the event loop of all LM calls.", type(error).__name__)


def _check_alive(loop: asyncio.AbstractEventLoop) -> None:
    thread = _thread
    if loop is not _loop or thread is None or not thread.is_alive():
        raise RuntimeError(
            "The event loop of all LM calls has died, and this call with it. The next one gets a new loop."
        )


def run_on_loop(coroutine: Coroutine[Any, Any, T], *, calls: Calls | None = None) -> T:
    """Run a coroutine on the private loop, in the caller's context, and wait for it.

    Args:
        coroutine: The work.
        calls: Where the work puts functions that are to be called in this thread meanwhile. An exception of theirs
            cancels the work, and is raised.

    Raises:
        KeyboardInterrupt: After what was in flight has been cancelled.
        RuntimeError: It was called on the loop itself, or the loop has died.
    """
    loop = background_loop()
    if _running_loop() is loop:
        coroutine.close()
        raise RuntimeError("A coroutine on the sampling loop must await, not block; use the async form.")
    news: Calls = queue.SimpleQueue() if calls is None else calls
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    future.add_done_callback(lambda _: news.put(bool))  # wakes the waiting thread
    try:
        while not future.done() or not news.empty():
            try:
                call = news.get(timeout=_POLL)
            except queue.Empty:
                _check_alive(loop)
            else:
                call()
    except BaseException:
        future.cancel()
        # Give cancelled tasks a moment to undo their reservations.
        concurrent.futures.wait([asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop)], timeout=_FAREWELL)
        raise
    return future.result()


async def await_on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the private loop and await it from any loop; cancelling the wait cancels the work.

    Raises:
        RuntimeError: The loop has died.
    """
    loop = background_loop()
    if _running_loop() is loop:
        return await coroutine
    future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))
    try:
        while not (await asyncio.wait([future], timeout=_POLL))[0]:
            _check_alive(loop)
    except BaseException:
        future.cancel()
        raise
    return future.result()


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
    """Await a coroutine for some seconds at most; without a task of its own, where Python has `asyncio.timeout`.

    Raises:
        CodeExited: It raised `SystemExit` or the like, which would take the loop with it.
    """
    try:
        if sys.version_info >= (3, 11):
            async with asyncio.timeout(seconds):
                return await coroutine
        return await asyncio.wait_for(contained_wait(coroutine), seconds)
    except BaseException as error:
        if (escaped := on_loop(error)) is error:
            raise
        raise escaped from error
