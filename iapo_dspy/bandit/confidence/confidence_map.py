"""The map from how sure a call is to the probability that its answer is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from iapo_dspy.errors import ConfigurationError, StateError, one_line
from iapo_dspy.preferences import is_number

_CLIP = 1e-6  # confidences are kept so far from 0 and 1 before their logits are taken


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve that never falls, linear between its knots and constant beyond them.

    Attributes:
        sureness: How sure a stage is, at each knot; ascending, at least one.
        confidence: The probability there, in [0, 1]; never falling.
    """

    sureness: tuple[float, ...]
    confidence: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("sureness", "confidence"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(map(is_number, values)):
                raise ConfigurationError(f"Curve({name}={values!r}): give finite numbers.")
            object.__setattr__(self, name, tuple(map(float, values)))
        x, y = np.array(self.sureness), np.array(self.confidence)
        ascending = len(x) == len(y) > 0 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
        if not ascending or y[0] < 0 or y[-1] > 1:
            raise ConfigurationError(
                f"Curve: need at least one knot, ascending, with confidences in [0, 1] that never fall; got "
                f"{x.tolist()} and {y.tolist()}."
            )

    def __call__(self, sureness: float) -> float:
        """Return the confidence at a sureness."""
        return float(np.interp(sureness, self.sureness, self.confidence))


@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """The log odds that the mean logprob of a token adds to a confidence, where the LM gives logprobs.

    Attributes:
        slope: Log odds that one standard deviation adds.
        centre: Mean logprob that adds nothing.
        scale: Standard deviation, > 0.
        shift: Log odds that are added in any case.
    """

    slope: float
    centre: float
    scale: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.slope, self.centre, self.scale, self.shift)
        if not all(map(is_number, numbers)) or self.scale <= 0:
            raise ConfigurationError(f"Logprobs: need finite numbers, and a scale > 0; got {numbers}.")

    def adds(self, logprob: float) -> float:
        """Return the log odds that a mean logprob adds; beyond three standard deviations it adds no more."""
        return self.slope * min(max((logprob - self.centre) / self.scale, -3.0), 3.0) + self.shift


@dataclass(frozen=True, kw_only=True)
class ConfidenceMap:
    """The probability that a call's answer is right, by the stage in which it ended and by how sure that was.

    Attributes:
        stages: The curve of each stage of the arm, first to last.
        margin: Best-of-N: "right" is a best score that is within this of what more draws would bring, in units of the
            score. None: the expected score of the answer, which is the probability that it is right where scores are 0
            and 1.
        logprobs: The part of logprobs; None where the LM gave none.
    """

    stages: tuple[Curve, ...]
    margin: float | None = None
    logprobs: Logprobs | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages or (self.margin is not None and not (is_number(self.margin) and self.margin >= 0)):
            raise ConfigurationError(
                f"ConfidenceMap: need at least one stage, and a margin >= 0 or None; got {self.margin!r}."
            )

    def confidence(self, stage: int, sureness: float, logprob: float | None = None) -> float:
        """Return the confidence of a call in [0, 1].

        Args:
            stage: The stage in which it ended, 0-based.
            sureness: How sure that was, see `types.Escalation`.
            logprob: Mean logprob of a token, over the completions that gave the answer; None where not known.
        """
        found = self.stages[stage](sureness)
        if self.logprobs is None or logprob is None or not math.isfinite(logprob):
            return found
        within = min(max(found, _CLIP), 1.0 - _CLIP)
        odds = math.log(within / (1.0 - within)) + self.logprobs.adds(logprob)
        return 1.0 / (1.0 + math.exp(-odds))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back."""
        data: dict[str, Any] = {
            # As text: DSPy writes JSON with one array element a line.
            "stages": [{name: " ".join(map(repr, knots)) for name, knots in vars(c).items()} for c in self.stages]
        }
        if self.margin is not None:
            data["margin"] = self.margin
        if self.logprobs is not None:
            data["logprobs"] = vars(self.logprobs).copy()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConfidenceMap:
        """Read the data that `to_dict` wrote.

        Raises:
            StateError: The data are not of this kind.
        """
        try:
            logprobs = data.get("logprobs")
            return cls(
                stages=tuple(Curve(**{k: _numbers(text) for k, text in s.items()}) for s in data["stages"]),
                margin=data.get("margin"),
                logprobs=None if logprobs is None else Logprobs(**logprobs),
            )
        except (AttributeError, ConfigurationError, LookupError, TypeError, ValueError) as error:
            raise StateError(f"This is not a saved map of confidence: {one_line(error)}") from error


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))
