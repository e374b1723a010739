"""The model of Best-of-N: a latent trait for a score above each of some thresholds.

**Rewards.** E max of n = v_0 + sum over j of (v_j - v_(j-1)) (1 - (1 - theta_j)^n) with theta_j the probability of a
score above the middle between v_(j-1) and v_j. It is exact where the v are all values that scores take; where these are
many, the v are quantiles and the sum is the midpoint rule for the integral of P(max > t). `traits.TraitModel` learns
each theta_j from all cells together; the reward is the expectation over its posterior.

**Stops.** With F(v) = P(a completion's score is below v), waves w_1 < w_2 < .. < w_K = N (w_0 = 0) and a threshold tau,
a call is still going after wave k with probability F(tau)^(w_k), and for a level v >= tau

    P(best score at the stop >= v) = sum over k of F(tau)^(w_(k-1)) (1 - F(v)^(w_k - w_(k-1))),

against 1 - F(v)^N with all N completions; below tau both are the same. Each theta_j = 1 - F(v_j) of a cell has a
posterior of its own; together they are taken to be comonotone, good cells being good at every level, so that the
expectation is a mean over a few equally likely cells, from the worst to the best, in which each theta_j is the mean of
its own part of its posterior.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.drawn_thetas import draw_thetas
from iapo_dspy.bandit.models.information import Knowledge
from iapo_dspy.bandit.models.port import CellPredictions, Simulated
from iapo_dspy.bandit.models.traits import (
    THETA,
    TraitModel,
    Traits,
    difficulties,
    drawn_cells,
    of_drawn,
    of_prompts,
)
from iapo_dspy.bandit.stopping.estimates import CellReadings, StopEstimates, corrected_stops
from iapo_dspy.bandit.stopping.replays import observed_best_of
from iapo_dspy.bandit.stopping.rules import best_of_scales, threshold_stops
from iapo_dspy.types import FloatArray, IntArray, Stop

_FEW_VALUES = 32
_QUANTILES = np.array([0.0, 0.08, 0.2, 0.35, 0.5, 0.65, 0.77, 0.86, 0.92, 0.955, 0.975, 0.988, 0.995, 1.0])
_CHUNK = 1 << 16  # array elements that one step holds: few, so that they stay in the cache
_PARTS = 8  # equally likely cells that stand for a posterior


class BestOfPredictor:
    """Predictions for Best-of-N under W rows of objective weights.

    Args:
        weights: Objective weights [W, K].
        floor: Value where every completion failed [W].
        n_prompts: P.
        max_n: N.
        parts: The parts of each prompt [P, F], see `Problem.parts`.
    """

    def __init__(
        self, weights: FloatArray, floor: FloatArray, n_prompts: int, max_n: int, *, parts: IntArray | None = None
    ) -> None:
        self._weights = weights
        self._floor = floor
        self._n_prompts = n_prompts
        self._parts = parts
        self._levels: list[FloatArray] = [np.empty(0)] * len(weights)
        self._many = [False] * len(weights)
        self._models: list[TraitModel] = [TraitModel(1, n_prompts)] * len(weights)
        self._table = 1.0 - (1.0 - THETA[:, None]) ** np.arange(1, max_n + 1)

    def predict(self, cells: Cells) -> CellPredictions:
        """Implement `Predictor.predict`."""
        values = [np.where(cells.failed, np.nan, cells.score @ w) for w in self._weights]
        for row, (value, floor) in enumerate(zip(values, self._floor, strict=True)):
            self._cut(row, value, floor)
        drawn = np.empty((2, len(self._weights), len(cells), self._table.shape[1]))
        surfaces: list[BestOfSurface] = []
        for row, (value, levels, model) in enumerate(zip(values, self._levels, self._models, strict=True)):
            low = min(float(np.nanmin(value, initial=np.inf)), float(levels[0]), float(self._floor[row]))
            surface = self._row(cells, np.where(np.isnan(value), low, value), levels, model, drawn[:, row])
            surfaces.append(surface)
        fitted = BestOfModel(
            cells=cells,
            values=tuple(values),
            floors=tuple(self._floor.tolist()),
            levels=tuple(self._levels),
            traits=tuple(surface.traits for surface in surfaces),
            table=self._table,
        )
        return CellPredictions(elsewhere=tuple(surfaces), given_all=drawn[0], given_others=drawn[1], model=fitted)

    def _cut(self, row: int, value: FloatArray, floor: float) -> None:
        """Choose where a row's scores are cut: once where they are many, anew while they are few and new ones turn up.

        A first batch without any success has one value, and does not show the worth of success.
        """
        known = value[~np.isnan(value)]
        if len(known) < len(value):
            known = np.append(known, min(floor, known.min(initial=floor)))
        if self._many[row] or np.isin(known, self._levels[row]).all():
            return
        levels = np.unique(known)
        if len(levels) > _FEW_VALUES:
            self._many[row] = True
            levels = np.unique(np.quantile(known, _QUANTILES))
        self._levels[row] = levels
        self._models[row] = TraitModel(max(len(levels) - 1, 1), self._n_prompts, self._parts)

    def _row(
        self, cells: Cells, value: FloatArray, levels: FloatArray, model: TraitModel, drawn: FloatArray
    ) -> BestOfSurface:
        """Fit one row of weights, and write both readings of the drawn cells [2, G, N]."""
        surface = BestOfSurface(levels=levels, traits=None, table=self._table, n_visited=cells.n_visited)
        drawn[:] = levels[0]
        if len(levels) == 1:
            return surface
        above = value > surface.cuts[:, None]
        count = np.add.reduceat(above, cells.start, axis=1, dtype=np.int64)
        traits = model.fit(cells.prompt, cells.query, cells.n_visited, count, cells.size)
        for mine in drawn_cells(traits, cells):
            for reading, law in zip(drawn, of_drawn(traits, cells, mine), strict=False):
                reading[mine] += np.tensordot(surface.width, law, 1) @ self._table
        return replace(surface, traits=traits)


@dataclass(frozen=True, kw_only=True, eq=False)
class BestOfSurface:
    """Predictions for cells without draws; see `models.surfaces.Surface`.

    Attributes:
        levels: Values between which scores are cut, ascending [J + 1].
        traits: The fitted model of a score above each cut, J events; None where there is one level only.
        table: 1 - (1 - theta)^n [T, N].
        n_visited: V.
    """

    levels: FloatArray
    traits: Traits | None
    table: FloatArray
    n_visited: int

    @property
    def cuts(self) -> FloatArray:
        """Where scores are cut [J]."""
        return np.asarray((self.levels[1:] + self.levels[:-1]) / 2)

    @property
    def width(self) -> FloatArray:
        """Distance of each level from the one before [J]."""
        return np.diff(self.levels)

    @cached_property
    def _difficulties(self) -> FloatArray:
        """Posteriors of all events side by side [V, J D], times the width of their levels."""
        if self.traits is None:
            return np.empty((self.n_visited, 0))
        scaled = difficulties(self.traits) * self.width[:, None, None]
        return np.ascontiguousarray(np.moveaxis(scaled, 0, 1).reshape(self.n_visited, -1))

    def _laws(self, prompts: IntArray) -> FloatArray:
        """Return the laws of theta of some prompts by event and difficulty [Q, J D, T]."""
        if self.traits is None:
            return np.empty((len(prompts), 0, len(self.table)))
        return np.moveaxis(self.traits.law[:, prompts], 1, 0).reshape(len(prompts), -1, len(self.table))

    def block(self, prompts: IntArray) -> FloatArray:
        """Implement `Surface.block`."""
        out = self._difficulties @ (self._laws(prompts) @ self.table)
        out += self.levels[0]
        return out

    def at(self, prompts: IntArray, scales: IntArray) -> FloatArray:
        """Implement `Surface.at`."""
        by_difficulty = (self._laws(prompts) @ self.table.T[scales - 1, :, None])[:, :, 0]
        out: FloatArray = by_difficulty @ self._difficulties.T
        out += self.levels[0]
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class BestOfModel:
    """A fitted model of Best-of-N, one entry per row of objective weights [W].

    Attributes:
        cells: Everything that was drawn.
        values: Weighted score of each completion, NaN for failed ones, each [S].
        floors: Value where all completions failed.
        levels: Values between which scores are cut, ascending, each [J + 1].
        traits: The fitted model of a score above each cut, J events; None where there is one level only.
        table: 1 - (1 - theta)^n [T, N].
    """

    cells: Cells
    values: tuple[FloatArray, ...]
    floors: tuple[float, ...]
    levels: tuple[FloatArray, ...]
    traits: tuple[Traits | None, ...]
    table: FloatArray

    def knowledge(self, row: int) -> Knowledge | None:
        """Implement `Informed.knowledge`."""
        traits, width = self.traits[row], np.diff(self.levels[row])[:, None, None]
        if traits is None:
            return None
        return Knowledge(traits=traits, cells=self.cells, worth=lambda _, scales: width * self.table.T[scales - 1])

    def stops(self, row: int, prompts: IntArray, max_n: int, *, exact: bool = False) -> StopEstimates | None:
        """Implement `FittedModel.stops` for thresholds at every cut; each may change a result, so none is exact."""
        traits, levels = self.traits[row], self.levels[row]
        if exact or traits is None or max_n == 1:
            return None
        cuts = (levels[1:] + levels[:-1]) / 2
        stops = tuple(stop for n in best_of_scales(max_n) for stop in threshold_stops(n, cuts.tolist()))
        law, cells = of_prompts(traits, self.cells, prompts)
        width = np.diff(levels)
        difficulty = difficulties(law)
        total = np.zeros((3, len(prompts), len(stops)))
        step = max(1, _CHUNK // (len(prompts) * _PARTS * len(width)))
        for begin in range(0, cells.n_visited, step):
            theta = difficulty[:, None, begin : begin + step] @ law.law  # [J, Q, V', T]
            total += early_best(1.0 - _coupled(theta), width, stops).sum(axis=2)

        def says() -> Iterator[CellReadings]:
            for mine in drawn_cells(law, cells, _PARTS * len(stops)):
                readings = (early_best(1.0 - _coupled(t), width, stops) for t in of_drawn(law, cells, mine))
                yield CellReadings(mine, *readings)

        kept = np.repeat(np.isin(self.cells.prompt, prompts), self.cells.size)
        observed = observed_best_of(cells, self.values[row][kept], stops, self.floors[row])
        return corrected_stops(total, says(), observed, cells, prompts, stops, float(levels[-1] - levels[0]))

    def simulate(self, row: int, prompts: IntArray, n: int, copies: int, rng: np.random.Generator) -> Simulated:
        """Implement `Simulates.simulate`: one uniform number decides which levels a completion reaches.

        Its value is the sum of their widths, so that the best of n is worth what the module's text says. A completion
        that fails reaches the lowest level only.
        """
        traits, levels = self.traits[row], self.levels[row]
        shape = len(prompts), self.cells.n_visited * copies, n
        label = np.zeros(shape, dtype=np.int64)
        if traits is None:
            return Simulated(label, np.full(shape, levels[0]))
        theta = draw_thetas(traits, self.cells, prompts, copies, rng)
        luck = rng.random(shape)
        value = np.full(shape, levels[0])
        for event, width in zip(theta, np.diff(levels), strict=True):
            value += np.where(luck < event[:, :, None], width, 0.0)
        return Simulated(label, value)


def early_best(below: FloatArray, width: FloatArray, stops: tuple[Stop, ...]) -> FloatArray:
    """Return what stopped calls do in cells of a known law, mean over the equally likely cells.

    Args:
        below: P(a score is below each level) [..., B, J], B equally likely cells.
        width: Distance of each level from the one before [J].
        stops: For each list of waves, as many options as levels, in their order; option j stops at level j.

    Returns:
        Gain, completions and waves [3, ..., M].
    """
    reached: dict[int, FloatArray] = {}

    def above(draws: int) -> FloatArray:
        """Return sum over levels from each one up of width * P(best of so many draws reaches it)."""
        if draws not in reached:
            terms = width * (1.0 - below**draws)
            reached[draws] = np.cumsum(terms[..., ::-1], axis=-1)[..., ::-1]
        return reached[draws]

    levels = len(width)
    out = np.zeros((3, *below.shape[:-2], len(stops)))
    for begin in range(0, len(stops), levels):
        waves = (0, *stops[begin].waves)
        gain, completions, count = -above(waves[-1]), np.zeros_like(below), np.zeros_like(below)
        for before, end in pairwise(waves):
            going = below**before
            gain = gain + going * above(end - before)
            completions += (end - before) * going
            count += going
        for i, part in enumerate((gain, completions, count)):
            out[i, ..., begin : begin + levels] = part.mean(axis=-2)
    return out


def _coupled(laws: FloatArray) -> FloatArray:
    """Return success probabilities of equally likely cells [..., B, J] for laws of theta by event [J, ..., T]."""
    edges = np.arange(_PARTS + 1) / _PARTS
    cumulative = np.cumsum(laws, axis=-1)
    # The quantile function, integrated up to each edge: piecewise linear in the cumulative probability.
    share = np.clip(edges[:, None] - (cumulative - laws)[..., None, :], 0.0, laws[..., None, :])
    theta = np.moveaxis(_PARTS * np.diff(share @ THETA, axis=-1), 0, -1)
    return np.asarray(np.minimum.accumulate(np.clip(theta, 0.0, 1.0), axis=-1))
