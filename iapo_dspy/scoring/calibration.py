"""Raw scores of any scale, put on a common one: a run learns it once, and its compiled program keeps it.

Reward models score in logits, and one of them in other logits than the next. A calibration is a monotone, piecewise
linear map from raw scores to [0, 1]. It is fitted to all raw scores of a run's first batch of pulls, in which every
prompt takes part, and frozen: later rounds, the stored evidence and the deployed program use one and the same map.

- "minmax": the lowest score of the first batch becomes 0, the highest 1; scores beyond are clipped.
- "rank": the share of the first batch's scores below a score, those equal to it counted half (the mid-distribution
  function). Its mean over the first batch is 1/2. It is kept at 101 quantiles at most.

A first batch whose scores are all one value v says nothing about the scale: v becomes 1/2, and a step of max(1, |v|)
up or down reaches 1 or 0. A raw score of NaN or infinity is a failure; it has no part in the scale.
"""

from __future__ import annotations

import copy
import logging
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from iapo_dspy.errors import ConfigurationError, StateError
from iapo_dspy.types import FloatArray

logger = logging.getLogger(__name__)

Kind = Literal["minmax", "rank"]
KINDS: tuple[Kind, ...] = ("minmax", "rank")
_KNOTS = 101  # at most; between two of them the distribution function rises by about one hundredth


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A monotone map from raw scores to [0, 1], linear between its knots and constant beyond them.

    Attributes:
        kind: How it was learnt.
        raw: Raw scores at the knots, ascending, at least 2.
        level: Their calibrated values, ascending, in [0, 1].
    """

    kind: Kind
    raw: tuple[float, ...]
    level: tuple[float, ...]

    def __post_init__(self) -> None:
        raw, level = np.asarray(self.raw, dtype=float), np.asarray(self.level, dtype=float)
        sound = (
            self.kind in KINDS
            and raw.shape == level.shape
            and raw.ndim == 1
            and len(raw) >= 2
            and bool(np.isfinite(raw).all() and np.isfinite(level).all())
            and bool((np.diff(raw) > 0).all() and (np.diff(level) >= 0).all() and level[0] >= 0 and level[-1] <= 1)
        )
        if not sound:
            raise ConfigurationError(
                f"Calibration({self.kind!r}): knots must be at least two ascending finite numbers with levels in "
                f"[0, 1], ascending too; got {len(raw)} and {len(level)}."
            )

    def __call__(self, score: float) -> float:
        """Return a raw score's place in [0, 1]."""
        level = float(np.interp(score, self.raw, self.level))
        if 0.0 <= level <= 1.0:
            return level
        return self.level[bisect_right(self.raw, score) - 1]  # the slope between knots next to each other overflowed

    @property
    def highest(self) -> float:
        """The highest level that any raw score can reach."""
        return self.level[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back exactly."""
        # As text: DSPy writes JSON with one array element a line.
        return {"kind": self.kind, "raw": _text(self.raw), "level": _text(self.level)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Read the data that `to_dict` wrote.

        Raises:
            StateError: The data are not a calibration.
        """
        try:
            raw, level = (tuple(float(v) for v in str(data[name]).split()) for name in ("raw", "level"))
            return cls(kind=data["kind"], raw=raw, level=level)
        except (KeyError, TypeError, ValueError) as exc:  # ConfigurationError is a ValueError
            raise StateError(f"The saved calibration is damaged: {type(exc).__name__}: {exc}") from exc


def _text(values: Sequence[float]) -> str:
    return " ".join(repr(float(v)) for v in values)


def fit(kind: Kind, scores: Iterable[float], *, what: str = "An objective") -> Calibration:
    """Learn a calibration from raw scores; their order does not matter.

    Args:
        kind: "minmax" or "rank".
        scores: Raw scores, at least one that is finite; others are left out.
        what: Name of the objective, for messages.

    Raises:
        ConfigurationError: There is no finite score, or no such kind.
    """
    if kind not in KINDS:
        raise ConfigurationError(f"calibrate={kind!r}: give one of {list(KINDS)}, or leave it out.")
    given = np.array([s for s in scores if math.isfinite(s)], dtype=float)
    if not given.size:
        raise ConfigurationError(f"{what} has no finite score to learn a calibration from.")
    values, counts = np.unique(given, return_counts=True)
    if len(values) == 1:
        value = float(values[0])
        logger.warning(
            "%s scored all %d completions of the first batch %g, which says nothing of its scale: it is calibrated to "
            "0.5 there, and to 0 and 1 at a distance of %g.", what, given.size, value, max(1.0, abs(value)),
        )  # fmt: skip
        step = max(1.0, abs(value))
        return Calibration(kind=kind, raw=(value - step, value, value + step), level=(0.0, 0.5, 1.0))
    if kind == "minmax":
        return Calibration(kind=kind, raw=(float(values[0]), float(values[-1])), level=(0.0, 1.0))
    level = (np.cumsum(counts) - counts / 2) / given.size
    kept = _quantiles(level)
    return Calibration(kind=kind, raw=tuple(values[kept].tolist()), level=tuple(level[kept].tolist()))


def _quantiles(level: FloatArray) -> Any:
    """Return the positions of the levels next to evenly spaced ones, the first and the last among them."""
    if len(level) <= _KNOTS:
        return np.arange(len(level))
    targets = np.linspace(level[0], level[-1], _KNOTS)
    after = np.clip(np.searchsorted(level, targets), 1, len(level) - 1)
    nearest = np.where(targets - level[after - 1] <= level[after] - targets, after - 1, after)
    return np.unique(nearest)


@dataclass(frozen=True)
class Scales:
    """The scales of a strategy's scores: one calibration for each that has one.

    Attributes:
        names: Names of the columns of scores [K].
        kinds: How each is calibrated; None for scores that are bounded as they are [K].
        learnt: The calibrations; None where there is none, or none yet [K].
    """

    names: tuple[str, ...]
    kinds: tuple[Kind | None, ...]
    learnt: tuple[Calibration | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.learnt:
            object.__setattr__(self, "learnt", (None,) * len(self.kinds))

    @property
    def missing(self) -> list[str]:
        """Names of the scores whose calibration was not learnt yet."""
        return [n for n, k, c in zip(self.names, self.kinds, self.learnt, strict=True) if k and c is None]

    def learn(self, scores: Iterable[Sequence[float]]) -> Scales:
        """Learn the missing scales from raw scores [S, K]; without scores, return these scales."""
        rows = list(scores)
        if not self.missing or not rows:
            return self
        learnt = [
            fit(kind, (row[k] for row in rows), what=f"Objective {name!r}") if kind and known is None else known
            for k, (name, kind, known) in enumerate(zip(self.names, self.kinds, self.learnt, strict=True))
        ]
        return Scales(self.names, self.kinds, tuple(learnt))

    def place(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Return raw scores [K] on their scales [K].

        Raises:
            StateError: A calibration was not learnt yet.
        """
        if self.missing:
            raise StateError(
                f"The objectives {self.missing} are calibrated while compiling, and were not yet: compile with IAPO, "
                "or load a compiled program."
            )
        return tuple(s if c is None else c(s) for s, c in zip(scores, self.learnt, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the calibrations by name, as JSON data; empty where none was learnt."""
        return {n: c.to_dict() for n, c in zip(self.names, self.learnt, strict=True) if c is not None}

    def restore(self, data: Mapping[str, Any]) -> Scales:
        """Return these scales with the calibrations that `to_dict` wrote.

        Raises:
            StateError: It lacks a calibration, or has one of another kind.
        """
        learnt = []
        for name, kind in zip(self.names, self.kinds, strict=True):
            found = Calibration.from_dict(data[name]) if kind and name in data else None
            if kind and (found is None or found.kind != kind):
                raise StateError(
                    f"The saved program has no {kind!r} calibration of objective {name!r}; it has {dict(data)}."
                )
            learnt.append(found)
        return Scales(self.names, self.kinds, tuple(learnt))

    @classmethod
    def of_saved(cls, strategy: Mapping[str, Any]) -> Scales:
        """Return the scales of a strategy from its saved data (`to_dict`)."""
        objectives = [o for o in strategy.get("objectives", ()) if isinstance(o, Mapping)]
        scales = cls(tuple(str(o["name"]) for o in objectives), tuple(o.get("calibrate") for o in objectives))
        return scales.restore(strategy["calibration"]) if strategy.get("calibration") else scales


class Scaled:
    """The methods of the port `Calibrates`, for a strategy that keeps the scales of its columns in `_scales`."""

    _scales: Scales

    @property
    def calibrated(self) -> bool:
        """Whether nothing needs to be learnt any more."""
        return not self._scales.missing

    def calibrate(self: S, scores: Iterable[Sequence[float]]) -> S:
        """Return this strategy with its scales learnt from raw scores [S, K]; itself if there is nothing to learn."""
        return self._with(self._scales.learn(scores))

    def place(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Return raw scores [K] on the scales that preferences weigh [K]; see `Scales.place`."""
        return self._scales.place(scores)

    def restore(self: S, calibration: Mapping[str, Any]) -> S:
        """Return this strategy with the scales of a saved program; see `Scales.restore`."""
        return self._with(self._scales.restore(calibration))

    def _with(self: S, scales: Scales) -> S:
        if scales is self._scales:
            return self
        twin = copy.copy(self)
        twin._scales = scales
        return twin


S = TypeVar("S", bound=Scaled)
