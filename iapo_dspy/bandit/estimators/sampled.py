"""Unbiased subset estimates for any aggregator: all subsets where they are few, seeded random ones where they are many.

Completions of a cell are exchangeable, so every fixed set of k positions is an unbiased sample of scale k, and so is
the mean over several such sets. Where C(n, k) is large, the n positions are permuted and cut into disjoint blocks of
k, permutation after permutation: disjoint blocks say more than overlapping ones. The sets depend on n and k only, so a
run that is repeated finds the same, and errors of different cells are independent.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.types import FloatArray, IntArray

__all__ = ["SUBSETS", "sampled_subsets", "subset_positions"]

SUBSETS = 32  # so many subsets of a cell are aggregated at each scale, all of them where there are no more
_CHUNK = 1 << 21  # array elements that one step may hold


@lru_cache(maxsize=1024)
def subset_positions(n: int, k: int, count: int = SUBSETS) -> IntArray:
    """Return sets of k of n positions [M, k]: all of them where these are at most `count`, else at least `count`."""
    if math.comb(n, k) <= count:
        return np.array(list(combinations(range(n), k)), dtype=np.int64)
    rng = np.random.default_rng([n, k])
    blocks = n // k
    orders = [rng.permutation(n)[: blocks * k].reshape(blocks, k) for _ in range(-(-count // blocks))]
    return np.concatenate(orders)


def sampled_subsets(
    cells: Cells, aggregator: Aggregator, weights: FloatArray, max_n: int, count: int = SUBSETS
) -> FloatArray:
    """Return the mean reward of subsets of every cell's completions.

    Args:
        cells: The completions.
        aggregator: Any aggregator.
        weights: Rows of objective weights [W, K].
        max_n: Largest scale.
        count: Subsets of each cell and scale at least, as far as there are so many.

    Returns:
        Task rewards [W, G, N]; NaN at scales above a cell's number of completions.
    """
    out = np.full((len(weights), len(cells), max_n), np.nan)
    for n in np.unique(cells.size).tolist():
        members = np.flatnonzero(cells.size == n)
        for k in range(1, min(n, max_n) + 1):
            chosen = subset_positions(n, k, count)
            step = max(1, _CHUNK // (chosen.size * max(len(weights), cells.score.shape[1])))
            for begin in range(0, len(members), step):
                part = members[begin : begin + step]
                index = (cells.start[part][:, None, None] + chosen).reshape(-1, k)
                reward = aggregator.reward(cells.label[index], cells.score[index], weights)
                out[:, part, k - 1] = reward.reshape(len(weights), len(part), len(chosen)).mean(axis=2)
    return out
