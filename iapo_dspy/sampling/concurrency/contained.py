"""Keep exits that a user's function raises from ending a thread, the shared event loop or the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


class CodeExited(RuntimeError):
    """A user's function raised `SystemExit` or another exception that no `except Exception` catches."""


class contained:  # noqa: N801  # it is used as `contextlib.suppress` is
    """Calls a user's function: what it raises is an `Exception`, so that it can fail one completion.

        with contained():
            score = metric(example, prediction)

    A `KeyboardInterrupt` in the main thread passes: there it is the user's Ctrl-C.

    Raises:
        CodeExited: Instead of `SystemExit`, `asyncio.CancelledError`, `GeneratorExit` and the like.
    """

    def __enter__(self) -> None:
        """Begin to watch."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Turn an exit into an error."""
        if error is not None and not isinstance(error, Exception) and not _is_ctrl_c(error):
            raise exited(error) from error


def exited(error: BaseException) -> CodeExited:
    """Return an ordinary error that stands for an exit."""
    return CodeExited(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _is_ctrl_c(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def on_loop(error: BaseException) -> BaseException:
    """Return an exception of a user's coroutine as it may leave a task: an exit would take the loop with it.

    A task that was cancelled from outside is cancelled as ever.
    """
    if isinstance(error, (Exception, GeneratorExit)):  # the latter is the end of the coroutine itself
        return error
    asked = getattr(asyncio.current_task(), "cancelling", None)  # Python 3.11 knows who cancelled
    if isinstance(error, asyncio.CancelledError) and (asked is None or asked()):
        return error
    return exited(error)


async def contained_wait(work: Awaitable[T]) -> T:
    """Await a user's coroutine on the shared loop.

    Raises:
        CodeExited: Instead of `SystemExit` and the like.
    """
    try:
        return await work
    except BaseException as error:
        if (escaped := on_loop(error)) is error:
            raise
        raise escaped from error
