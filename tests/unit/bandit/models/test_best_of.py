"""The model of best of N under stopping rules."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.models.best_of import early_best
from iapo_dspy.bandit.stopping.rules import threshold_stops
from iapo_dspy.environments.recorded.stopped_values import best_of_stopped


def test_the_models_formula_is_the_exact_one_in_cells_of_a_known_law() -> None:
    levels, probs = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.4, 0.3, 0.2, 0.1])
    cuts = (levels[1:] + levels[:-1]) / 2
    stops = tuple(s for n in (2, 4, 8, 11) for s in threshold_stops(n, cuts.tolist()))
    below = np.cumsum(probs)[:-1]
    found = early_best(np.broadcast_to(below, (3, 3)).copy(), np.diff(levels), stops)
    for i, stop in enumerate(stops):
        exact = best_of_stopped(levels[None], probs[None], stop)[:, 0]
        np.testing.assert_allclose(found[:, i], exact, atol=1e-12)


def test_an_uncertain_cell_is_a_mixture_of_good_and_bad_ones() -> None:
    """Half the cells always reach the top, half never: a threshold there costs nothing and saves half of the rest."""
    below = np.array([1.0, 0.0]).reshape(2, 1)
    found = early_best(below, np.ones(1), threshold_stops(8, [0.5]))
    np.testing.assert_allclose(found[:, 0], [0.0, (8 + 1) / 2, (4 + 1) / 2])
