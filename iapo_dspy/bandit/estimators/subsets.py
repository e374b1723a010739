"""Unbiased estimates at every scale up to the number drawn: the mean over all subsets of a cell's completions.

From n completions of one query, the reward at scale k <= n is estimated by the average of the aggregated reward over
all C(n, k) subsets (a U-statistic): unbiased, and of the least variance among unbiased estimates. In closed form:

- Best-of-k, rewards ascending r_(1) <= ... <= r_(n): sum over i >= k of C(i - 1, k - 1) / C(n, k) * r_(i).
- Majority vote: a subset that takes each completion independently with the same probability has independent binomial
  counts, which given their sum k are those of a random k-subset; `voting.win_shares` then gives every k at once, ties
  credited 1/t.

Other aggregators bring a closed form of their own (`ClosedForm`), or are evaluated on subsets (`sampled`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from iapo_dspy.bandit.aggregators.blockwise import ClosedForm
from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator, Ties
from iapo_dspy.bandit.aggregators.winning import binomial, win_shares
from iapo_dspy.bandit.cells import Ballots, Cells, ballots
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.estimators.sampled import sampled_subsets
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray, Observations

__all__ = ["SubsetEstimator", "best_of_subsets", "cell_subsets", "vote_subsets"]

_CHUNK = 4096


class SubsetEstimator:
    """Means over queries of the unbiased subset estimates of each query's completions.

    All completions of a prompt on a query are pooled, whichever pull brought them. Queries with fewer completions
    than a scale say nothing about it.

    Args:
        problem: Gives the shape, the contexts and the aggregator.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._costs = AffineCosts(problem.n_prompts)
        self._observations: list[Observations] = []

    def update(self, observations: Observations) -> None:
        """Implement `Estimator.update`."""
        self._costs.update(observations)
        self._observations.append(observations)

    def estimates(self) -> Estimates:
        """Implement `Estimator.estimates`; `count` is the number of queries."""
        problem = self._problem
        contexts = problem.contexts
        rows, row = np.unique(contexts.weights, axis=0, return_inverse=True)
        cells = Cells.of(self._observations, problem.n_prompts, contexts.n_objectives)
        value = cell_subsets(cells, problem.aggregator, rows, problem.max_n)  # [W, G, N]
        known = ~np.isnan(value[0])
        count = np.zeros((problem.n_prompts, problem.max_n), dtype=np.int64)
        np.add.at(count, cells.prompt, known)
        total = np.zeros((len(rows), problem.n_prompts, problem.max_n))
        for w in range(len(rows)):
            np.add.at(total[w], cells.prompt, np.where(known, value[w], 0.0))
        queries = np.where(count > 0, count, np.nan)
        return Estimates(
            reward=(total / queries)[row.reshape(-1)],
            cost=np.where(count > 0, self._costs.arms(problem.max_n), np.nan),
            count=count,
        )


def cell_subsets(cells: Cells, aggregator: Aggregator, weights: FloatArray, max_n: int) -> FloatArray:
    """Return the subset estimates of every cell: in closed form where there is one, else over sampled subsets.

    Args:
        cells: The completions.
        aggregator: Any aggregator.
        weights: Rows of objective weights [W, K].
        max_n: Largest scale.

    Returns:
        Task rewards [W, G, N]; NaN at scales above a cell's number of completions, unless the aggregator knows them
        from fewer (`ClosedForm.reach`).

    Raises:
        ConfigurationError: "half" with several scored answers in a cell.
    """
    if isinstance(aggregator, MajorityVoteAggregator):
        votes = ballots(cells)
        value = vote_subsets(votes, votes.worth, max_n, ties=aggregator.ties, floor=aggregator.floor)
        return np.asarray(weights[:, 0, None, None] * value)
    if isinstance(aggregator, BestOfNAggregator):
        floors = np.zeros(weights.shape[1]) if aggregator.floors is None else np.asarray(aggregator.floors)
        out = np.full((len(weights), len(cells), max_n), np.nan)
        value = np.where(cells.failed, -np.inf, _weighted(cells, weights))
        for n in np.unique(cells.size).tolist():
            members = np.flatnonzero(cells.size == n)
            index = cells.start[members][:, None] + np.arange(n)
            out[:, members, : min(n, max_n)] = best_of_subsets(value[:, index], weights @ floors, max_n)
        return out
    if isinstance(aggregator, ClosedForm):
        return aggregator.subsets(cells, weights, max_n)
    return sampled_subsets(cells, aggregator, weights, max_n)


def _weighted(cells: Cells, weights: FloatArray) -> FloatArray:
    """Return the weighted scores [W, S], summed in the order of the objectives."""
    total = np.zeros((len(weights), len(cells.label)))
    for k in range(weights.shape[1]):
        total += weights[:, k, None] * cells.score[:, k]
    return total


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
        floor: Score of a subset in which nobody voted.

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
