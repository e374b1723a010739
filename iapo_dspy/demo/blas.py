"""Numpy's own BLAS, kept to one thread."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np


class _BlasThreads:
    """How many threads numpy's own OpenBLAS uses; shared by all users of `one_blas_thread`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0
        self._set, self._get = self._find()

    @staticmethod
    def _find() -> tuple[Callable[[int], object] | None, Callable[[], int] | None]:
        package = Path(np.__file__).parent
        for folder in (package.parent / "numpy.libs", package / ".dylibs"):
            for path in sorted(folder.glob("*openblas*")):
                try:
                    library = ctypes.CDLL(str(path))
                except OSError:
                    continue
                for prefix, suffix in itertools.product(("scipy_openblas", "openblas"), ("64_", "")):
                    found = [getattr(library, f"{prefix}_{verb}_num_threads{suffix}", None) for verb in ("set", "get")]
                    if all(found):
                        return found[0], found[1]
        return None, None

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1 and self._set and self._get:
                self._before = int(self._get())
                self._set(1)

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._set:
                self._set(self._before)


@lru_cache(maxsize=1)
def _blas_threads() -> _BlasThreads:
    return _BlasThreads()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps numpy's OpenBLAS to one thread for a while.

    The matrices of this model are too small for several: their threads wait for each other by spinning, which on busy
    cores is ten times slower. Does nothing where numpy uses another library.
    """
    threads = _blas_threads()
    threads.enter()
    try:
        yield
    finally:
        threads.leave()
