"""A disk of limited size, as a ledger sees it."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from iapo_dspy.sampling.ledger.ledger import Ledger


class LimitedFile(io.FileIO):
    """A file in a folder that may hold so many bytes in all; a write that does not fit is written in part."""

    def __init__(self, path: Path, capacity: int) -> None:
        super().__init__(path, "ab")
        self._folder, self._capacity = path.parent, capacity

    def write(self, data: Any, /) -> int:
        room = self._capacity - sum(p.stat().st_size for p in self._folder.iterdir())
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(bytes(data)[:room])


def limit(ledger: Ledger, room: int) -> None:
    """Leave so much room to an open ledger, beside what is there now."""
    used = sum(p.stat().st_size for p in ledger.path.parent.iterdir())
    ledger._file.close()
    ledger._file = LimitedFile(ledger.path, used + room)


@contextmanager
def nearly_full_disk(room: int) -> Iterator[None]:
    """Leave so much room to every ledger that is opened."""
    opened = Ledger.open

    def limited(*args: Any, **kwargs: Any) -> Ledger:
        ledger = opened(*args, **kwargs)
        limit(ledger, room)
        return ledger

    with mock.patch.object(Ledger, "open", limited):
        yield
