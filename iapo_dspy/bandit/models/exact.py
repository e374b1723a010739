"""Expected rewards of arms in closed form, from the probabilities of a query's outcomes (eq. 1, 2 and 3), unsampled.

**Majority vote.** Drawing Poisson(L) instead of n completions makes the counts of the answers independent, and given
that the total is n they are multinomial again (Poissonization): `winning.win_shares` does the rest.

**Best-of-N.** With values v_1 < v_2 < ... of cumulative probabilities F_i, E max of n = sum v_i (F_i^n - F_(i-1)^n).
"""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.models.winning import Ties, poisson, win_shares
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray

_CHUNK = 4096  # rows worked on at once
_LARGEST_N = 600  # exp(-n), the smallest factor, is still a normal number


def majority_vote_rewards(
    probs: FloatArray, credit: FloatArray, max_n: int, *, ties: Ties = "paper", floor: float = 0.0
) -> FloatArray:
    """Return the expected score of a majority vote at every scale.

    Args:
        probs: Probability of each answer [G, A]; the rest of a row up to 1 does not vote.
        credit: Score of each answer [G, A]; 1 for the right one and 0 elsewhere under an exact-match metric.
        max_n: Largest scale, 1 .. 600.
        ties: See `Ties`; "half" needs at most one answer with a score other than 0 in each row.
        floor: Score without a vote.

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
        mean = float(max_n)
        share = win_shares(
            poisson(part[:, 1] * mean, max_n),
            [poisson(part[:, 3 + s] * mean, max_n) for s in range(rivals)],
            poisson(part[:, 2] * mean, max_n) if part[:, 2].any() else None,
            ties,
        )
        wins[begin : begin + _CHUNK] = (share[1:] / poisson(np.array([mean]), max_n)[1:]).T
    np.add.at(reward, row, credit[row, answer][:, None] * wins[alike.reshape(-1)])
    return reward


def best_of_n_rewards(values: FloatArray, probs: FloatArray, max_n: int, *, floor: float = 0.0) -> FloatArray:
    """Return the expected best value of n draws at every scale.

    Args:
        values: Weighted score of each outcome [G, M].
        probs: Probability of each outcome [G, M]; the rest of a row up to 1 fails.
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
