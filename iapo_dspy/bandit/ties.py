"""Choosing among arms whose estimates are as good as equal."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.estimators.port import ArmEvidence
from iapo_dspy.types import Arm, FloatArray, Policy

__all__ = ["choose"]


NEAR = 0.02  # standard errors that count as a tie


EQUAL = 1e-5  # of the largest utility: estimates of arms that are as good differ by that much in their last digits


def choose(q: FloatArray, evidence: ArmEvidence) -> Policy:
    """Return the best arm of each context; arms that are as good up to a near-tie give way to the cheapest of them.

    An arm is nearly tied where its estimate falls short by less than a fiftieth of the standard error of the
    difference: evidence that says nothing.

    Args:
        q: Estimated utility [C, P, N]; NaN where there is none.
        evidence: What the estimates rest on.
    """
    n_contexts, n_prompts, max_n = q.shape
    prompts, scales = np.divmod(np.arange(n_prompts * max_n), max_n)
    price = np.where(np.isnan(evidence.cost), np.inf, evidence.cost).reshape(-1)
    # The error of a difference is at most the sum of both errors; it is worked out only for arms that it can matter to.
    largest = 2.0 * NEAR * evidence.standard_error().max(axis=(1, 2))
    arms = []
    for context in range(n_contexts):
        values = np.where(np.isnan(q[context]), -np.inf, q[context]).reshape(-1)
        first = int(values.argmax())
        equal = EQUAL * np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max()
        close = np.flatnonzero(values >= values[first] - largest[context] - equal)
        if np.isfinite(values[first]):
            se = evidence.against(
                context, prompts[close], scales[close] + 1, int(prompts[first]), int(scales[first]) + 1
            )
            close = close[values[close] >= values[first] - NEAR * se - equal]
        best = close[np.lexsort((close, -values[close], price[close]))[0]]
        arms.append(Arm(int(prompts[best]), int(scales[best]) + 1))
    return Policy(tuple(arms))
