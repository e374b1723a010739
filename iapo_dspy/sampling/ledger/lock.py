"""One process at a time: a lock that the operating system ends with the process that holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from iapo_dspy.errors import LedgerLocked

__all__ = ["acquire"]


def acquire(path: Path) -> IO[bytes]:
    """Take the lock file; closing it lets go.

    Raises:
        LedgerLocked: Another process has it; the message says which.
    """
    file = path.open("a+b")
    try:
        _lock_file(file)
    except OSError as error:
        file.seek(0)
        holder = file.read(32).decode(errors="replace").strip()
        file.close()
        raise LedgerLocked(
            f"{path.parent} is in use by {f'process {holder}' if holder else 'another process'}. "
            "Wait for it to end, or choose another log_dir."
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    file.flush()
    return file


if os.name == "nt":  # pragma: no cover - not run on the machines that test this

    def _lock_file(file: IO[bytes]) -> None:
        import msvcrt

        # A byte far behind the content, so that the holder's number stays readable.
        file.seek(2**30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]

else:

    def _lock_file(file: IO[bytes]) -> None:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
