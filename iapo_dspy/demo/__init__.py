"""A real, tiny language model and two tasks to try the whole path offline in seconds.

The model has about a million parameters and was trained from scratch for these tasks. It is a fixture for the path from
DSPy's prompt through LiteLLM to sampling, parsing and aggregation. It is **no evidence about large language models**.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "DemoServer": "server",
    "DemoTask": "tasks",
    "addition_task": "tasks",
    "lm": "provider",
    "register": "provider",
    "splitting_task": "tasks",
}

__all__ = ["DemoServer", "DemoTask", "addition_task", "lm", "register", "splitting_task"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
