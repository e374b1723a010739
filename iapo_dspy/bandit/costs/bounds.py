"""Upper bounds of the resources that one call takes, fitted to the pulls of a run.

**Amounts** (tokens, dollars) of a completion vary between queries and within a query. Relative to its prompt's mean,
the mean of a pull of m completions has the variance f_p (B + W / m): B and W are fitted to the pulls of all prompts,
and the factor f_p, which says how much more or less a prompt varies than the others do, is shrunk towards 1. The bound
of one completion is mean * (1 + z sqrt(f_p (B + W + error of the mean))). It holds for every completion and not only
for their sum: a deployed call limits each of them to its part of the cap, and one that is cut off casts no vote.

**Seconds**: the log latency of a pull of m completions is a_p + b log m + noise, with a slope b in [0, 1] that all
prompts share; pulls of one size say nothing of it, so it has a prior. The bound is the z-quantile of a new call, errors
of the fit included. Where the tail is heavier than a normal one, z is what 96 of 100 calls stayed below (as conformal
prediction does, Papadopoulos et al. 2002).
"""

from __future__ import annotations

import math

import numpy as np

from iapo_dspy.types import FloatArray, IntArray

Z = 2.326348  # standard errors that an upper bound lies above the mean: 99 %, for one call
_PSEUDO_PULLS = 5.0  # weight of the pooled spread in each prompt's own
_UNKNOWN = 0.25  # relative variance of an amount of which no prompt has two pulls
_OUTLIER = 4.0  # typical deviations beyond which a latency is drawn in
_COVERED = 0.96  # share of calls below the bound whatever the law; a little more than the 95 % that are promised
_SLOPE, _SLOPE_VARIANCE = 0.25, 0.0625  # prior of b: between "n does not matter" and a square root


def upper_amounts(
    prompt: IntArray, size: IntArray, used: FloatArray, once: FloatArray, n_prompts: int
) -> tuple[FloatArray, FloatArray]:
    """Return upper bounds of how much a request and a completion take of a resource that adds up.

    Args:
        prompt: Prompt of each pull [B].
        size: Its completions [B].
        used: Amount that each pull took in all [B].
        once: Amount of it that the pull took once [B].
        n_prompts: P.

    Returns:
        Bounds [P] each; NaN for prompts without pulls, and where a use is not known.
    """
    return _upper(prompt, np.ones_like(size), once, n_prompts), _upper(prompt, size, used - once, n_prompts)


