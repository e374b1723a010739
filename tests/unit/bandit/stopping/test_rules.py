"""Stopping rules, and the tables and formulas of what they do, against enumeration of every sequence."""

from __future__ import annotations

import time
from itertools import pairwise, product

import numpy as np
import pytest
from scipy.stats import beta

from iapo_dspy.bandit.models.best_of import early_best
from iapo_dspy.bandit.models.traits import THETA
from iapo_dspy.bandit.models.votes import TOP_SHARES
from iapo_dspy.bandit.stopping.replays import Ended, VoteTally, best_of_ends, vote_ends
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
from iapo_dspy.bandit.stopping.vote_stops import stopped_votes, vote_tables
from iapo_dspy.environments.recorded.stopped_values import best_of_stopped
from iapo_dspy.types import FloatArray, Stop

LAWS = np.array([[0.5, 0.25, 0.15, 0.1], [0.2, 0.5, 0.1, 0.2], [0.7, 0.2, 0.05, 0.05], [0.4, 0.3, 0.3, 0.0]])


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


# --- votes ---


def enumerated(law: FloatArray, stops: tuple[Stop, ...]) -> Ended:
    """Every sequence of one N with its probability; the last kind votes for nobody."""
    sequences = np.array(list(product([0, 1, 2, -1], repeat=stops[0].waves[-1])))
    credit = np.tile([1.0, 0.0, 0.0], (len(sequences), 1))
    ended = vote_ends(VoteTally(sequences, 3), credit, stops)
    probability = np.stack([row[sequences].prod(axis=1) for row in law])
    return Ended(
        gain=probability @ ended.gain,
        completions=probability @ ended.completions,
        waves=probability @ ended.waves,
    )


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_tables_of_votes_are_enumeration(n: int) -> None:
    stops = tuned_vote_stops(n)
    found, slow = stopped_votes(LAWS, stops), enumerated(LAWS, stops)
    np.testing.assert_allclose(found.gain, slow.gain, atol=1e-12)
    # Where a rival that draws level was first drawn is taken to be independent of earlier stops.
    np.testing.assert_allclose(found.completions, slow.completions, atol=1e-12 if n < 5 else 0.1)
    np.testing.assert_allclose(found.waves, slow.waves, atol=1e-12 if n < 5 else 0.05)
    assert np.abs(found.completions - slow.completions).mean() < 0.01


def test_one_more_vote_than_the_rest_by_hand() -> None:
    """N = 3, waves 2, 3, theta = .6 and one wrong answer: two that agree end it, .36 + .16 of the calls."""
    found = stopped_votes(np.array([[0.6, 0.4, 0.0, 0.0]]), (Stop(waves=(2, 3)),))
    assert found.gain[0, 0] == pytest.approx(0.0, abs=1e-15)
    assert found.completions[0, 0] == pytest.approx(3 - 0.52)
    assert found.waves[0, 0] == pytest.approx(2 - 0.52)
    # At once confident: the first answer of two is taken where they agree, and the third decides otherwise.
    one = stopped_votes(np.array([[0.6, 0.4, 0.0, 0.0]]), (Stop(waves=(1, 3), confidence=0.7),))
    assert one.completions[0, 0] == pytest.approx(1.0)
    assert one.gain[0, 0] == pytest.approx(0.6 - (0.6**3 + 3 * 0.6**2 * 0.4))


def test_exact_waves_in_closed_form_are_enumeration_and_gain_nothing() -> None:
    theta, shares = (0.1, 0.5, 0.8), (0.15, 0.6, 1.0)
    tables = vote_tables(7, theta, shares)
    grid = [(t, r) for r in shares for t in theta]
    law = np.array([[t, (1 - t) * r, (1 - t) * r * (1 - r), (1 - t) * (1 - r) ** 2] for t, r in grid])
    for n in range(2, 8):
        stop = Stop(waves=exact_waves(n))
        at = tables.stops.index(stop)
        slow = enumerated(law, (stop,))
        np.testing.assert_allclose(tables.gain[:, at], 0.0, atol=0)
        np.testing.assert_allclose(slow.gain, 0.0, atol=1e-15)
        np.testing.assert_allclose(tables.completions[:, at], slow.completions[:, 0], atol=1e-12)
        np.testing.assert_allclose(tables.waves[:, at], slow.waves[:, 0], atol=1e-12)


