"""What an aggregator may add to the port, and what it gets for free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import numpy as np

from iapo_dspy.bandit.aggregators.port import BlockLayout
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.types import FloatArray, IntArray

__all__ = ["Blockwise", "ClosedForm", "reach_of"]


class Blockwise(ABC):
    """Base of aggregators that only say what m completions are worth: `blocks` follows from `reward`."""

    @abstractmethod
    def check(self, n_objectives: int) -> None:
        """Implement `Aggregator.check`."""

    @abstractmethod
    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Aggregator.reward`."""

    def blocks(self, label: IntArray, score: FloatArray, weights: FloatArray, layout: BlockLayout) -> FloatArray:
        """Implement `Aggregator.blocks`: blocks of one size are aggregated together."""
        pulls = len(label)
        out = np.empty((len(weights), len(layout.start), pulls))
        size = layout.end - layout.start
        for n in np.unique(size).tolist():
            same = np.flatnonzero(size == n)
            index = layout.start[same][:, None] + np.arange(n)  # [b, n]
            labels = label[:, index].reshape(pulls * len(same), n)
            scores = score[:, index].reshape(pulls * len(same), n, score.shape[2])
            value = self.reward(labels, scores, weights).reshape(len(weights), pulls, len(same))
            out[:, same] = value.transpose(0, 2, 1)
        return out


@runtime_checkable
class ClosedForm(Protocol):
    """An aggregator that knows the unbiased subset estimates of a cell without looking at its subsets."""

    @property
    def reach(self) -> int | None:
        """Completions of a cell that tell its reward at every scale; None where each scale needs as many as it has."""

    def subsets(self, cells: Cells, weights: FloatArray, max_n: int) -> FloatArray:
        """Return what `estimators.subsets.cell_subsets` asks for: [W, G, N], NaN where a cell says nothing."""
        ...


def reach_of(aggregator: object) -> int | None:
    """Return how many completions of a cell tell its reward at every scale; None where each scale needs its own."""
    return aggregator.reach if isinstance(aggregator, ClosedForm) else None
