"""The baseline that chooses at random."""

from iapo_dspy.bandit.baselines.random_policy import RandomPolicy
from iapo_dspy.environments.port import drive
from tests.support.recordings import PAPER


def test_a_random_policy_costs_nothing_and_varies():
    chosen = set()
    for seed in range(40):
        outcome = drive(RandomPolicy().start(PAPER.problem(16), budget=0, seed=seed), PAPER.environment(0))
        assert outcome.spent == 0
        chosen |= set(outcome.policy.arms)
    assert len(chosen) > 25
