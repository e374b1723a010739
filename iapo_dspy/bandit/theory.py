"""The paper's theory as functions: eq. 5, propositions 1 and 2, the complexities H1 and H2, and theorem 1.

Gaps come from true values (`environments.recorded.recording`) or from the estimates of a run. The paper indexes arms
"based on ascending order of Q" while arm 1 is the best one; here they are indexed from the best to the worst, which is
what its gaps mean. H1 and H2 take maxima over the arms other than the best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.algorithms.trimming import best_arms
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Contexts, FloatArray, Policy


def agnostic_utility(score: FloatArray, cost: FloatArray, contexts: Contexts) -> FloatArray:
    """Return the inference-agnostic utility of blocks of completions (eq. 5).

    Args:
        score: Scores [G, n, K].
        cost: Costs in utility [G, n].
        contexts: The contexts.

    Returns:
        (1/n) sum_i (sum_k w_k O_k(y_i) - w_cost cost(y_i)) [C, G].
    """
    mean_cost = cost.mean(axis=1)
    reward = np.einsum("ck,gk->cg", contexts.weights, score.mean(axis=1))
    return np.asarray(reward - contexts.cost[:, None] * mean_cost)


def agnostic_q(q: FloatArray) -> FloatArray:
    """Return Q^IA (eq. 5 in expectation) of every arm [C, P, N].

    The expectation of a mean of i.i.d. completions does not depend on how many there are: it is Q of scale 1, at every
    scale (proposition 1: such methods optimize the arithmetic mean, so N is left undetermined).

    Args:
        q: Q [C, P, N]; only scale 1 is used.
    """
    return np.repeat(q[:, :, :1], q.shape[2], axis=2)


def agnostic_policy(q: FloatArray) -> Policy:
    """Return the policy of inference-agnostic optimization: the best prompt at scale 1 (proposition 1)."""
    single = q[:, :, :1]
    return best_arms(single, None, np.ones(single.shape, dtype=bool))


def agnostic_loss(q: FloatArray) -> FloatArray:
    """Return the loss of each context from choosing the prompt with Q^IA and its scale afterwards [C], >= 0.

    0 where choosing the prompt first does no harm.
    """
    prompts = np.array([arm.prompt for arm in agnostic_policy(q).arms])
    return np.asarray(q.max(axis=(1, 2)) - q[np.arange(len(q)), prompts].max(axis=1))


@dataclass(frozen=True, kw_only=True)
class AffineFit:
    """The closest affine relation Q = sigma Q^IA + mu of each context.

    Attributes:
        sigma: Slopes [C].
        mu: Offsets [C].
        residual: Largest absolute deviation from it [C]; 0 where the relation is exact.
    """

    sigma: FloatArray
    mu: FloatArray
    residual: FloatArray

    def recoverable(self, tolerance: float = 1e-9) -> bool:
        """Return whether proposition 2 applies: exact relations with sigma > 0, so Q^IA ranks as Q does."""
        return bool(((self.residual <= tolerance) & (self.sigma > 0)).all())


def fit_affine(q: FloatArray, q_agnostic: FloatArray) -> AffineFit:
    """Fit Q = sigma Q^IA + mu in each context by least squares (proposition 2).

    Args:
        q: Q of some arms [C, A].
        q_agnostic: Q^IA of the same arms [C, A].

    Returns:
        The fit; sigma is 0 where Q^IA is the same for all arms.
    """
    x = q_agnostic - q_agnostic.mean(axis=1, keepdims=True)
    y = q - q.mean(axis=1, keepdims=True)
    spread = (x * x).sum(axis=1)
    sigma = np.where(spread > 0, (x * y).sum(axis=1) / np.where(spread > 0, spread, 1.0), 0.0)
    residual = np.abs(y - sigma[:, None] * x).max(axis=1)
    return AffineFit(sigma=sigma, mu=q.mean(axis=1) - sigma * q_agnostic.mean(axis=1), residual=residual)


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """How hard a problem is (theorem 1).

    Attributes:
        h1: H1 of each context [C]: max over arms of mean scale / gap^2; infinite where two arms are best.
        h2: H2 of each context [C]: max over arms of i * mean scale / gap^2, i the arm's rank.
        n_prompts: |P|.
        rounds: R = ceil(log2 |A|).
    """

    h1: FloatArray
    h2: FloatArray
    n_prompts: int
    rounds: int

    @property
    def rate(self) -> float:
        """min(2 |P| H1, 8 |C| H2): completions per round and unit of the exponent."""
        return min(2 * self.n_prompts * float(self.h1.max()), 8 * len(self.h2) * float(self.h2.max()))


def complexity(q: FloatArray, *, half_range: float = 1.0) -> Complexity:
    """Return H1 and H2 of each context.

    Args:
        q: Q [C, P, N], true or estimated, without NaN.
        half_range: Half the width of the interval that utilities lie in; the theorem is stated for [-1, 1], so 1.

    Raises:
        ConfigurationError: NaN in q, fewer than two arms, or a range that is not positive.
    """
    if np.isnan(q).any() or q[0].size < 2 or not half_range > 0:
        raise ConfigurationError("Complexity needs the value of two arms or more, without NaN, and half_range > 0.")
    n_contexts, n_prompts, max_n = q.shape
    flat = q.reshape(n_contexts, -1) / half_range
    order = np.argsort(-flat, axis=1, kind="stable")
    ranked = np.take_along_axis(flat, order, axis=1)
    gap = ranked[:, :1] - ranked[:, 1:]
    mean_scale = ((order[:, 0] % max_n + 1) + max_n) / 2
    with np.errstate(divide="ignore"):
        ease = mean_scale[:, None] / gap**2
    rank = np.arange(2, flat.shape[1] + 1)
    return Complexity(
        h1=ease.max(axis=1),
        h2=(rank * ease).max(axis=1),
        n_prompts=n_prompts,
        rounds=math.ceil(math.log2(flat.shape[1])),
    )


def error_bound(found: Complexity, budget: int) -> float:
    """Bound the probability that PSST misses the best arm of some context (theorem 1).

    Args:
        found: The complexity of the problem.
        budget: T, completions.

    Returns:
        3 |C| R exp(-T / (min(2 |P| H1, 8 |C| H2) R)), at most 1.
    """
    exponent = 0.0 if math.isinf(found.rate) else budget / (found.rate * found.rounds)
    return min(1.0, 3 * len(found.h1) * found.rounds * math.exp(-exponent))


def budget_for(found: Complexity, failure: float) -> float:
    """Return the T at which theorem 1 promises the best arm of every context.

    Args:
        found: The complexity of the problem.
        failure: Probability delta in (0, 1) of missing one.

    Returns:
        min(2 |P| H1, 8 |C| H2) R log(3 |C| R / delta), rounded up; infinite where two arms are best.

    Raises:
        ConfigurationError: delta out of range.
    """
    if not 0 < failure < 1:
        raise ConfigurationError(f"failure is {failure!r}; give a probability between 0 and 1.")
    budget = found.rate * found.rounds * math.log(3 * len(found.h1) * found.rounds / failure)
    return budget if math.isinf(budget) else float(math.ceil(budget))
