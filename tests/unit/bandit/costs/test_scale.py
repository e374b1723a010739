"""The scale of costs is learnt once, or given."""

from dataclasses import replace

import pytest

from iapo_dspy.bandit.algorithms.standing import joined
from iapo_dspy.bandit.costs.scale import CostScale
from tests.support.draws import observe, small_problem


def test_the_cost_scale_is_learnt_once_every_prompt_was_pulled():
    scale = CostScale(small_problem(cost_scale=None))
    assert scale.value == 0.0
    scale.observe(observe([(0, 0, 2)], [1, 1], cost=[30, 10]))
    scale.observe(observe([(1, 0, 1), (1, 0, 1)], [1, 1], cost=[50, 70]))
    assert scale.value == pytest.approx(0.01 / 40)  # prompt means 20 and 60
    scale.observe(observe([(0, 0, 1)], [1], cost=[9999]))
    assert scale.value == pytest.approx(0.01 / 40)


def test_a_free_run_has_cost_scale_zero_and_a_given_scale_is_kept():
    free = CostScale(small_problem(cost_scale=None))
    free.observe(observe([(0, 0, 1), (1, 0, 1)], [1, 1], cost=[0, 0]))
    assert free.value == 0.0
    given = CostScale(small_problem(cost_scale=3.0))
    given.observe(observe([(0, 0, 1), (1, 0, 1)], [1, 1], cost=[5, 5]))
    assert given.value == 3.0


def test_the_students_own_call_is_the_unit_where_it_is_known():
    scale = CostScale(small_problem(cost_scale=None))
    seen = observe([(0, 0, 2)], [1, 1], cost=[30, 10])
    scale.observe(replace(seen, unit=25.0))
    assert scale.value == pytest.approx(0.01 / 25)
    scale.observe(replace(observe([(1, 0, 1)], [1], cost=[9999]), unit=1.0))
    assert scale.value == pytest.approx(0.01 / 25), "frozen"
    scale = CostScale(small_problem(cost_scale=None))
    scale.observe(joined([replace(seen, unit=25.0), seen]))
    assert scale.value == pytest.approx(0.01 / 25)
