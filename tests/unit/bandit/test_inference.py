"""How sure a choice is said to be: ties are ties, few queries say little, estimates stay within their bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.compound.uncertainty import error_of
from iapo_dspy.bandit.inference import Certainty, choices, deceptive_prompts, probability_above
from iapo_dspy.bandit.outcome import Considered, HeldOut, Outcome, StoppedArm
from iapo_dspy.bandit.stops import as_drawn
from iapo_dspy.environments.port import drive
from iapo_dspy.types import Arm, Escalation, Policy
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


def test_student_s_law_of_a_gain():
    # quantiles of tables: 2.571 is the .975 quantile with 5 degrees of freedom, 1.812 the .95 quantile with 10
    assert probability_above(2.571, 1.0, 5.0) == pytest.approx(0.975, abs=1e-3)
    assert probability_above(-1.812 * 0.3, 0.3, 10.0) == pytest.approx(0.05, abs=1e-3)
    assert probability_above(1.96, 1.0, 1e6) == pytest.approx(0.975, abs=1e-4)
    assert (probability_above(0.0, 0.0, 9.0), probability_above(0.1, 0.0, 9.0)) == (0.5, 1.0)
    assert math.isnan(probability_above(0.1, 0.1, 0.0)) and math.isnan(probability_above(math.nan, 0.1, 9.0))


CASCADE = Arm(0, 2, then=Escalation(below=0.9, arm=Arm(1, 4)))


def compound(*considered: Considered) -> Outcome:
    """The outcome of a run over a bad prompt and a good one, with a cascade in the place of its arm."""
    recording = world(0.2, 0.7, n_queries=60)
    outcome = drive(Auto().start(recording.problem(4), budget=600, seed=0), recording.environment(0))
    assert outcome.detail is not None
    by_query = np.linspace(0.6, 1.0, outcome.detail.n_visited)
    call = StoppedArm(
        arm=CASCADE, reward=0.8, gain=0.0, completions=4.0, waves=1.5, cost=4.0, utility=0.75, by_query=by_query,
        by_prompt=((0, 2.0, 1.0), (1, 2.0, 0.5)),
        answered_by=((0, 2, np.full(len(by_query), 0.5)), (1, 4, np.full(len(by_query), 0.5))),
    )  # fmt: skip
    return replace(outcome, policy=Policy((CASCADE,)), stops=(call,), considered=(considered,))


def sure(outcome: Outcome) -> Certainty:
    recording = world(0.2, 0.7, n_queries=60)
    problem = recording.problem(4)
    found = choices(outcome, problem.contexts, problem.aggregator)
    assert found is not None
    return found[0]


def test_a_compound_arm_is_compared_with_the_best_arm_of_one_prompt():
    outcome = compound()
    found = sure(outcome)
    prompt, n = np.unravel_index(int(np.nanargmax(outcome.q[0])), outcome.q[0].shape)
    assert found.runner_up == Arm(int(prompt), int(n) + 1)  # the prompt of its second stage: no prompt is left out
    assert found.behind == pytest.approx(0.75 - np.nanmax(outcome.q[0]))
    assert found.utility == pytest.approx(0.75) and found.interval[0] < 0.75 < found.interval[1]
    assert found.queries == int(min(outcome.count[0, 0], outcome.count[1, 0]))
    assert outcome.stops is not None
    assert found.standard_error == error_of(outcome, 0, outcome.stops[0]) > 0
    assert deceptive_prompts(outcome) == ()


def test_the_gain_of_a_cascade_on_other_queries_says_how_probably_it_is_better():
    considered = Considered(kind="cascade", arm=CASCADE, beside=Arm(1, 4), gain=0.02, standard_error=0.01, chosen=True)
    found = sure(compound(considered))
    assert found.probability_best == probability_above(0.02, 0.01, found.queries - 1.0) > 0.95
    other = replace(considered, arm=Arm(1, 2, then=Escalation(below=0.5)))  # another arm's gain says nothing of it
    taken = HeldOut(utility=0.7, standard_error=0.05, interval=(0.6, 0.8), queries=30)
    outcome = replace(compound(considered), measured=(taken,))
    single = as_drawn(outcome, 0, Arm(1, int(np.nanargmax(outcome.q[0, 1])) + 1))
    told = sure(outcome)  # completions that had no part in the choice say more than any estimate
    assert told.runner_up == single.arm
    assert told.probability_best == probability_above(
        0.7 - single.utility, math.hypot(0.05, error_of(outcome, 0, single)), 29.0
    )
    by_estimates = sure(compound(other)).probability_best
    assert by_estimates == sure(compound()).probability_best != found.probability_best
