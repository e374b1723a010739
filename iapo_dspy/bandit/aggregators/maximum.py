"""Best-of-N over blocks of completions (eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.aggregators.port import BlockLayout, WeightRows, distinct_rows, whole
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.best_of import BestOfPredictor
from iapo_dspy.bandit.models.subset_means import best_of_subsets
from iapo_dspy.bandit.stopping.replays import observed_best_of
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray, Stop


@dataclass(frozen=True)
class BestOfNAggregator:
    """Best-of-N (eq. 1): the largest weighted score among the completions that did not fail.

    Args:
        floors: Score per objective [K] where every completion failed; `None` means zeros.
    """

    floors: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.floors is not None:
            floors = tuple(float(f) for f in self.floors)
            if not floors or not np.isfinite(floors).all():
                raise ConfigurationError(f"BestOfNAggregator: floors is {self.floors!r}; give K finite numbers.")
            object.__setattr__(self, "floors", floors)

    def check(self, n_objectives: int) -> None:
        """Raise where `floors` does not have K entries."""
        if self.floors is not None and len(self.floors) != n_objectives:
            raise ConfigurationError(
                f"BestOfNAggregator has {len(self.floors)} floors, but there are {n_objectives} objectives."
            )

    def blocks(self, label: IntArray, score: FloatArray, weights: FloatArray, layout: BlockLayout) -> FloatArray:
        """Implement `Aggregator.blocks`."""
        best = _range_max(self._values(score, weights), layout)
        reward: FloatArray = np.where(np.isneginf(best), self._floor(weights)[:, None], best).transpose(1, 0, 2)
        return reward

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Aggregator.reward`."""
        return self.blocks(label, score, weights, whole(score.shape[1]))[:, 0]

    def sureness(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Sure.sureness`: the best weighted score."""
        return np.asarray(self.reward(label, score, weights[None])[0])

    def doubt(self, below: float, n: int) -> str:
        """Implement `Sure.doubt`."""
        return f"{'the best one' if n > 1 else 'it'} scores less than {below:.3g}"

    @property
    def reach(self) -> int | None:
        """Implement `ClosedForm.reach`."""
        return None

    def subsets(self, cells: Cells, weights: FloatArray, max_n: int) -> FloatArray:
        """Implement `ClosedForm.subsets`."""
        out = np.full((len(weights), len(cells), max_n), np.nan)
        value = self._values(cells.score[:, None], weights)[0]
        for n in np.unique(cells.size).tolist():
            members = np.flatnonzero(cells.size == n)
            index = cells.start[members][:, None] + np.arange(n)
            out[:, members, : min(n, max_n)] = best_of_subsets(value[:, index], self._floor(weights), max_n)
        return out

    def rows(self, weights: FloatArray) -> WeightRows:
        """Implement `Modelled.rows`."""
        return distinct_rows(weights)

    def model(self, rows: FloatArray, n_prompts: int, max_n: int, parts: IntArray | None = None) -> BestOfPredictor:
        """Implement `Modelled.model`."""
        return BestOfPredictor(rows, self._floor(rows), n_prompts, max_n, parts=parts)

    def settling(self, n: int) -> Stop | None:
        """Implement `Stoppable.settling`: a completion that is not drawn yet may always be the best one."""
        return None

    def observed(self, cells: Cells, weights: FloatArray, stops: tuple[Stop, ...]) -> FloatArray:
        """Implement `Stoppable.observed`."""
        return observed_best_of(cells, cells.score @ weights, stops, float(self._floor(weights)))

    def _floor(self, weights: FloatArray) -> FloatArray:
        """Return the value of a call in which every completion failed, for weights [..., K]."""
        floors = np.zeros(weights.shape[-1]) if self.floors is None else np.asarray(self.floors)
        return np.asarray(weights @ floors)

    @staticmethod
    def _values(score: FloatArray, weights: FloatArray) -> FloatArray:
        """Return the weighted scores [m, C, G], -inf for failed completions."""
        total = np.zeros((score.shape[1], len(weights), score.shape[0]))
        for k in range(score.shape[2]):  # not matmul: a sum in fixed order is the same in every batch
            total += weights[:, k, None] * score[:, :, k].T[:, None, :]
        return np.where(np.isnan(total), -np.inf, total)


def _range_max(values: FloatArray, layout: BlockLayout) -> FloatArray:
    """Return the maximum of each block along the first axis [B, ...].

    Every block is the union of two runs of 2^j entries, so maxima of all such runs are enough.
    """
    size = layout.end - layout.start
    level = np.frexp(size)[1] - 1  # 2^level <= size < 2^(level + 1)
    runs, offset, table = values, [0], [values]
    for j in range(int(level.max())):
        offset.append(offset[-1] + len(runs))
        runs = np.maximum(runs[: len(runs) - (1 << j)], runs[1 << j :])
        table.append(runs)
    maxima, base = np.concatenate(table), np.array(offset)[level]
    best: FloatArray = np.maximum(maxima[base + layout.start], maxima[base + layout.end - (1 << level)])
    return best
