"""The law of Align-Pro on small cases that are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.rewriters import best_of_k_divergence, kl_bound, kl_divergence, tilted_law

LOG2 = math.log(2)


def test_three_rewrites_are_tilted_by_the_exponential_of_their_rewards() -> None:
    # exp(r / lambda) = 1, 2, 4 at lambda = 1 / log 2, and their sum is 7
    law = tilted_law([0, 1, 2], lam=1 / LOG2)
    assert law == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    # against a reference of 1/2, 1/4, 1/4 the weights are 1/2, 1/2, 1, and their sum is 2
    assert tilted_law([0, 1, 2], [0.5, 0.25, 0.25], 1 / LOG2) == pytest.approx([0.25, 0.25, 0.5])
    assert tilted_law([5.0]) == pytest.approx([1.0])


def test_the_limits_of_lambda_are_the_reference_and_the_best() -> None:
    reference = [0.5, 0.3, 0.2]
    assert tilted_law([0, 1, 2], reference, math.inf).tolist() == reference
    assert tilted_law([0, 1, 2], reference, 1e9) == pytest.approx(reference, abs=1e-8)
    assert tilted_law([0, 1, 2], reference, 0.0).tolist() == [0, 0, 1]
    assert tilted_law([0, 1, 2], reference, 1e-300).tolist() == [0, 0, 1]
    assert tilted_law([2, 1, 2], reference, 0.0) == pytest.approx([5 / 7, 0, 2 / 7])  # ties share as the reference does
    assert tilted_law([0, 9], [1.0, 0.0], 0.0).tolist() == [1, 0]  # what the reference never writes stays so
    assert tilted_law([1e308, -1e308, 0.0], lam=1e-3).tolist() == [1, 0, 0]


def test_the_divergence_of_the_tilted_law_is_exact() -> None:
    # p = (1/7, 2/7, 4/7), q = 1/3 each: KL = sum p log(3 p)
    expected = (math.log(3 / 7) + 2 * math.log(6 / 7) + 4 * math.log(12 / 7)) / 7
    assert kl_divergence(tilted_law([0, 1, 2], lam=1 / LOG2), [1 / 3] * 3) == pytest.approx(expected)
    assert kl_divergence([0.5, 0.5], [0.5, 0.5]) == 0
    assert kl_divergence([0, 0, 1], [0.25, 0.25, 0.5]) == pytest.approx(LOG2)
    assert kl_divergence([0.5, 0.5], [1.0, 0.0]) == math.inf


def test_the_bound_is_the_gain_in_reward_over_lambda() -> None:
    # E*[r] = (0 + 2 + 8) / 7 = 10/7, E_ref[r] = 1, so the bound is 3/7 / lambda = 3/7 log 2
    assert kl_bound([0, 1, 2], lam=1 / LOG2) == pytest.approx(3 / 7 * LOG2)
    assert kl_bound([0, 1, 2], lam=math.inf) == 0
    assert kl_bound([0, 1, 2], lam=0.0) == math.inf
    assert kl_bound([1, 1], lam=0.0) == 0


def test_the_best_of_k_is_log_k_less_a_share_from_the_reference() -> None:
    assert best_of_k_divergence(1) == 0
    assert best_of_k_divergence(2) == pytest.approx(LOG2 - 0.5)
    assert best_of_k_divergence(4) == pytest.approx(math.log(4) - 0.75)
    # by hand, for k = 2 of a uniform reward: the best has the density 2u, and the integral of 2u log 2u is log 2 - 1/2
    u = (np.arange(100_000) + 0.5) / 100_000
    assert best_of_k_divergence(2) == pytest.approx(float(np.mean(2 * u * np.log(2 * u))), abs=1e-6)


rewards = st.lists(st.floats(-5, 5), min_size=1, max_size=6)


@given(rewards, st.floats(0.05, 20), st.data())
def test_the_divergence_keeps_its_bounds_and_no_other_law_is_better(
    r: list[float], lam: float, data: st.DataObject
) -> None:
    weight = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=len(r), max_size=len(r))))
    q = weight / weight.sum()
    law = tilted_law(r, q, lam)
    kl = kl_divergence(law, q)
    assert law.sum() == pytest.approx(1)
    assert kl <= kl_bound(r, q, lam) + 1e-9 <= (max(r) - min(r)) / lam + 2e-9
    other = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=len(r), max_size=len(r))))
    other = other / other.sum()
    value = float(law @ r) - lam * kl
    assert value >= float(other @ r) - lam * kl_divergence(other, q) - 1e-9 * (1 + lam)


@pytest.mark.parametrize(
    ("reward", "reference", "lam"),
    [
        ([], None, 1.0),
        ([0.0, math.nan], None, 1.0),
        ([0.0, 1.0], [1.0], 1.0),
        ([0.0, 1.0], [0.7, 0.7], 1.0),
        ([0.0, 1.0], [-0.5, 1.5], 1.0),
        ([0.0], None, -1.0),
        ([0.0], None, math.nan),
    ],
)
def test_what_is_no_law_is_refused(reward: list[float], reference: list[float] | None, lam: float) -> None:
    with pytest.raises(ConfigurationError):
        tilted_law(reward, reference, lam)
