"""Strategies as plain JSON data: rebuild those that need no code of the user's, and compare others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iapo_dspy.scoring.answers.equality import saved_equality
from iapo_dspy.scoring.strategies.averages import Mean, Median
from iapo_dspy.scoring.strategies.port import Strategy
from iapo_dspy.scoring.strategies.vote import MajorityVote

_FUNCTIONS = ("normalize", "score", "equal")  # where a function of the user's is kept by its name


def rebuilt(data: Mapping[str, Any]) -> Strategy | None:
    """Rebuild a strategy that needs no code of the user's; None for others."""
    if functions_of(data):
        return None
    kind = data.get("kind")
    if kind == "majority_vote":
        equal = saved_equality(data.get("equal"))
        return MajorityVote(data["field"], equal=equal, bounds=tuple(data["bounds"]), strict=False)
    if kind in ("mean", "median"):
        if data.get("affine"):
            return Mean(data["field"], affine=True, bounds=tuple(data["bounds"]), strict=False)
        settings = {k: data[k] for k in ("label", "loss", "scale")}
        make = Mean if kind == "mean" else Median
        return make(data["field"], range=tuple(data["range"]), **settings, strict=False)
    return None


def functions_of(data: Any) -> list[str]:
    """Return the names of the user's functions in a strategy's data, wherever they are."""
    if isinstance(data, Mapping):
        own = [data[k] for k in _FUNCTIONS if isinstance(data.get(k), str)]
        return own + [name for v in data.values() for name in functions_of(v)]
    return [name for v in data for name in functions_of(v)] if isinstance(data, (list, tuple)) else []


def without_functions(data: Any) -> Any:
    """Return a strategy's data without the names of its functions, and without the scales that a run has learnt."""
    if isinstance(data, Mapping):
        return {
            k: "a function" if k in _FUNCTIONS and isinstance(v, str) else without_functions(v)
            for k, v in data.items()
            if k != "calibration"
        }
    return [without_functions(v) for v in data] if isinstance(data, (list, tuple)) else data
