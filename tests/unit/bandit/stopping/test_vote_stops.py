"""Gains and lengths of stopped votes in closed form, against enumeration."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest

from iapo_dspy.bandit.models.traits import THETA
from iapo_dspy.bandit.models.votes import TOP_SHARES
from iapo_dspy.bandit.stopping.replays import Ended, VoteTally, vote_ends
from iapo_dspy.bandit.stopping.rules import exact_waves, tuned_vote_stops
from iapo_dspy.bandit.stopping.vote_stops import stopped_votes, vote_tables
from iapo_dspy.types import FloatArray, Stop

LAWS = np.array([[0.5, 0.25, 0.15, 0.1], [0.2, 0.5, 0.1, 0.2], [0.7, 0.2, 0.05, 0.05], [0.4, 0.3, 0.3, 0.0]])


def enumerated(law: FloatArray, stops: tuple[Stop, ...]) -> Ended:
    """Every sequence of one N with its probability; the last kind casts no vote."""
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
