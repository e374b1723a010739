"""The better half of the arms stays, by hand."""

import numpy as np

from iapo_dspy.bandit.algorithms.trimming import best_arms, keep_best, trim
from iapo_dspy.types import Arm

NAN = float("nan")


def test_trimming_keeps_the_better_half_rounded_up_per_context():
    q = np.array([[[5.0, 1.0], [4.0, 3.0], [2.0, 6.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    cost = np.ones((3, 2))
    active = np.ones((2, 3, 2), dtype=bool)
    active[0, 2, 1] = False
    kept = trim(q, cost, active)
    assert np.argwhere(kept[0]).tolist() == [[0, 0], [1, 0], [1, 1]]  # 3 of 5
    assert np.argwhere(kept[1]).tolist() == [[1, 1], [2, 0], [2, 1]]  # 3 of 6
    for _ in range(2):
        kept = trim(q, cost, kept)
    assert kept.sum(axis=(1, 2)).tolist() == [1, 1]
    np.testing.assert_array_equal(trim(q, cost, kept), kept)
    assert best_arms(q, cost, active).arms == (Arm(0, 1), Arm(2, 2))


def test_ties_go_to_the_cheaper_arm_then_to_the_smaller_scale():
    q = np.zeros((1, 2, 3))
    active = np.ones((1, 2, 3), dtype=bool)
    assert best_arms(q, np.array([[2.0, 3.0, 4.0], [1.0, 0.5, 9.0]]), active)[0] == Arm(1, 2)
    assert best_arms(q, np.ones((2, 3)), active)[0] == Arm(0, 1)
    kept = keep_best(q, np.array([[2.0, 2.0, 2.0], [2.0, 2.0, 1.0]]), active, np.array([3]))
    assert np.argwhere(kept[0]).tolist() == [[0, 0], [1, 0], [1, 2]]


def test_arms_without_evidence_rank_last_and_dead_ones_never_return():
    q = np.array([[[NAN, -9.0], [NAN, -8.0]]])
    cost = np.array([[NAN, 1.0], [NAN, 1.0]])
    active = np.array([[[True, True], [True, False]]])
    assert best_arms(q, cost, active)[0] == Arm(0, 2)
    kept = keep_best(q, cost, active, np.array([4]))
    np.testing.assert_array_equal(kept, active)
