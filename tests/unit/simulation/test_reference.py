"""The reference rule spends more than its budget, as is documented."""

import numpy as np

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.baselines.uniform import Uniform
from iapo_dspy.environments.port import drive
from iapo_dspy.simulation.reference import OverspendingPSST, OverspendingTriple, OverspendingUniform
from iapo_dspy.types import Arm
from tests.support.recordings import PAPER, coins


def test_the_reference_rule_overspends_as_documented():
    recording = coins(np.random.default_rng(0).random((25, 40)), (0.0, 0.2, 1.0))
    problem = recording.problem(32)
    outcome = drive(OverspendingPSST().start(problem, budget=1_000, seed=0), recording.environment(0))
    assert outcome.rounds[0].completions == 800 and len(outcome.rounds) == 10  # a round's share was 100
    assert outcome.spent > 1_500
    assert all(r.pulls > 0 for r in outcome.rounds)
    bounded = drive(PSST().start(problem, budget=1_000, seed=0), recording.environment(0))
    assert bounded.spent <= 1_000
    large = drive(OverspendingPSST().start(problem, budget=20_000, seed=0), recording.environment(0))
    assert large.spent <= 20_000 and large.rounds[0].completions == 1_600


def test_the_reference_rule_leaves_ties_to_the_order_of_arms():
    recording = coins(np.ones((3, 4)), (0.0,), cost=np.array([0.03, 0.01, 0.02]))
    for start, first in ((Uniform(), Arm(1, 1)), (OverspendingUniform(), Arm(0, 1))):
        assert drive(start.start(recording.problem(4), budget=12, seed=0), recording.environment(0)).policy[0] == first
    assert (
        drive(OverspendingUniform().start(recording.problem(4), budget=1, seed=0), recording.environment(0)).spent == 12
    )


def test_the_reference_rule_serves_screening_and_triple():
    problem = PAPER.problem(16)
    screened = drive(
        OverspendingPSST(screening=Screening(k=1)).start(problem, budget=2_000, seed=0), PAPER.environment(0)
    )
    assert screened.rounds[0].completions == 399 and len(screened.rounds) == 5
    assert drive(OverspendingTriple().start(problem, budget=2_000, seed=0), PAPER.environment(0)).policy[0].n == 1
