"""Means over all subsets of a cell's completions, in closed form (U-statistics).

From n completions of one query, the reward at scale k <= n is estimated by the average of the aggregated reward over
all C(n, k) subsets: unbiased, and of the least variance among unbiased estimates.

- Best-of-k, rewards ascending r_(1) <= ... <= r_(n): sum over i >= k of C(i - 1, k - 1) / C(n, k) * r_(i).
- Majority vote: a subset that takes each completion independently with the same probability has independent binomial
  counts, which given their sum k are those of a random k-subset; `winning.win_shares` then gives every k at once, ties
  credited 1/t.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from iapo_dspy.bandit.cells import Ballots
from iapo_dspy.bandit.models.winning import Ties, binomial, win_shares
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

_CHUNK = 4096  # rows worked on at once


def best_of_subsets(values: FloatArray, floor: FloatArray, max_n: int) -> FloatArray:
    """Return the mean over all k-subsets of the largest value, k = 1 .. min(n, max_n).

    Args:
        values: Weighted scores [W, G, n], -inf for failed completions.
        floor: Value of a subset in which all failed [W].
        max_n: Largest scale.

    Returns:
        Means [W, G, min(n, max_n)].
    """
    ascending = np.sort(values, axis=2)
    ascending = np.where(np.isneginf(ascending), floor[:, None, None], ascending)
    return np.asarray(ascending @ _order_weights(values.shape[2], max_n))


@lru_cache(maxsize=1024)
def _order_weights(n: int, max_n: int) -> FloatArray:
    """Return C(i - 1, k - 1) / C(n, k) [i, k]: the probability that the i-th smallest is the largest of k.

    As a product of ratios, so that no binomial coefficient overflows: the i-th smallest is in the subset and the others
    are below it.
    """
    scales = min(n, max_n)
    weight = np.zeros((n, scales))
    for k in range(1, scales + 1):
        share = k / n  # i = n: the largest of all is in the subset
        for i in range(n, k - 1, -1):
            weight[i - 1, k - 1] = share
            share *= (i - k) / (i - 1) if i > 1 else 0.0
    weight.setflags(write=False)
    return weight


def vote_subsets(
    votes: Ballots, credit: FloatArray, max_n: int, *, ties: Ties = "paper", floor: float = 0.0
) -> FloatArray:
    """Return the mean over all k-subsets of the score of the vote.

    Args:
        votes: The votes of every cell.
        credit: Score of each answer [G, A].
        max_n: Largest scale.
        ties: See `Ties`; "half" needs at most one answer with votes and a score other than 0 in each cell.
        floor: Score of a subset without a vote.

    Returns:
        Means [G, N]; NaN above a cell's number of completions.

    Raises:
        ConfigurationError: "half" with several scored answers in a cell.
    """
    if ties == "half" and (((credit != 0) & (votes.votes > 0)).sum(axis=1) > 1).any():
        raise ConfigurationError('ties="half" needs at most one answer with a score per query; use ties="paper".')
    size = votes.votes.sum(axis=1) + votes.silent
    out = np.where(np.arange(1, max_n + 1) <= size[:, None], 0.0, np.nan)
    if floor:
        out += floor * _all_silent(votes.silent, size, max_n)
    row, answer = np.nonzero((credit != 0) & (votes.votes > 0))
    if not len(row):
        return out
    others = np.where(np.arange(votes.votes.shape[1]) == answer[:, None], 0, votes.votes[row])
    others = np.sort(others, axis=1)[:, ::-1]
    others = others[:, : int((others > 0).sum(axis=1).max(initial=0))]
    # Counts are small numbers, so most cells are alike; sorted, chunks have equally many completions and rivals.
    keys = np.column_stack([size[row], (others > 0).sum(axis=1), votes.votes[row, answer], votes.silent[row], others])
    keys, alike = np.unique(keys, axis=0, return_inverse=True)
    alike = alike.reshape(-1)
    wins = np.zeros((len(keys), max_n))
    for n in np.unique(keys[:, 0]).tolist():
        same = np.flatnonzero(keys[:, 0] == n)
        for begin in range(0, len(same), _CHUNK):
            part = same[begin : begin + _CHUNK]
            rivals = int(keys[part, 1].max())
            share = _subset_wins(keys[part, 2], keys[part, 4 : 4 + rivals], keys[part, 3], n, max_n, ties)
            wins[part, : share.shape[1]] = share
    np.add.at(out, row, credit[row, answer][:, None] * wins[alike])
    return out


def _subset_wins(own: IntArray, others: IntArray, silent: IntArray, n: int, max_n: int, ties: Ties) -> FloatArray:
    """Return the share of k-subsets that an answer wins [G, min(n, max_n)]; all cells have n completions."""
    largest = min(n, max_n)
    share = np.array([min((largest + 1) / (2 * n), 0.5)])  # small where n is large: (1 - share)^n must not underflow
    joint = win_shares(
        binomial(own, share, largest),
        [binomial(others[:, s], share, largest) for s in range(others.shape[1])],
        binomial(silent, share, largest) if silent.any() else None,
        ties,
    )
    return np.asarray((joint[1:] / binomial(np.array([n]), share, largest)[1:]).T)


def _all_silent(silent: IntArray, size: IntArray, max_n: int) -> FloatArray:
    """Return C(silent, k) / C(size, k), the share of k-subsets without a vote [G, N]; NaN above the size."""
    out = np.empty((len(size), max_n))
    share = np.ones(len(size))
    for k in range(max_n):
        left = (size - k).astype(float)
        share = share * np.maximum(silent - k, 0) / np.where(left > 0, left, np.nan)
        out[:, k] = share
    return out
