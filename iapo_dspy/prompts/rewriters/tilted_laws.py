"""The law of Align-Pro (Trivedi et al., AAAI 2025, arXiv 2501.03486) on a finite set of rewrites, and its distances.

The optimal prompter of the paper's problem (9), `max E[r] - lambda * KL(rho || rho_sft)`, is its equation (10):
`rho*(x' | x)` is proportional to `rho_sft(x' | x) * exp(r(x', x) / lambda)`. Here the reference prompter is known by k
rewrites that it has written: each has the weight 1/k before it is tilted.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray


def tilted_law(rewards: ArrayLike, reference: ArrayLike | None = None, lam: float = 1.0) -> FloatArray:
    """Return the law that is proportional to `reference * exp(rewards / lam)`: equation (10) of the paper.

        >>> tilted_law([0.0, 1.0], lam=1 / np.log(3)).round(12).tolist()  # exp(1 / lam) = 3
        [0.25, 0.75]

    Args:
        rewards: Rewards [k], finite.
        reference: The law that is tilted [k], >= 0, with the sum 1. Default: 1/k each.
        lam: Lambda, >= 0. At infinity it is the reference; at 0 it is the reference on the largest rewards.

    Raises:
        ConfigurationError: They are not rewards and a law of one length, or lambda is not >= 0.
    """
    reward, law = _checked(rewards, reference)
    if math.isnan(lam) or lam < 0:
        raise ConfigurationError(f"lam={lam!r}: give a number >= 0.")
    if math.isinf(lam):
        return law
    best = reward[law > 0].max()
    if lam == 0:
        weight = np.where((reward == best) & (law > 0), law, 0.0)
    else:
        with np.errstate(under="ignore", over="ignore"):  # differences to the best are <= 0 where the law is
            weight = law * np.exp(np.minimum((reward - best) / lam, 0.0))
    return np.asarray(weight / weight.sum())


def kl_divergence(law: ArrayLike, reference: ArrayLike) -> float:
    """Return the Kullback-Leibler divergence of a law from a reference in nats: `sum p * log(p / q)`.

    Infinite where the law allows what the reference does not.
    """
    p, q = np.asarray(law, dtype=float), np.asarray(reference, dtype=float)
    with np.errstate(divide="ignore"):
        return float(max(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])), 0.0))


def kl_bound(rewards: ArrayLike, reference: ArrayLike | None = None, lam: float = 1.0) -> float:
    """Return the most that the divergence of the tilted law can be: the gain in mean reward, divided by lambda.

    The tilted law is the best one for problem (9) of the paper, and the reference is a law as well, whose divergence is
    0. So `E*[r] - lam * KL >= E_ref[r]`, which is `KL <= (E*[r] - E_ref[r]) / lam`, at most the range of rewards over
    lambda. The paper uses the same product of lambda and divergence in its theorem 1, equation (11).

    Args:
        rewards: Rewards [k], finite.
        reference: See `tilted_law`.
        lam: Lambda, >= 0. At 0 there is no bound, so it is infinite unless all rewards are alike.

    Raises:
        ConfigurationError: As for `tilted_law`.
    """
    reward, law = _checked(rewards, reference)
    gain = float(tilted_law(reward, law, lam) @ reward - law @ reward)
    if math.isinf(lam) or gain <= 0:
        return 0.0
    return gain / lam if lam > 0 else math.inf


def best_of_k_divergence(k: int) -> float:
    """Return the divergence of the best of k rewrites from the reference prompter: `log k - (k - 1) / k` nats.

    It holds where no two rewrites of the prompter have the same reward, and is an upper bound elsewhere.
    """
    return math.log(k) - (k - 1) / k


def _checked(rewards: ArrayLike, reference: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    reward = np.asarray(rewards, dtype=float)
    law = np.full(reward.shape, 1.0 / max(reward.size, 1)) if reference is None else np.asarray(reference, dtype=float)
    good = reward.ndim == 1 and reward.size > 0 and law.shape == reward.shape and np.isfinite(reward).all()
    if not good or not (np.isfinite(law).all() and (law >= 0).all() and abs(law.sum() - 1.0) < 1e-9):
        raise ConfigurationError(
            f"rewards={rewards!r}, reference={reference!r}: give finite rewards, and a law of the same length whose "
            "sum is 1."
        )
    return reward, law
