"""Block reuse: the paper's estimator (nested sample reuse across inference scales)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from iapo_dspy.bandit.aggregators.port import block_layout
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import IntArray, Observations

_CHUNK = 1 << 21  # array elements that one step may hold, so that memory does not grow with the batch


class BlockEstimator:
    """Means over disjoint blocks: a pull of m completions is floor(m / n) samples of scale n, for every n <= m.

    Blocks estimate rewards; costs are affine in n and estimated from all of a prompt's completions (`AffineCosts`).
    Keeps sums and counts per (context, prompt, scale) only, so an update costs time linear in the new completions.

    Args:
        problem: Gives the shape, the contexts and the aggregator.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._reward = np.zeros(problem.shape)
        self._costs = AffineCosts(problem.n_prompts)
        self._count = np.zeros(problem.shape[1:], dtype=np.int64)

    def update(self, observations: Observations) -> None:
        """Implement `Estimator.update`."""
        size = observations.pulls.size
        self._costs.update(observations)
        if len(size) == 1:
            self._add_single(observations)
            return
        start = np.cumsum(size) - size
        for pulls in self._batches(observations):
            self._add(observations, pulls, start[pulls], size[pulls])

    def estimates(self) -> Estimates:
        """Implement `Estimator.estimates`; `count` is the number of blocks."""
        blocks = np.where(self._count > 0, self._count, np.nan)
        cost = np.where(self._count > 0, self._costs.arms(self._problem.max_n), np.nan)
        return Estimates(reward=self._reward / blocks, cost=cost, count=self._count.copy())

    def _batches(self, observations: Observations) -> Iterator[IntArray]:
        """Split the pulls into groups of similar size, sorted by prompt.

        Pulls are padded to the largest size of their group; sizes of one group differ by less than a factor of 2, so
        padding at most doubles the work.
        """
        pulls = observations.pulls
        magnitude = np.frexp(pulls.size - 0.5)[1]  # sizes 1 | 2 | 3-4 | 5-8 | 9-16 | ...
        for level in np.unique(magnitude):
            members = np.flatnonzero(magnitude == level)
            members = members[np.argsort(pulls.prompt[members], kind="stable")]
            m = int(pulls.size[members].max())
            blocks = len(block_layout(m, self._problem.max_n).start)
            step = max(1, _CHUNK // (blocks * max(m, self._problem.n_contexts)))
            for i in range(0, len(members), step):
                yield members[i : i + step]

    def _add_single(self, observations: Observations) -> None:
        """Do what `_add` does for a single pull: sequential algorithms make thousands of them."""
        weights = self._problem.contexts.weights
        layout = block_layout(int(observations.pulls.size[0]), self._problem.max_n)
        label, score = observations.label[None], observations.score[None]
        reward = self._problem.aggregator.blocks(label, score, weights, layout)[:, :, 0]  # [C, B]
        arms = int(observations.pulls.prompt[0]), slice(len(layout.first))
        self._reward[:, arms[0], arms[1]] += np.add.reduceat(reward, layout.first, axis=1)
        self._count[arms] += layout.count

    def _add(self, observations: Observations, pulls: IntArray, start: IntArray, size: IntArray) -> None:
        """Add the blocks of these pulls (positions in the batch, sorted by prompt) to the sums."""
        position = np.arange(int(size.max()))
        layout = block_layout(len(position), self._problem.max_n)
        scales = np.arange(1, len(layout.first) + 1)[:, None]
        real = position < size[:, None]
        index = np.where(real, start[:, None] + position, 0)
        label = np.where(real, observations.label[index], -1)
        score = np.where(real[:, :, None], observations.score[index], np.nan)
        reward = self._problem.aggregator.blocks(label, score, self._problem.contexts.weights, layout)  # [C, B, G]
        blocks = size // scales  # [N, G]
        if not real.all():  # a block with padding in it does not count
            reward = np.where(layout.end[:, None] <= size, reward, 0.0)

        prompt, begin = np.unique(observations.pulls.prompt[pulls], return_index=True)
        by_scale = np.add.reduceat(reward, layout.first, axis=1)
        self._reward[:, prompt, : len(scales)] += np.add.reduceat(by_scale, begin, axis=2).transpose(0, 2, 1)
        self._count[prompt, : len(scales)] += np.add.reduceat(blocks, begin, axis=1).T
