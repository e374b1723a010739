"""Logistic corrections of probabilities by calls that were really drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.confidence.confidence_map import Logprobs
from iapo_dspy.types import FloatArray

LEVEL, SLOPE = 0.4, 0.3  # standard deviations of the priors of a level around 0 and of a slope around 1
_LEAST_SLOPE = 0.2
_WEIGHT = 0.7  # standard deviation of the prior of what a standard deviation of logprobs adds
_SURE = 2.0  # standard errors that this must be away from 0
_CLIP = 0.005  # probabilities are kept so far from 0 and 1
_STEPS = 25


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Log odds become `level + slope * log odds`.

    Attributes:
        level: 0 changes nothing.
        slope: 1 changes nothing; > 0.
    """

    level: float = 0.0
    slope: float = 1.0

    def __call__(self, probability: FloatArray) -> FloatArray:
        """Return corrected probabilities."""
        return logistic(self.level + self.slope * log_odds(probability))


def log_odds(probability: FloatArray) -> FloatArray:
    """Return log odds, of probabilities that are not quite 0 or 1."""
    kept = np.clip(probability, _CLIP, 1.0 - _CLIP)
    return np.asarray(np.log(kept / (1.0 - kept)))


def logistic(odds: FloatArray) -> FloatArray:
    """Return probabilities of log odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-odds)))


def corrected(probability: FloatArray, right: FloatArray) -> Correction:
    """Learn a correction; without calls it changes nothing.

    Args:
        probability: Of each call [R].
        right: Whether it was right, or by how much, in [0, 1] [R].
    """
    features = np.stack([np.ones(len(right)), log_odds(probability)], axis=1)
    level, slope = _fitted(features, right, np.array([0.0, 1.0]), np.array([LEVEL, SLOPE]))[0].tolist()
    return Correction(level=level, slope=max(slope, _LEAST_SLOPE))


def by_logprobs(probability: FloatArray, logprob: FloatArray, right: FloatArray) -> Logprobs | None:
    """Learn what logprobs add to log odds; None where they surely add nothing, or cannot be told to.

    Args:
        probability: Of each call, without logprobs [R].
        logprob: Mean logprob of a token, over the completions that gave the answer [R]; NaN where not known.
        right: As for `corrected` [R].
    """
    known = ~np.isnan(logprob)
    if not known.any() or (scale := float(logprob[known].std())) < 1e-6:
        return None
    centre = float(logprob[known].mean())
    found = Logprobs(slope=1.0, centre=centre, scale=scale)
    odds = log_odds(probability[known])
    distance = np.array([found.adds(v) for v in logprob[known].tolist()])
    features = np.stack([np.ones(len(odds)), odds, distance], axis=1)
    mean, spread = np.array([0.0, 1.0, 0.0]), np.array([LEVEL, 1e-3, _WEIGHT])
    parameters, error = _fitted(features, right[known], mean, spread)
    if abs(parameters[2]) < _SURE * error[2]:
        return None
    return Logprobs(slope=float(parameters[2]), centre=centre, scale=scale, shift=float(parameters[0]))


def _fitted(
    features: FloatArray, right: FloatArray, mean: FloatArray, spread: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the most probable parameters of a logistic regression [F], and their standard errors [F].

    Args:
        features: Of each call [R, F].
        right: Its outcome in [0, 1] [R].
        mean: Of the normal priors [F].
        spread: Their standard deviations [F].
    """
    parameters, precision = mean.copy(), 1.0 / spread**2
    for _ in range(_STEPS):
        p = logistic(features @ parameters)
        information = (features.T * np.maximum(p * (1.0 - p), 1e-6)) @ features + np.diag(precision)
        step = np.linalg.solve(information, features.T @ (right - p) - precision * (parameters - mean))
        parameters = parameters + np.clip(step, -1.0, 1.0)
    return parameters, np.sqrt(np.diag(np.linalg.inv(information)))