def test_large_tables_agree_with_simulation_and_are_made_quickly() -> None:
    start = time.process_time()
    tables = vote_tables(32, tuple(THETA.tolist()), tuple(TOP_SHARES.tolist()))
    assert time.process_time() - start < 10.0
    rng = np.random.default_rng(0)
    for t, r in ((10, 2), (14, 5), (17, 0)):
        theta, share = THETA[t], TOP_SHARES[r]
        law = [theta, (1 - theta) * share, (1 - theta) * share * (1 - share), (1 - theta) * (1 - share) ** 2]
        sequences = rng.choice([0, 1, 2, -1], size=(20_000, 32), p=law)
        chosen = [i for i, s in enumerate(tables.stops) if s.waves[-1] in (8, 32)]
        credit = np.tile([1.0, 0.0, 0.0], (len(sequences), 1))
        ended = vote_ends(VoteTally(sequences, 3), credit, [tables.stops[i] for i in chosen])
        row = r * len(THETA) + t
        np.testing.assert_allclose(tables.gain[row, chosen], ended.gain.mean(axis=0), atol=0.012)
        np.testing.assert_allclose(tables.completions[row, chosen], ended.completions.mean(axis=0), atol=0.3)


# --- Best-of-N ---


def test_thresholds_in_closed_form_are_enumeration() -> None:
    values, probs = np.array([0.0, 1.0, 2.0, 5.0]), np.array([[0.4, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    outcomes = np.array([*values, -np.inf])  # what a row lacks to 1 fails
    law = np.column_stack([probs, 1 - probs.sum(axis=1)])
    sequences = np.array(list(product(range(5), repeat=5)))
    probability = np.stack([row[sequences].prod(axis=1) for row in law])
    for threshold in (None, -1.0, 0.5, 1.0, 2.0, 4.0, 9.0):
        for waves in ((1, 2, 5), (2, 4, 5), (5,)):
            stop = Stop(waves=waves, threshold=threshold)
            ended = best_of_ends(outcomes[sequences], (stop,), floor=values[0])
            found = best_of_stopped(np.tile(values, (2, 1))[:, ::-1], probs[:, ::-1], stop)
            slow = np.stack([probability @ e[:, 0] for e in (ended.gain, ended.completions, ended.waves)])
            np.testing.assert_allclose(found, slow, atol=1e-12)


def test_the_models_formula_is_the_exact_one_in_cells_of_a_known_law() -> None:
    levels, probs = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.4, 0.3, 0.2, 0.1])
    cuts = (levels[1:] + levels[:-1]) / 2
    stops = tuple(s for n in (2, 4, 8, 11) for s in threshold_stops(n, cuts.tolist()))
    below = np.cumsum(probs)[:-1]
    found = early_best(np.broadcast_to(below, (2, 1, 1, 3, 3)).copy(), np.diff(levels), stops)
    for i, stop in enumerate(stops):
        exact = best_of_stopped(levels[None], probs[None], stop)[:, 0]
        np.testing.assert_allclose(found[0, :, 0, 0, i], exact, atol=1e-12)


def test_an_uncertain_cell_is_a_mixture_of_good_and_bad_ones() -> None:
    """Half the cells always reach the top, half never: a threshold there costs nothing and saves half of the rest."""
    below = np.array([1.0, 0.0]).reshape(1, 1, 1, 2, 1).repeat(2, axis=0)
    found = early_best(below, np.ones(1), threshold_stops(8, [0.5]))
    np.testing.assert_allclose(found[0, :, 0, 0, 0], [0.0, (8 + 1) / 2, (4 + 1) / 2])
