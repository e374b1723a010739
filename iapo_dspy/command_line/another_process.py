"""A function that runs in a process of its own, beside this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, TypeVar

from iapo_dspy.errors import IAPOError

R = TypeVar("R")


class AnotherProcess(Generic[R]):
    """Runs a function in a process of its own from the start of the `with` block; the process ends with the block.

    Ctrl-C reaches this process alone. Where this process is killed, the other one ends too.

    Args:
        function: A function of a module; it and its arguments are sent to the process.
        *arguments: Its arguments.
    """

    def __init__(self, function: Callable[..., R], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._receiver, self._sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_send, args=(self._sender, function, arguments), daemon=True)

    def __enter__(self) -> AnotherProcess[R]:
        """Start the process."""
        blocks = hasattr(signal, "pthread_sigmask")  # not on Windows
        if blocks:
            resource_tracker.ensure_running()  # a start would start it, and unblocks SIGINT then
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else set()
        try:
            self._process.start()  # the process keeps what is blocked
        finally:
            if blocks:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._sender.close()
        return self

    def result(self) -> R:
        """Wait for the result.

        Raises:
            IAPOError: The process has ended without one; its error stands in the terminal.
        """
        try:
            found: R = self._receiver.recv()
        except EOFError as error:
            self._process.join()
            raise IAPOError(
                f"A process of the command has ended early, with exit code {self._process.exitcode}. "
                "Its own message stands above."
            ) from error
        return found

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self._receiver.close()


def _send(sender: Connection, function: Callable[..., R], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sender.send(function(*arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
