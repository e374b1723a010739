"""Scores: read from the value that a metric returns, and kept with a completion."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError, ScoreError

Metric = Callable[..., Any]
"""`metric(example, prediction, trace=None) -> bool | float | dspy.Prediction(score=...)`."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One completion as the algorithm sees it.

    Attributes:
        answer: Key of the answer that it votes for; None where there is no vote.
        scores: One score per column of the strategy (K), its objectives first; when deployed, the label-free ones. None
            for a completion that could not be read.
        failure: Why it failed, in one line; None if it did not. With scores, the metric could not score it: it takes
            part as it does when deployed, where there is no metric, and is worth the metric's lowest value.
        error: True where an exception, rather than the text of the completion, made it fail.
        value: The answer itself, for strategies that compare answers by more than their keys; never stored.
    """

    answer: str | None = None
    scores: tuple[float, ...] | None = None
    failure: str | None = None
    error: bool = False
    value: Any = field(default=None, compare=False, repr=False)

    @property
    def usable(self) -> bool:
        """Whether it takes part in a call."""
        return self.failure is None or self.scores is not None


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


def as_score(value: Any, *, what: str, bounds: tuple[float, float] | None = (0.0, 1.0)) -> float:
    """Read the value of a metric or objective as a score within its bounds.

    Args:
        value: A bool, a number, or a `dspy.Prediction` with a `score`.
        what: Name of the function that returned it, for the message.
        bounds: Lowest and highest score, both allowed; None takes any finite number.

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
    if bounds is None:
        if not math.isfinite(score):
            raise ScoreError(f"{what} returned {score}; a score must be a finite number.")
        return score
    low, high = bounds
    if not low <= score <= high:  # also catches NaN
        raise ScoreError(
            f"{what} returned {score}; scores must lie in [{low:g}, {high:g}]. Rescale it, or set `bounds`."
        )
    return score


def function_digest(*parts: Any) -> str:
    """Return a hash of functions' own code and of plain values, the same in every process.

    The code of functions that they call has no part in it.

    Of a callable dataclass, as the built-in objectives are, the fields that are compared are hashed too.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_describe(part).encode(errors="surrogatepass"))
        digest.update(b"|")
    return digest.hexdigest()[:16]


def _describe(part: Any) -> str:
    if part is None or isinstance(part, (str, int, float, tuple)):
        return repr(part)
    function = inspect.unwrap(part) if callable(part) else part
    inner = getattr(function, "func", None)  # functools.partial
    if inner is not None:
        return f"{_describe(inner)}{function.args!r}{sorted(function.keywords.items())!r}"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    described = f"{name}:{_code(code)}" if code is not None else str(name)
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        compared = [(f.name, _describe(getattr(function, f.name))) for f in dataclasses.fields(function) if f.compare]
        described += repr(compared)
    return described


def _code(code: Any) -> str:
    constants = [_code(c) if hasattr(c, "co_code") else _constant(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{constants}{code.co_names}{code.co_varnames}"


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
