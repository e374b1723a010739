"""What arms take of every resource, and what contexts make of it: prices, and caps that must not be exceeded.

**Prices.** A context subtracts cost_weight * scale * cost(p, n) from the reward, and rate_r * use_r(p, n) for every
resource r that it prices by itself. Costs and uses are affine in what is drawn (a part per request, a part per
completion), so a price is too: price(c, p) = per_wave * waves + per_completion * completions.

**Caps.** An arm keeps a cap where an upper bound of what one call takes lies within it:

- Tokens and dollars of a completion vary between queries and within a query. Relative to the prompt's mean, the mean of
  a pull of m completions has variance B + W / m; both are fitted to all pulls. The bound of a completion is
  mean * (1 + z sqrt(B + W + error of the mean)). It holds for every completion and not only for their sum, because a
  deployed call limits each of them to its part of the cap, and one that is cut off casts no vote.
- Seconds: log latency of a pull of m completions = a_p + b log m + noise, b in [0, 1] shared by all prompts. The bound
  is the z-quantile of a new call, errors of the fit included. Every wave of a call takes that long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.estimators.costs import AffineCosts
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import RESOURCES, Contexts, FloatArray, IntArray, Observations

__all__ = ["Charges", "upper_amounts", "upper_seconds"]

Z = 2.326348  # standard errors that an upper bound lies above the mean: 99 %, for one call
_SECONDS = RESOURCES.index("seconds")
_PSEUDO_PULLS = 5.0  # weight of the pooled spread of latencies in each prompt's own
_SHORTEST = 1e-6  # seconds


class Charges:
    """What the arms of one run take, and what its contexts make of it.

    Args:
        contexts: Their cost weights, rates and caps.
        n_prompts: P.
        max_n: N.
    """

    def __init__(self, contexts: Contexts, n_prompts: int, max_n: int) -> None:
        self._contexts = contexts
        self._n_prompts = n_prompts
        self._max_n = max_n
        self._costs = AffineCosts(n_prompts)
        self._pulls: list[tuple[IntArray, IntArray, FloatArray, FloatArray]] = []
        self._upper: FloatArray | None = None

    def update(self, observations: Observations) -> None:
        """Take in one more batch.

        Raises:
            ConfigurationError: Contexts price or cap a resource that the environment does not measure.
        """
        if not len(observations.pulls):
            return
        self._costs.update(observations)
        used, once = observations.used, observations.once
        if used is None or once is None:
            if not self._contexts.plain:
                raise ConfigurationError(
                    "A preference prices or caps tokens, dollars or seconds by themselves, and these observations do "
                    "not say what calls took of them (a recording, or a program saved by an older version). Use "
                    "Preference(cost=...), or compile again."
                )
            return
        self._pulls.append((observations.pulls.prompt, observations.pulls.size, used, once))
        self._upper = None

    @property
    def measured(self) -> bool:
        """Whether it is known what calls take of the resources."""
        return bool(self._pulls)

    def parts(self) -> tuple[FloatArray, FloatArray]:
        """Return mean use per request and per completion of every prompt [R, P] each; NaN where it is not known."""
        if not self._pulls:
            nothing = np.full((len(RESOURCES), self._n_prompts), np.nan)
            return nothing, nothing
        prompt, size, used, once = self._joined()
        pulls = np.bincount(prompt, minlength=self._n_prompts)
        completions = np.bincount(prompt, weights=size, minlength=self._n_prompts)
        with np.errstate(invalid="ignore", divide="ignore"):
            fixed = np.stack([np.bincount(prompt, weights=o, minlength=self._n_prompts) / pulls for o in once.T])
            rest = (used - once).T
            each = np.stack([np.bincount(prompt, weights=r, minlength=self._n_prompts) / completions for r in rest])
        return fixed, each

    def use(self) -> FloatArray:
        """Return what a call of every arm takes on average [R, P, N]; NaN where it is not known."""
        fixed, each = self.parts()
        return np.asarray(fixed[:, :, None] + each[:, :, None] * np.arange(1, self._max_n + 1))

    def upper(self) -> FloatArray:
        """Return what a call of every arm takes at most, as far as an estimate can say [R, P, N]; NaN: not known."""
        if self._upper is None:
            if not self._pulls:
                return np.full((len(RESOURCES), self._n_prompts, self._max_n), np.nan)
            prompt, size, used, once = self._joined()
            found = [
                upper_amounts(prompt, size, used[:, r], once[:, r], self._n_prompts, self._max_n)
                for r in range(len(RESOURCES))
                if r != _SECONDS
            ]
            found.insert(_SECONDS, upper_seconds(prompt, size, used[:, _SECONDS], self._n_prompts, self._max_n))
            self._upper = np.stack(found)
        return self._upper

    def prices(self, scale: float) -> tuple[FloatArray, FloatArray]:
        """Return the utility that a request and that a completion takes [C, P] each; NaN without evidence.

        Args:
            scale: Utility of one raw unit of cost at cost weight 1.
        """
        weight = self._contexts.cost[:, None] * scale
        per_wave, per_completion = weight * self._costs.fixed, weight * self._costs.per_completion
        if self._contexts.rates.any():
            fixed, each = self.parts()
            for r in np.flatnonzero(self._contexts.rates.any(axis=0)).tolist():
                rate = self._contexts.rates[:, r, None]
                # Where nobody prices it, a resource that is not known does not matter.
                per_wave = per_wave + np.where(rate > 0, rate * fixed[r], 0.0)
                per_completion = per_completion + np.where(rate > 0, rate * each[r], 0.0)
        return per_wave, per_completion

    def surcharge(self) -> FloatArray:
        """Return the utility that rates take of every arm, beside the cost [C, P, N]."""
        rates = self._contexts.rates
        if not rates.any():
            return np.zeros((len(rates), self._n_prompts, self._max_n))
        use = self.use()
        priced = [np.where(rates[:, r, None, None] > 0, rates[:, r, None, None] * use[r], 0.0) for r in range(len(use))]
        return np.asarray(np.sum(priced, axis=0))

    def most_waves(self) -> IntArray:
        """Return in how many waves an arm may be drawn at most without breaking a cap [C, P, N]; 0: it breaks one."""
        caps = self._contexts.caps
        most = np.full((len(caps), self._n_prompts, self._max_n), self._max_n, dtype=np.int64)
        if np.isinf(caps).all():
            return most
        upper = self.upper()
        for r in np.flatnonzero(np.isfinite(caps).any(axis=0)).tolist():
            with np.errstate(invalid="ignore", divide="ignore"):
                times = np.where(np.isinf(caps[:, r, None, None]), np.inf, caps[:, r, None, None] / upper[r])
            times = np.where(np.isnan(times), 0.0, times)  # an arm of which nothing is known is not trusted
            waves = times if r == _SECONDS else np.where(times >= 1.0, np.inf, 0.0)
            most = np.minimum(most, np.minimum(waves, self._max_n).astype(np.int64))
        return most

    def keeps(self) -> NDArray[np.bool_]:
        """Return which arms keep every cap of the context [C, P, N]."""
        return np.asarray(self.most_waves() > 0)

    def allowed(self) -> NDArray[np.bool_]:
        """Return which arms a context may choose [C, P, N]: those that keep its caps, or the nearest one if none."""
        keeps = self.keeps()
        for c in np.flatnonzero(~keeps.any(axis=(1, 2))).tolist():
            prompt, n = self.nearest(c)
            keeps[c, prompt, n - 1] = True
        return keeps

    def nearest(self, context: int) -> tuple[int, int]:
        """Return prompt and scale of the arm that comes nearest to keeping the caps of a context."""
        excess = np.nanmax(self.upper() / self._contexts.caps[context][:, None, None], axis=0, initial=0.0)
        known = ~np.isnan(self._costs.fixed)
        excess = np.where(known[:, None] & (excess > 0), excess, np.inf)
        prompt, scale = divmod(int(excess.argmin()), self._max_n)
        return prompt, scale + 1

    def _joined(self) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        prompt, size, used, once = (np.concatenate(parts) for parts in zip(*self._pulls, strict=True))
        return prompt, size, used, once


def upper_amounts(
    prompt: IntArray, size: IntArray, used: FloatArray, once: FloatArray, n_prompts: int, max_n: int
) -> FloatArray:
    """Return an upper bound of what one call of every arm takes of a resource that adds up.

    Args:
        prompt: Prompt of each pull [B].
        size: Its completions [B].
        used: What they took together [B].
        once: What the pull took once [B].
        n_prompts: P.
        max_n: N.

    Returns:
        Bounds [P, N]; NaN for prompts without pulls, and where a use is not known.
    """
    pulls = np.bincount(prompt, minlength=n_prompts)
    completions = np.bincount(prompt, weights=size, minlength=n_prompts)
    with np.errstate(invalid="ignore", divide="ignore"):
        fixed = np.bincount(prompt, weights=once, minlength=n_prompts) / pulls
        each = np.bincount(prompt, weights=used - once, minlength=n_prompts) / completions
        typical = (used - once) / size / each[prompt] - 1.0
        first = once / fixed[prompt] - 1.0
    between, within = _spread(typical, size)
    once_between, _ = _spread(first, np.ones_like(size))
    mean_size = completions / np.maximum(pulls, 1)
    error = (between + within / np.maximum(mean_size, 1.0)) / np.maximum(pulls, 1)
    a_completion = each * (1.0 + Z * np.sqrt(between + within + error))
    a_request = fixed * (1.0 + Z * np.sqrt(once_between * (1.0 + 1.0 / np.maximum(pulls, 1))))
    return np.asarray(a_request[:, None] + a_completion[:, None] * np.arange(1, max_n + 1))


def _spread(relative: FloatArray, size: IntArray) -> tuple[float, float]:
    """Fit E[relative^2] = between + within / size by least squares, both >= 0."""
    known = np.isfinite(relative)
    square, inverse = relative[known] ** 2, 1.0 / size[known]
    if len(square) < 2:
        return 0.0, 0.0
    centred = inverse - inverse.mean()
    within = float((centred * square).sum() / (centred**2).sum()) if np.ptp(inverse) > 0 else 0.0
    between = float(square.mean() - within * inverse.mean())
    if within < 0:
        return float(square.mean()), 0.0
    if between < 0:
        return 0.0, float((inverse * square).sum() / (inverse**2).sum())
    return between, within


def upper_seconds(prompt: IntArray, size: IntArray, seconds: FloatArray, n_prompts: int, max_n: int) -> FloatArray:
    """Return an upper bound of how long one wave of every arm takes [P, N]; NaN for prompts without pulls.

    Args:
        prompt: Prompt of each pull [B].
        size: Its completions [B].
        seconds: How long it took [B].
        n_prompts: P.
        max_n: N.
    """
    log, scale = np.log(np.maximum(seconds, _SHORTEST)), np.log(size)
    pulls = np.bincount(prompt, minlength=n_prompts)
    count = np.maximum(pulls, 1)

    def centred(values: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean = np.bincount(prompt, weights=values, minlength=n_prompts) / count
        return mean, np.asarray(values - mean[prompt])

    log_mean, log_rest = centred(log)
    scale_mean, scale_rest = centred(scale)
    total = float((scale_rest**2).sum())
    slope = float(np.clip((scale_rest * log_rest).sum() / total, 0.0, 1.0)) if total > 0 else 0.0
    residual = (log_rest - slope * scale_rest) ** 2
    freedom = max(len(log) - int((pulls > 0).sum()) - 1, 1)
    pooled = float(residual.sum() / freedom)
    own = np.bincount(prompt, weights=residual, minlength=n_prompts)
    variance = (own + _PSEUDO_PULLS * pooled) / (np.maximum(pulls - 1, 0) + _PSEUDO_PULLS)
    middle = (log_mean - slope * scale_mean)[:, None] + slope * np.log(np.arange(1, max_n + 1))
    bound = np.exp(middle + Z * np.sqrt(variance * (1.0 + 1.0 / count))[:, None])
    return np.where(pulls[:, None] > 0, bound, np.nan)
