"""The winner of a vote, where the answers' counts are independent given their total.

Let answer g have m votes. It is among the winners where every other answer s has n_s <= m, and with t - 1 others at
exactly m it is credited 1/t = integral of u^(t-1) over u in [0, 1]. So

    P(g wins) = sum over m >= 1 of P(n_g = m, and each n_s < m, or n_s = m counted with weight u), integrated over u.

Votes of different answers are dependent because they sum to n. Two laws of interest are independent counts given that
sum: completions drawn from known probabilities (Poisson counts given their sum are multinomial), and the completions
of a random subset of those that were drawn (binomial counts given their sum are hypergeometric). Each event is then a
product of polynomials in z, one per answer, whose coefficient of z^n divided by the probability of the sum n is the
value at n: all scales come out of one product. Every term is positive, so nothing cancels. The degree in u is at most
the number of other answers, so a few Gauss-Legendre nodes integrate exactly; the "half" rule is the two nodes 0 and
1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from iapo_dspy.types import FloatArray, IntArray

Ties = Literal["paper", "half"]
"""How a tied vote is credited: "paper" predicts one of the t winners at random, so each counts 1/t. "half" gives half
the best winner's credit whatever t is, as the authors' published figures do; only the simulator offers it."""


def win_shares(
    own: FloatArray, rivals: Sequence[FloatArray], abstained: FloatArray | None, ties: Ties = "paper"
) -> FloatArray:
    """Return the probability that an answer wins the vote, ties shared, jointly with the total of all counts.

    Args:
        own: Law of the answer's count [N + 1, G]: row j is the probability of j votes.
        rivals: Laws of the other answers' counts, each [N + 1, G].
        abstained: Law of the number of completions without a vote [N + 1, G]; `None` where all vote.
        ties: See `Ties`.

    Returns:
        P(the answer wins and the total is n), n = 0 .. N [N + 1, G].
    """
    max_n = len(own) - 1
    share = np.zeros_like(own)
    nodes, weights = _tie_nodes(len(rivals), ties)
    for m in range(1, max_n + 1):
        if not own[m].any():
            continue
        rest = max_n - m  # votes that the others may have
        total = np.zeros((rest + 1, own.shape[1]))
        for u, weight in zip(nodes, weights, strict=True):
            product = np.zeros((rest + 1, own.shape[1]))
            product[0] = weight
            if abstained is not None:
                product = weight * abstained[: rest + 1]
            for rival in rivals:
                product = _convolve(product, rival, min(m, rest), u if m <= rest else 1.0)
            total += product
        share[m:] += own[m] * total
    return share


def poisson(mean: FloatArray, largest: int) -> FloatArray:
    """Return P(Poisson(mean) = j) for j = 0 .. largest [largest + 1, G]."""
    pmf: FloatArray = np.empty((largest + 1, len(mean)))
    pmf[0] = np.exp(-mean)
    for j in range(1, largest + 1):
        pmf[j] = pmf[j - 1] * (mean / j)
    return pmf


def binomial(count: IntArray, share: FloatArray, largest: int) -> FloatArray:
    """Return P(Binomial(count, share) = j) for j = 0 .. largest [largest + 1, G]; each share in (0, 1)."""
    pmf: FloatArray = np.empty((largest + 1, len(count)))
    pmf[0] = (1.0 - share) ** count
    odds = share / (1.0 - share)
    for j in range(1, largest + 1):
        pmf[j] = pmf[j - 1] * (np.maximum(count - j + 1, 0) / j) * odds
    return pmf


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
