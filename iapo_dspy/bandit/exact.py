"""Expected rewards of arms in closed form, from the probabilities of a query's outcomes (eq. 1, 2 and 3), unsampled.

**Majority vote.** Let answer g have m votes. It is among the winners where every other answer s has n_s <= m, and with
t - 1 others at exactly m it is credited 1/t = integral of u^(t-1) over u in [0, 1]. So

    P(g wins) = sum over m >= 1 of P(n_g = m, and each n_s < m, or n_s = m counted with weight u), integrated over u.

Votes of different answers are dependent because they sum to n. Drawing Poisson(L) instead of n completions makes them
independent Poisson counts, and given that the total is n they are multinomial again (Poissonization). Each event is
then a product of polynomials in z, one per answer, whose coefficient of z^n divided by P(Poisson(L) = n) is the value
at n: all scales come out of one product. Every term is positive, so nothing cancels. The degree in u is at most the
number of other answers, so a few Gauss-Legendre nodes integrate exactly; the "half" rule is the two nodes 0 and 1.

**Best-of-N.** With values v_1 < v_2 < ... of cumulative probabilities F_i, E max of n = sum v_i (F_i^n - F_(i-1)^n).
"""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.aggregators import Ties
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray

__all__ = ["best_of_n_rewards", "majority_vote_rewards"]

_CHUNK = 4096  # rows worked on at once
_LARGEST_N = 600  # exp(-n), the smallest factor, is still a normal number


def majority_vote_rewards(
    probs: FloatArray, credit: FloatArray, max_n: int, *, ties: Ties = "paper", floor: float = 0.0
) -> FloatArray:
    """Return the expected score of a majority vote at every scale.

    Args:
        probs: Probability of each answer [G, A]; what a row lacks to 1 casts no vote.
        credit: Score of each answer [G, A]; 1 for the right one and 0 elsewhere under an exact-match metric.
        max_n: Largest scale, 1 .. 600.
        ties: See `Ties`; "half" needs at most one answer with a score other than 0 in each row.
        floor: Score where nobody voted.

    Returns:
        Expected score [G, N].

    Raises:
        ConfigurationError: `max_n` out of range, or "half" with several scored answers.
    """
    if not 1 <= max_n <= _LARGEST_N:
        raise ConfigurationError(f"max_n is {max_n}; exact values need 1 .. {_LARGEST_N}.")
    if ties == "half" and ((credit != 0).sum(axis=1) > 1).any():
        raise ConfigurationError('ties="half" needs at most one answer with a score per query.')
    silent = np.maximum(1.0 - probs.sum(axis=1), 0.0)
    reward = np.asarray(floor * silent[:, None] ** np.arange(1, max_n + 1))
    row, answer = np.nonzero((credit != 0) & (probs > 0))
    if not len(row):
        return reward
    others = np.sort(np.where(np.arange(probs.shape[1]) == answer[:, None], 0.0, probs[row]), axis=1)[:, :0:-1]
    cells = np.column_stack([(others > 0).sum(axis=1), probs[row, answer], silent[row], others])
    # Recorded probabilities are coarse, so many cells are alike; sorted, chunks have equally many other answers.
    cells, alike = np.unique(cells, axis=0, return_inverse=True)
    wins = np.empty((len(cells), max_n))
    for begin in range(0, len(cells), _CHUNK):
        part = cells[begin : begin + _CHUNK]
        rivals = int(part[:, 0].max())
        wins[begin : begin + _CHUNK] = _win_shares(part[:, 1], part[:, 3 : 3 + rivals], part[:, 2], max_n, ties)
    np.add.at(reward, row, credit[row, answer][:, None] * wins[alike.reshape(-1)])
    return reward


