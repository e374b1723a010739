"""Stopping rules: votes needed, and waves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from scipy.stats import beta

from iapo_dspy.bandit.stopping.rules import (
    best_of_scales,
    beta_confidence,
    doubling_waves,
    exact_waves,
    reached,
    threshold_stops,
    tuned_scales,
    tuned_vote_stops,
    votes_needed,
)
from iapo_dspy.types import Stop

# --- rules ---


def test_the_binomial_sum_is_the_beta_probability() -> None:
    for a in range(20):
        for b in range(20):
            assert beta_confidence(a, b) == pytest.approx(beta.sf(0.5, a + 1, b + 1), abs=1e-12)


def test_votes_needed_are_the_fewest_that_are_confident() -> None:
    for confidence in (0.7, 0.9, 0.99):
        needed = votes_needed(12, confidence)
        for b in range(13):
            rule = Stop(waves=(12,), confidence=confidence)
            ends = [a for a in range(b, 13 - b) if reached(rule, [a, b], None) == "confident"]
            assert needed[b] == (ends[0] if ends else 13)
    # P(Bin(4, 1/2) <= 3) = .938; P(Bin(7, 1/2) <= 5) = .938, with 4 to 1 .891; P(Bin(9, 1/2) <= 6) = .910
    assert votes_needed(12, 0.9)[:3].tolist() == [3, 5, 6]


def test_waves_ascend_to_n() -> None:
    for n in range(1, 70):
        lists = [exact_waves(n), doubling_waves(1, n), doubling_waves(2, n)]
        lists += [s.waves for s in tuned_vote_stops(n)] + [s.waves for s in threshold_stops(n, [0.5])]
        for waves in lists:
            assert waves[-1] == n and waves[0] >= 1
            assert all(a < b for a, b in pairwise(waves))
    assert exact_waves(7) == (4, 7) and exact_waves(8) == (4, 8) and exact_waves(1) == (1,)
    assert doubling_waves(3, 32) == (3, 6, 12, 24, 32)
    assert tuned_scales(2) == () and tuned_scales(5) == (3, 4, 5)
    assert tuned_scales(32) == (3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
    assert tuned_scales(1000)[-1] == 64 and tuned_scales(30)[-2:] == (28, 30)
    assert best_of_scales(1) == () and best_of_scales(24) == (2, 4, 8, 16, 24)
