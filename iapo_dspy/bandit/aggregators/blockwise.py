"""A base class for aggregators that know what m completions are worth, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from iapo_dspy.bandit.aggregators.port import BlockLayout
from iapo_dspy.types import FloatArray, IntArray


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