def best_of_n_rewards(values: FloatArray, probs: FloatArray, max_n: int, *, floor: float = 0.0) -> FloatArray:
    """Return the expected best value of n draws at every scale.

    Args:
        values: Weighted score of each outcome [G, M].
        probs: Probability of each outcome [G, M]; what a row lacks to 1 fails.
        max_n: Largest scale, >= 1.
        floor: Value where every draw failed.

    Returns:
        Expected value [G, N].
    """
    order = np.argsort(values, axis=1)
    ascending = np.take_along_axis(values, order, axis=1)
    below = np.empty((len(values), values.shape[1] + 1))  # P(one draw fails, or is among the i smallest)
    below[:, 0] = np.maximum(1.0 - probs.sum(axis=1), 0.0)
    below[:, 1:] = below[:, :1] + np.cumsum(np.take_along_axis(probs, order, axis=1), axis=1)
    # sum v_i (F_i^n - F_(i-1)^n) by parts, so that each scale is one product and one sum.
    step = np.diff(ascending, axis=1)
    reward = np.empty((len(values), max_n))
    power = np.ones_like(below)
    for n in range(max_n):
        power *= below
        failed = power[:, 0]
        inner = np.einsum("gm,gm->g", step, power[:, 1:-1])
        reward[:, n] = ascending[:, -1] * power[:, -1] - inner + (floor - ascending[:, 0]) * failed
    return reward


def _win_shares(own: FloatArray, others: FloatArray, silent: FloatArray, max_n: int, ties: Ties) -> FloatArray:
    """Return the probability that an answer wins the vote, ties shared, at every scale.

    Args:
        own: Probability of the answer [G].
        others: Probabilities of the other answers [G, S].
        silent: Probability of no vote [G].
        max_n: Largest scale.
        ties: See `Ties`.

    Returns:
        Probabilities [G, N].
    """
    mean = float(max_n)
    mine = _poisson(own * mean, max_n)  # [N + 1, G]
    rivals = [_poisson(others[:, s] * mean, max_n) for s in range(others.shape[1])]
    abstained = _poisson(silent * mean, max_n) if silent.any() else None
    share = np.zeros((max_n + 1, len(own)))
    nodes, weights = _tie_nodes(len(rivals), ties)
    for m in range(1, max_n + 1):
        rest = max_n - m  # votes that the others may have
        total = np.zeros((rest + 1, len(own)))
        for u, weight in zip(nodes, weights, strict=True):
            product = np.zeros((rest + 1, len(own)))
            product[0] = weight
            if abstained is not None:
                product = weight * abstained[: rest + 1]
            for rival in rivals:
                product = _convolve(product, rival, min(m, rest), u if m <= rest else 1.0)
            total += product
        share[m:] += mine[m] * total
    wins: FloatArray = np.transpose(share[1:] / _poisson(np.array([mean]), max_n)[1:])
    return wins


def _tie_nodes(rivals: int, ties: Ties) -> tuple[list[float], list[float]]:
    """Return quadrature nodes and weights on [0, 1] that credit ties as asked."""
    if ties == "half":
        return [0.0, 1.0], [0.5, 0.5]
    x, w = np.polynomial.legendre.leggauss(rivals // 2 + 1)  # exact up to degree 2k - 1 >= rivals
    return ((x + 1) / 2).tolist(), (w / 2).tolist()


def _convolve(product: FloatArray, rival: FloatArray, top: int, u: float) -> FloatArray:
    """Multiply by one rival's polynomial up to degree `top`, its last coefficient weighted by u; same length out."""
    out: FloatArray = product * rival[0]
    for j in range(1, top + 1):
        out[j:] += product[: len(product) - j] * (rival[j] * u if j == top else rival[j])
    return out


def _poisson(mean: FloatArray, largest: int) -> FloatArray:
    """Return P(Poisson(mean) = j) for j = 0 .. largest [largest + 1, G]."""
    pmf: FloatArray = np.empty((largest + 1, len(mean)))
    pmf[0] = np.exp(-mean)
    for j in range(1, largest + 1):
        pmf[j] = pmf[j - 1] * (mean / j)
    return pmf
