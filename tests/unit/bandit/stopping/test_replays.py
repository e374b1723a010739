"""Replays of thresholds, against enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np

from iapo_dspy.bandit.stopping.replays import best_of_ends
from iapo_dspy.environments.recorded.stopped_values import best_of_stopped
from iapo_dspy.types import Stop


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
