"""Predictions for aggregators without a model of their own: effects of prompts and of queries, scale after scale.

At scale 1 the reward of prompt p on query x is modelled as mu + a_p + b_x. From there on growth is modelled the same
way: u_px(n) - u_px(n - 1) = mu_n + a_pn + b_xn, where u is the unbiased subset estimate of a cell. Growth within a
cell is known far better than its level, and what is known of it carries over to prompts that were not drawn so often.
Above the largest scale that was drawn at all a prompt goes on growing, by half as much with every doubling as with the
one before: prompts that gain from more completions are worth a look at larger scales.

Effects are random, a ~ N(0, s_a^2), b ~ N(0, s_b^2), noise ~ N(0, s^2), the variances fitted by expectation
maximisation: a two-way mixed model (Henderson 1953; Searle, Casella and McCulloch, *Variance Components*, ch. 8). A
fit is linear in the data, so the fit without one cell follows in closed form from the cell's leverage h:
g = (f - h u) / (1 - h).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.port import CellPredictions
from iapo_dspy.types import FloatArray, IntArray

_FIRST_STEPS, _STEPS = 6, 2
_DAMPING = 0.5
_LEAST_SHARE = 1e-4  # of the noise: floor of a variance, so that no effect is ruled out for good


class AdditivePredictor:
    """Predictions under W rows of objective weights.

    Args:
        n_prompts: P.
        max_n: N.
    """

    def __init__(self, n_prompts: int, max_n: int) -> None:
        self._n_prompts = n_prompts
        self._max_n = max_n
        self._variances: dict[int, tuple[float, float, float]] = {}  # of each scale; a later fit starts there

    def predict(self, cells: Cells, unbiased: FloatArray) -> CellPredictions:
        """Fit levels and growth to all cells and predict every prompt on every visited query.

        Args:
            cells: The completions.
            unbiased: Their subset estimates [W, G, N].
        """
        prompt, query = cells.prompt, cells.query
        shape = len(unbiased), self._n_prompts, self._max_n
        drawn, drawn_others = np.zeros((2, *unbiased.shape))
        of_prompt, of_query = np.zeros(shape), np.zeros((len(unbiased), cells.n_visited, self._max_n))
        growth = np.zeros(shape)
        last = 1
        for at in range(self._max_n):
            before = max(at - 1, 0)
            known = np.flatnonzero(~np.isnan(unbiased[0, :, at]))
            if len(known):
                value = unbiased[:, known, at]
                step = value - (unbiased[:, known, at - 1] if at else 0.0)
                start = self._variances.get(at)
                fit = two_way(step, prompt[known], query[known], self._n_prompts, cells.n_visited, start)
                self._variances[at] = fit.variances
                effect = fit.of_prompt[:, prompt] + fit.of_query[:, query]
                others = effect.copy()
                others[:, known] = fit.left_out
                for total, step_ in (
                    (of_prompt, fit.of_prompt), (of_query, fit.of_query), (drawn, effect), (drawn_others, others)
                ):  # fmt: skip
                    total[..., at] = (total[..., before] if at else 0.0) + step_
                drawn[:, known, at] = value  # a cell's own draws are the best estimate of it
                growth[:, :, at] = fit.of_prompt + fit.of_query.mean(axis=1, keepdims=True) if at else 0.0
                last = at + 1
                continue
            # Beyond what was drawn: the growth of the last doubling, again and again, less each time.
            doubled = growth[:, :, last // 2 : last].sum(axis=2) if last > 1 else 0.0 * growth[:, :, 0]
            doublings = np.log2((at + 1) / last)
            further = doubled * _DAMPING * (1.0 - _DAMPING**doublings) / (1.0 - _DAMPING)
            of_prompt[:, :, at] = of_prompt[:, :, last - 1] + further
            of_query[:, :, at] = of_query[:, :, last - 1]
            drawn[:, :, at] = drawn[:, :, last - 1] + further[:, prompt]
            drawn_others[:, :, at] = drawn_others[:, :, last - 1] + further[:, prompt]
        low, high = np.nanmin(unbiased, axis=(1, 2)), np.nanmax(unbiased, axis=(1, 2))  # sums know no bounds
        limits = low[:, None, None], high[:, None, None]
        return CellPredictions(
            elsewhere=tuple(
                AdditiveSurface(of_prompt=p, of_query=q, low=float(a), high=float(b))
                for p, q, a, b in zip(of_prompt, of_query, low, high, strict=True)
            ),
            given_all=np.clip(drawn, *limits),
            given_others=np.clip(drawn_others, *limits),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class AdditiveSurface:
    """Predictions for cells without draws; see `models.surfaces.Surface`.

    Attributes:
        of_prompt: mu + a_p, summed over the scales so far [P, N].
        of_query: b_x, likewise [V, N].
        low: Least value.
        high: Largest value.
    """

    of_prompt: FloatArray
    of_query: FloatArray
    low: float
    high: float

    def block(self, prompts: IntArray) -> FloatArray:
        """Implement `Surface.block`."""
        out = self.of_prompt[prompts, None] + self.of_query
        return np.clip(out, self.low, self.high, out=out)

    def at(self, prompts: IntArray, scales: IntArray) -> FloatArray:
        """Implement `Surface.at`."""
        out = self.of_prompt[prompts, scales - 1, None] + self.of_query.T[scales - 1]
        return np.asarray(np.clip(out, self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class TwoWay:
    """A fitted two-way model.

    Attributes:
        of_prompt: mu + a_p [W, P].
        of_query: b_x [W, V].
        left_out: Fit of each cell without that cell [W, G].
        variances: Of the noise, of prompts and of queries.
    """

    of_prompt: FloatArray
    of_query: FloatArray
    left_out: FloatArray
    variances: tuple[float, float, float]


def two_way(
    value: FloatArray,
    prompt: IntArray,
    query: IntArray,
    n_prompts: int,
    n_queries: int,
    start: tuple[float, float, float] | None = None,
) -> TwoWay:
    """Fit mu + a_p + b_x to cells; variances are shared by the W rows.

    Args:
        value: Values [W, G], one or more cells, each (prompt, query) at most once.
        prompt: Their prompts [G].
        query: Their queries [G].
        n_prompts: P; a prompt without cells has the effect 0.
        n_queries: V, likewise.
        start: Variances of an earlier fit, as in `TwoWay.variances`.
    """
    seen = np.zeros((n_prompts, n_queries))
    seen[prompt, query] = 1.0
    grid = np.zeros((len(value), n_prompts, n_queries))
    grid[:, prompt, query] = value
    noise, of_prompt, of_query = start or _moments(value, prompt, query, n_prompts, n_queries)
    for _ in range(_FIRST_STEPS if start is None else _STEPS):
        fit = _Fit(seen, noise / of_prompt, noise / of_query)
        mu, a, b = fit.solve(grid)
        effect = mu[:, None] + a[:, prompt] + b[:, query]
        leverage = fit.leverage(prompt, query)
        error = value - effect
        drawn, asked = seen.any(axis=1), seen.any(axis=0)
        before = noise
        noise = float((error**2).mean() + before * leverage.mean())
        of_prompt = float((a[:, drawn] ** 2).mean() + before * fit.spread_of_prompts[drawn].mean())
        of_query = float((b[:, asked] ** 2).mean() + before * fit.spread_of_queries[asked].mean())
        noise, of_prompt, of_query = _floored(noise, of_prompt, of_query)
    # A cell that alone tells of its prompt and its query has leverage 1 but for the penalties: nothing else is known.
    left_out = effect - np.minimum(leverage, 0.999) / (1.0 - np.minimum(leverage, 0.999)) * error
    return TwoWay(of_prompt=mu[:, None] + a, of_query=b, left_out=left_out, variances=(noise, of_prompt, of_query))


class _Fit:
    """The penalised normal equations: mu and prompts in a dense block, queries eliminated (Schur complement)."""

    def __init__(self, seen: FloatArray, prompt_penalty: float, query_penalty: float) -> None:
        per_prompt, per_query = seen.sum(axis=1), seen.sum(axis=0)
        design = np.vstack([per_query, seen])  # [1 + P, V]: how often each query meets mu and each prompt
        dense = np.zeros((len(design), len(design)))
        dense[0, 0] = per_prompt.sum()
        dense[0, 1:] = dense[1:, 0] = per_prompt
        dense[np.arange(1, len(dense)), np.arange(1, len(dense))] = per_prompt + prompt_penalty
        self._inverse_query = 1.0 / (per_query + query_penalty)
        self._scaled = design * self._inverse_query
        self._covariance = np.linalg.inv(dense - self._scaled @ design.T)
        self._cross = self._covariance @ self._scaled
        self.spread_of_prompts = np.diag(self._covariance)[1:]
        self.spread_of_queries = self._inverse_query + (self._scaled * self._cross).sum(axis=0)

    def solve(self, grid: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return mu [W], a [W, P] and b [W, V] for values [W, P, V], 0 where there is none."""
        by_query = grid.sum(axis=1)
        right = np.concatenate([grid.sum(axis=(1, 2))[:, None], grid.sum(axis=2)], axis=1)
        effects = (right - by_query @ self._scaled.T) @ self._covariance
        b = by_query * self._inverse_query - effects @ self._scaled
        return effects[:, 0], effects[:, 1:], b

    def leverage(self, prompt: IntArray, query: IntArray) -> FloatArray:
        """Return how much each cell's own value weighs in its fit [G]."""
        c, cross = self._covariance, self._cross
        own = c[0, 0] + 2.0 * c[0, prompt + 1] + c[prompt + 1, prompt + 1]
        return np.asarray(own + self.spread_of_queries[query] - 2.0 * (cross[0, query] + cross[prompt + 1, query]))


def _moments(
    value: FloatArray, prompt: IntArray, query: IntArray, n_prompts: int, n_queries: int
) -> tuple[float, float, float]:
    """Return where the variances start from: noise, prompts, queries."""
    centred = value - value.mean(axis=1, keepdims=True)
    total = float((centred**2).mean()) or 1.0

    def between(group: IntArray, n: int) -> float:
        count = np.maximum(np.bincount(group, minlength=n), 1)
        means = np.stack([np.bincount(group, row, n) for row in centred]) / count
        return float((means[:, np.unique(group)] ** 2).mean())

    return _floored(total / 2, between(prompt, n_prompts), between(query, n_queries))


def _floored(noise: float, of_prompt: float, of_query: float) -> tuple[float, float, float]:
    noise = max(noise, 1e-12)
    return noise, max(of_prompt, _LEAST_SHARE * noise), max(of_query, _LEAST_SHARE * noise)
