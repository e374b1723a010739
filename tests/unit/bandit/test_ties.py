"""Near ties go to the cheapest arm, by hand."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.models.surfaces import Dense
from iapo_dspy.bandit.ties import choose
from iapo_dspy.types import Arm, FloatArray

NAN = float("nan")


def evidence(values: FloatArray, cost: FloatArray) -> Evidence:
    """Values [P, V, N] without any bias."""
    p, _, n = values.shape
    nothing = np.zeros((1, p, n))
    return Evidence(
        values=(Dense(values),),
        influence=(Dense(values),),
        n_visited=values.shape[1],
        bias=nothing,
        doubt=nothing,
        queries=np.full((p, n), values.shape[1]),
        row=np.array([0]),
        factor=np.array([1.0]),
        cost=cost,
    )


def test_near_ties_go_to_the_cheapest_and_clear_differences_to_the_better() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 400, 2))  # standard error of a difference: about .07
    noise -= noise.mean(axis=1, keepdims=True)
    cost = np.array([[1.0, 2.0], [3.0, 4.0]])
    for lead, best in ((0.0005, Arm(0, 1)), (0.05, Arm(1, 2))):
        values = noise.copy()
        values[1, :, 1] += lead
        q = values.mean(axis=1)[None]
        assert choose(q, evidence(values, cost)).arms == (best,)
    # Differences that are known for sure are not ties, however small.
    values = np.repeat(noise[:1, :, :1], 2, axis=0) + np.zeros((2, 400, 2))
    values[1, :, 1] += 0.0005
    assert choose(values.mean(axis=1)[None], evidence(values, cost)).arms == (Arm(1, 2),)
    # Arms without an estimate are not chosen.
    q = np.array([[[NAN, NAN], [0.1, 0.0]]])
    assert choose(q, evidence(noise, np.array([[NAN, NAN], [3.0, 4.0]]))).arms == (Arm(1, 1),)


def test_arms_that_differ_in_their_last_digits_only_are_taken_in_their_order() -> None:
    values = np.zeros((3, 50, 1)) + np.array([0.5, 0.5 + 1e-14, 0.5 - 1e-14])[:, None, None]
    for cost in ([1.0, 1.0 - 2e-16, 1.0 + 1e-15], [1.0 + 1e-15, 1.0, 1.0 - 1e-15]):
        assert choose(values.mean(axis=1)[None], evidence(values, np.array(cost)[:, None])).arms == (Arm(0, 1),)
    assert choose(values.mean(axis=1)[None], evidence(values, np.array([[1.0], [0.9], [1.0]]))).arms == (Arm(1, 1),)