def _upper(prompt: IntArray, size: IntArray, total: FloatArray, n_prompts: int) -> FloatArray:
    """Return an upper bound of one of the `size` parts of which each pull's `total` is the sum [P]."""
    pulls = np.bincount(prompt, minlength=n_prompts)
    parts = np.bincount(prompt, weights=size, minlength=n_prompts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(prompt, weights=total, minlength=n_prompts) / parts
        relative = np.where(mean[prompt] == 0, 0.0, total / size / mean[prompt] - 1.0)
    several = (pulls[prompt] > 1) & np.isfinite(relative)
    if not several.any():
        return np.asarray(mean * (1.0 + Z * np.sqrt(2.0 * _UNKNOWN)))
    # A mean that is fitted to the same pulls takes one degree of freedom of each prompt.
    freedom = np.maximum(pulls - 1, 1)
    owner, m = prompt[several], size[several]
    square = relative[several] ** 2
    between, within = _spread(square * (pulls / freedom)[owner], m)
    single = between + within
    if single == 0:
        return np.asarray(mean)
    seen = np.bincount(owner, weights=square / (between + within / m), minlength=n_prompts)
    factor = (seen + _PSEUDO_PULLS) / (np.bincount(owner, minlength=n_prompts) - (pulls > 1) + _PSEUDO_PULLS)
    error = (between + within / (parts / np.maximum(pulls, 1)).clip(1.0)) / np.maximum(pulls, 1)
    return np.asarray(mean * (1.0 + Z * np.sqrt(factor * (single + error))))


def _spread(square: FloatArray, size: IntArray) -> tuple[float, float]:
    """Fit E[square] = between + within / size by least squares, both >= 0; one size tells them not apart: halves."""
    inverse = 1.0 / size
    mean = float(square.mean())
    if np.ptp(inverse) == 0:
        half = mean / (1.0 + float(inverse[0]))
        return half, half
    centred = inverse - inverse.mean()
    within = float((centred * square).sum() / (centred**2).sum())
    between = mean - within * float(inverse.mean())
    if within < 0:
        return mean, 0.0
    if between < 0:
        return 0.0, float((inverse * square).sum() / (inverse**2).sum())
    return between, within


def upper_seconds(prompt: IntArray, size: IntArray, seconds: FloatArray, n_prompts: int, max_n: int) -> FloatArray:
    """Return an upper bound of how long one wave of every arm takes [P, N]; NaN where nothing is known.

    Args:
        prompt: Prompt of each pull [B].
        size: Its completions [B].
        seconds: How long it took [B]; NaN where that is not known.
        n_prompts: P.
        max_n: N.
    """
    known = seconds > 0
    prompt, log, scale = prompt[known], np.log(seconds[known]), np.log(size[known])
    pulls = np.bincount(prompt, minlength=n_prompts)
    count = np.maximum(pulls, 1)
    freedom = max(len(log) - int((pulls > 0).sum()) - 1, 1)
    scale_mean, scale_rest = _centred(prompt, scale, count)
    total = float((scale_rest**2).sum())

    def fit(values: FloatArray) -> tuple[FloatArray, float, float, FloatArray, float]:
        """Return the means, the slope, its precision, the residuals, and their pooled variance."""
        mean, rest = _centred(prompt, values, count)
        product = float((scale_rest * rest).sum())
        pooled = float(((rest - (product / total if total > 0 else 0.0) * scale_rest) ** 2).sum()) / freedom
        if pooled == 0 and total > 0:
            slope, precision = product / total, np.inf
        else:
            precision = (total / pooled if total > 0 else 0.0) + 1.0 / _SLOPE_VARIANCE
            slope = ((product / pooled if total > 0 else 0.0) + _SLOPE / _SLOPE_VARIANCE) / precision
        slope = float(np.clip(slope, 0.0, 1.0))
        return mean, slope, precision, rest - slope * scale_rest, pooled

    # Stalls, and a process that is still importing, must not widen the bounds of all other calls: outliers are drawn in
    # for the fit, and count in full only in the quantile.
    rest = fit(log)[3]
    typical = max(_typical(rest), 0.0)
    reach = np.array([_OUTLIER * max(typical, _typical(rest[prompt == p])) for p in range(n_prompts)])[prompt]
    drawn_in = log - rest + np.clip(rest, -reach, reach) if typical > 0 else log
    mean, slope, precision, rest, pooled = fit(drawn_in)
    own = np.bincount(prompt, weights=rest**2, minlength=n_prompts)
    variance = (own + _PSEUDO_PULLS * pooled) / (np.maximum(pulls - 1, 0) + _PSEUDO_PULLS)
    left = rest + log - drawn_in
    deviation = np.sqrt(variance)[prompt]
    quantile = _least(np.divide(left, deviation, out=np.zeros_like(left), where=deviation > 0))
    away = np.log(np.arange(1, max_n + 1)) - scale_mean[:, None]
    spread = (variance * (1.0 + 1.0 / count))[:, None] + away**2 / precision
    bound = np.exp(mean[:, None] + slope * away + max(Z, quantile) * np.sqrt(spread))
    # Fewer completions take no longer, however little is known of them.
    bound = np.minimum.accumulate(bound[:, ::-1], axis=1)[:, ::-1]
    return np.where(pulls[:, None] > 0, bound, np.nan)


def _typical(rest: FloatArray) -> float:
    """Return the standard deviation of normal values by their median distance from 0, which no outlier moves."""
    return 1.4826 * float(np.median(np.abs(rest))) if len(rest) else 0.0


def _least(standardised: FloatArray) -> float:
    """Return a bound that a new value keeps in 96 of 100 cases under any law; 0 where the values are too few."""
    rank = math.ceil(_COVERED * (len(standardised) + 1))
    return float(np.sort(standardised)[rank - 1]) if rank <= len(standardised) else 0.0


def affine_seconds(
    prompt: IntArray, size: IntArray, seconds: FloatArray, n_prompts: int
) -> tuple[FloatArray, FloatArray]:
    """Return the mean seconds of a request and of each completion beside it [P] each; NaN without evidence.

    All prompts share the growth relative to their means, by least squares, >= 0.

    Args:
        prompt: Prompt of each pull [B].
        size: Its completions [B].
        seconds: How long it took [B]; NaN where that is not known.
        n_prompts: P.
    """
    known = seconds > 0
    prompt, seconds, scale = prompt[known], seconds[known], size[known].astype(float)
    pulls = np.bincount(prompt, minlength=n_prompts)
    count = np.maximum(pulls, 1)
    mean, _ = _centred(prompt, seconds, count)
    middle, away = _centred(prompt, scale, count)
    total = float((away**2).sum())
    growth = float((away * (seconds / mean[prompt] - 1.0)).sum()) / total if total > 0 else 0.0
    growth = min(max(growth, 0.0), 1.0 / max(float(middle.max(initial=1.0)), 1.0))
    mean = np.where(pulls > 0, mean, np.nan)
    return mean * (1.0 - growth * middle), mean * growth


def _centred(prompt: IntArray, values: FloatArray, count: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the mean of each prompt [P], and the values without it [B]."""
    mean = np.bincount(prompt, weights=values, minlength=len(count)) / count
    return mean, np.asarray(values - mean[prompt])
