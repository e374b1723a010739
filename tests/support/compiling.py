"""Optimizers of small worlds: a test names only the settings that are its own."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

from iapo_dspy import IAPO, Execution, MajorityVote, Preference, Search
from tests.support.worlds import INSTRUCTIONS, exact

PREFERENCES = [Preference("quality", cost=0.0), Preference("thrifty", cost=30.0)]


def iapo(**settings: Any) -> IAPO:
    """Return an optimizer; what belongs into `Search` and `Execution` is named beside the other settings."""
    for place, kind in (("search", Search), ("execution", Execution)):
        names = settings.keys() & {f.name for f in dataclasses.fields(kind)}
        settings[place] = kind(**{name: settings.pop(name) for name in names})
    with warnings.catch_warnings():
        if callable(settings["execution"].progress):  # what it raises ends the run, which callbacks cannot
            warnings.simplefilter("ignore", DeprecationWarning)
        return IAPO(**settings)


def optimizers(**common: Any) -> Callable[..., IAPO]:
    """Return a function that makes optimizers with these settings, and with those that it is given.

    Without them: a majority vote over sums, the three instructions of `worlds`, a preference for quality and a thrifty
    one, N up to 4. Preferences may be given by position.
    """

    def optimizer(*preferences: Preference, **own: Any) -> IAPO:
        settings: dict[str, Any] = {
            "metric": exact,
            "strategy": MajorityVote("answer"),
            "preferences": PREFERENCES,
            "candidates": INSTRUCTIONS,
            "max_n": 4,
            "progress": False,
        }
        if preferences:
            own["preferences"] = preferences
        return iapo(**(settings | common | own))

    return optimizer
