"""How sure a choice is said to be: ties are ties, few queries say little, estimates stay within their bounds."""

from __future__ import annotations

import math

import numpy as np

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.inference import Certainty, choices
from iapo_dspy.environments.port import drive
from tests.unit.bandit.test_measurement import world


def certainty(*rights: float, n_queries: int, budget: int = 200) -> Certainty:
    recording = world(*rights, n_queries=n_queries)
    problem = recording.problem(4)
    outcome = drive(Auto().start(problem, budget=budget, seed=0), recording.environment(0))
    found = choices(outcome, problem.contexts, problem.aggregator)
    assert found is not None
    return found[0]


def test_two_prompts_that_are_always_wrong_are_a_tie():
    found = certainty(0.0, 0.0, n_queries=11)
    assert 0.35 < found.probability_best < 0.65
    assert 0.0 <= found.interval[0] <= found.utility < 1e-4 and 0.15 < found.interval[1] < 0.5
    assert not found.measured


def test_two_prompts_that_are_always_right_are_a_tie_below_one():
    found = certainty(1.0, 1.0, n_queries=11)
    assert 0.35 < found.probability_best < 0.65
    assert found.utility <= 1.0 and found.interval[1] <= 1.0 and found.interval[0] < 0.9


def test_one_query_has_no_interval_and_no_count_would_do():
    found = certainty(0.2, 0.9, n_queries=1)
    assert math.isnan(found.interval[0]) and math.isinf(found.needed) and found.queries == 1


def test_few_queries_need_more_and_many_do_not():
    few, many = certainty(0.2, 0.7, n_queries=3), certainty(0.2, 0.7, n_queries=300, budget=6000)
    assert few.needed > 20 * few.queries and few.half_width > 0.2
    assert many.half_width < 0.08 and many.probability_best > 0.95
    assert np.isclose(many.needed, many.queries * (many.half_width / 0.05) ** 2)
