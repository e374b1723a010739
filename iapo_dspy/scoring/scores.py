"""From what a metric returns to a bounded score, and what one scored completion is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError, ScoreError

__all__ = ["Metric", "Scored", "as_score", "check_bounds"]

Metric = Callable[..., Any]
"""`metric(example, prediction, trace=None) -> bool | float | dspy.Prediction(score=...)`."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One completion as the algorithm sees it.

    Attributes:
        answer: Key of the answer that it votes for; None where there is no vote.
        scores: One score per objective (K); None for a failed completion.
        failure: Why it failed, in one line; None if it did not.
        error: True where an exception, rather than the text of the completion, made it fail.
    """

    answer: str | None = None
    scores: tuple[float, ...] | None = None
    failure: str | None = None
    error: bool = False


def check_bounds(bounds: tuple[float, float], what: str) -> tuple[float, float]:
    """Return the bounds as floats.

    Raises:
        ConfigurationError: They are not two finite numbers in ascending order.
    """
    try:
        low, high = (float(b) for b in bounds)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigurationError(
            f"{what}: bounds must be two finite numbers (low, high) with low < high, got {bounds!r}."
        )
    return low, high


def as_score(value: Any, *, what: str, bounds: tuple[float, float] = (0.0, 1.0)) -> float:
    """Read the value of a metric or objective as a score within its bounds.

    Args:
        value: A bool, a number, or a `dspy.Prediction` with a `score`.
        what: Who returned it, for the message.
        bounds: Lowest and highest score, both allowed.

    Raises:
        ScoreError: Anything else, NaN and infinities included.
    """
    if isinstance(value, dspy.Prediction):
        if "score" not in value:
            raise ScoreError(f"{what} returned a Prediction without a `score`; return dspy.Prediction(score=...).")
        value = value.score
    if not isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        raise ScoreError(f"{what} returned {value!r} ({type(value).__name__}); it must return a bool or a number.")
    score = float(value)
    low, high = bounds
    if not low <= score <= high:  # also catches NaN
        raise ScoreError(
            f"{what} returned {score}; scores must lie in [{low:g}, {high:g}]. Rescale it, or set `bounds`."
        )
    return score
