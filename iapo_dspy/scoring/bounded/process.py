"""Processes that work for at most two seconds in at most 500 MB, and are killed where that is not enough."""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing.spawn
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from iapo_dspy.errors import ScoreError

T = TypeVar("T")
SECONDS = 1.5  # of wall time for one request, so that all that belongs to it stays below two
_BYTES = 500 * 2**20
_MOST = max(1, min(4, os.cpu_count() or 1))
_WORKER = Path(__file__).with_name("worker.py")


class TooMuchWork(ScoreError):
    """Work on an answer did not end within its limits of time and memory."""


class WorkError(ScoreError):
    """Work in another process raised an exception, whose name is the message."""


class _Process:
    """One process, which answers one request at a time."""

    def __init__(self, warm: Sequence[Sequence[Any]]) -> None:
        executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)
        self._command = [executable, "-I", str(_WORKER)]  # by its path: the user's main module is not run again
        self._popen = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        path = [entry or os.getcwd() for entry in sys.path]
        self._send({"path": path, "bytes": _BYTES, "seconds": SECONDS, "warm": warm})
        self._ready = False

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, request: Any) -> list[Any] | None:
        """Return the reply; None where the process ended instead.

        Raises:
            OSError: It ended before it could answer anything.
        """
        if not self._ready and self._receive() is None:
            raise OSError(f"{self._command} did not start: it ended with {self._popen.wait()}.")
        self._ready = True
        self._send(request)
        return self._receive()

    def _send(self, data: Any) -> None:
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: there will be no reply
            self._popen.stdin.write(json.dumps(data).encode() + b"\n")
            self._popen.stdin.flush()

    def _receive(self) -> list[Any] | None:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        reply: list[Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return reply

    def close(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self.leave()

    def leave(self) -> None:
        """Close the pipes; the process ends when nobody else has them open."""
        for pipe in (self._popen.stdin, self._popen.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._popen.returncode = self._popen.returncode or 0  # it is not waited for


class Processes:
    """A few processes for one kind of work, started when needed, used again, and ended with the interpreter.

    Any thread may ask. A process that ends, for whatever reason, is replaced at the next request.

    Args:
        warm: Requests that load what the work needs, before the first one counts.
        most: How many processes there are at most.
    """

    def __init__(self, warm: Sequence[Sequence[Any]], most: int = _MOST) -> None:
        self._warm = warm
        self._most = most
        self._idle: list[_Process] = []
        self._renew()

    def _renew(self) -> None:
        for process in self._idle:  # of the process that this one was forked from
            process.leave()
        self._owner = os.getpid()
        self._places = threading.BoundedSemaphore(self._most)
        self._idle = []

    def prepare(self) -> None:
        """Start a process, if there is none, and do not wait for it."""
        self._belong()
        if not self._idle:
            self._idle.append(_Process(self._warm))

    def run(self, task: str, *arguments: Any) -> Any:
        """Return the result of a task of `worker`.

        Args:
            task: Its name.
            *arguments: JSON data.

        Raises:
            TooMuchWork: It did not end within its limits.
            WorkError: It raised an exception.
            OSError: No process could be started.
        """
        self._belong()
        with self._places:
            process = self._take()
            try:
                reply = process.ask([task, *arguments])
            except BaseException:  # such as Ctrl-C: the reply would be taken for that of the next request
                process.close()
                raise
            if reply is None:
                process.close()
            else:
                self._idle.append(process)
        status, result = reply or ("limit", None)
        if status == "limit":
            raise TooMuchWork("It took more than two seconds or 500 MB to look at this answer.")
        if status == "error":
            raise WorkError(result)
        return result

    def bounded(self, task: str, *arguments: Any, again: Callable[[], T]) -> T:
        """Return the result of a task, or raise the exception that it raises.

        Args:
            task: See `run`.
            *arguments: See `run`.
            again: The same work in this process, for its exception: the other process has shown that it ends in time.

        Raises:
            TooMuchWork: It did not end within its limits.
            Exception: What the work raises.
        """
        try:
            result: T = self.run(task, *arguments)
            return result
        except WorkError:
            return again()

    def _belong(self) -> None:
        if self._owner != os.getpid():  # a forked child must not share its parent's pipes
            self._renew()

    def _take(self) -> _Process:
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                return _Process(self._warm)
            if process.alive:
                return process
            process.close()

    def close(self) -> None:
        """End all processes that have nothing to do."""
        while self._owner == os.getpid() and self._idle:
            self._idle.pop().close()


FORMULAS = Processes([("evaluate", [r"x^{2} + \sqrt{2}"])])
TEXTS = Processes([("valid", "true", 0)])
for processes in (FORMULAS, TEXTS):
    atexit.register(processes.close)
