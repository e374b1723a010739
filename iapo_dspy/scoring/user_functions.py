"""Functions of the user: their names, and whether they can be called as they will be."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def name_of(function: Any) -> str:
    """Return the name of a callable."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def misfit(function: Callable[..., Any]) -> str | None:
    """Return the signature of a function that cannot be called with two arguments; None if it can."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None  # not introspectable (a builtin): the probe before the run will tell
    try:
        signature.bind(object(), object())
    except TypeError:
        return str(signature)
    return None
