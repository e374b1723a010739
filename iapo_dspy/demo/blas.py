"""Keep numpy's BLAS to one thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np  # noqa: F401 - the controller finds the libraries that are loaded
from threadpoolctl import ThreadpoolController

_controller = ThreadpoolController()
_lock = threading.Lock()
_users = 0
_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread until the last of those who ask for it is done.

    The matrices of this model are too small for several threads, which wait for each other by spinning. On busy cores
    that is ten times slower.
    """
    global _users, _limit
    with _lock:
        if _users == 0:
            _limit = _controller.limit(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.restore_original_limits()
