"""One process at a time: a lock that the operating system ends with the process that holds it."""

from __future__ import annotations

import os
from pathlib import Path

import filelock

from iapo_dspy.errors import LedgerLocked

_PID_AT = 1 if os.name == "nt" else 0  # Windows locks the first byte, which nobody else can read then


def acquire(path: Path) -> filelock.BaseFileLock:
    """Take the lock file and note in it which process has it; `release()` lets go.

    Raises:
        LedgerLocked: Another process has it; the message says which.
    """
    holder = _holder(path)  # read first: some versions of filelock empty the file when they fail to take it
    lock = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise LedgerLocked(
            f"{path.parent} is in use by {f'process {holder}' if holder else 'another process'}. "
            "Wait for it to end, or choose another log_dir."
        ) from error
    try:
        with path.open("r+b", buffering=0) as file:
            file.truncate(_PID_AT)
            file.seek(_PID_AT)
            file.write(f"{os.getpid()}\n".encode())
    except OSError:
        lock.release()
        raise
    return lock


def _holder(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb", buffering=0) as file:
        file.seek(_PID_AT)
        return file.read(32).decode(errors="replace").strip()
