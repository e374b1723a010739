"""Choosing among arms whose estimates are as good as equal."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.estimators.port import ArmEvidence
from iapo_dspy.types import Arm, FloatArray, IntArray, Policy

NEAR = 0.02  # standard errors that count as a tie
EQUAL = 1e-5  # of the largest utility: estimates of arms that are as good differ by that much in their last digits


def choose(q: FloatArray, evidence: ArmEvidence) -> Policy:
    """Return the best arm of each context; arms that are as good up to a near-tie give way to the cheapest of them.

    Args:
        q: Estimated utility [C, P, N]; NaN where there is none.
        evidence: The evidence behind the estimates.
    """
    prompts, scales = (a.reshape(-1) for a in np.indices(q.shape[1:]))
    price = np.where(np.isnan(evidence.cost), np.inf, evidence.cost).reshape(-1)
    largest = evidence.standard_error().max(axis=(1, 2))
    arms = []
    for context, values in enumerate(np.where(np.isnan(q), -np.inf, q).reshape(len(q), -1)):
        best = cheapest_of_best(values, price, prompts, scales + 1, evidence, context, float(largest[context]))
        arms.append(Arm(int(prompts[best]), int(scales[best]) + 1))
    return Policy(tuple(arms))


def cheapest_of_best(
    values: FloatArray,
    price: FloatArray,
    prompts: IntArray,
    scales: IntArray,
    evidence: ArmEvidence,
    context: int,
    largest: float,
) -> int:
    """Return the position of the best arm, or of the cheapest of those that are as good up to a near-tie.

    An arm is nearly tied where its estimate falls short by less than a fiftieth of the standard error of the
    difference: too little to tell them apart.

    Args:
        values: Estimated utility of the arms [M]; -inf where there is none.
        price: Decides between arms that are as good [M].
        prompts: Their prompts [M].
        scales: Their scales, 1-based [M].
        evidence: The evidence behind the estimates.
        context: Which context.
        largest: The largest standard error of an arm in this context.
    """
    first = int(values.argmax())
    equal = EQUAL * np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max()
    # The error of a difference is at most the sum of both errors; it is worked out only for arms that it can matter to.
    close = np.flatnonzero(values >= values[first] - 2.0 * NEAR * largest - equal)
    if np.isfinite(values[first]):
        se = evidence.against(context, prompts[close], scales[close], int(prompts[first]), int(scales[first]))
        close = close[values[close] >= values[first] - NEAR * se - equal]
    return int(close[np.lexsort((close, _rounded(-values[close]), _rounded(price[close])))[0]])


def _rounded(values: FloatArray) -> FloatArray:
    """Return values without their last digits, which depend on the order of sums: equal ones are equal then."""
    largest = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max(initial=0.0)
    return np.round(values / largest, 10) if largest > 0 else values
