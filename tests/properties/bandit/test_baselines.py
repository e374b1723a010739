"""All baselines: what they find, what they spend, and what they need."""

import pytest

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.baselines.disjoint import Disjoint
from iapo_dspy.bandit.baselines.random_policy import RandomPolicy
from iapo_dspy.bandit.baselines.sequential import UCB, EpsilonGreedy, Softmax
from iapo_dspy.bandit.baselines.triple import Triple
from iapo_dspy.bandit.baselines.uniform import Uniform
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import BudgetTooSmall
from iapo_dspy.types import Arm
from tests.support.recordings import PAPER, spy

BASELINES = [Uniform, EpsilonGreedy, Softmax, UCB, Triple, Disjoint, RandomPolicy]


@pytest.mark.parametrize(
    "start", [PSST, Uniform, *(pytest.param(a, marks=pytest.mark.slow) for a in (EpsilonGreedy, UCB))]
)
def test_inference_aware_algorithms_find_the_prompt_that_scales(start):
    outcome = drive(start().start(PAPER.problem(16), budget=30_000, seed=0), PAPER.environment(0))
    assert outcome.policy[0].prompt == 1 and outcome.policy[0].n >= 11
    assert outcome.policy[1].n == 1
    if start in (PSST, Uniform):  # the others hardly look at the second best in so dear a context
        assert outcome.policy[1] == Arm(0, 1)
    assert outcome.complete


@pytest.mark.parametrize("start", [Triple, Disjoint])
def test_prompt_first_algorithms_are_caught(start):
    outcome = drive(start().start(PAPER.problem(16), budget=60_000, seed=0), PAPER.environment(0))
    assert [arm.prompt for arm in outcome.policy.arms] == [0, 0]


@pytest.mark.parametrize("start", BASELINES)
def test_budgets_hold_and_runs_repeat(start):
    for budget in (96, 97, 500):
        outcomes = [
            spy(start().start(PAPER.problem(16), budget=budget, seed=4), PAPER.environment(1)) for _ in range(2)
        ]
        (outcome, asked), (again, _) = outcomes
        assert outcome.spent == sum(p.completions for p in asked) <= budget
        assert outcome.policy == again.policy and outcome.complete
        assert sum(r.completions for r in outcome.rounds) == outcome.spent


@pytest.mark.parametrize(("start", "least"), [(Uniform, 48), (Triple, 3), (Disjoint, 63), (UCB, 1), (Softmax, 1)])
def test_least_budgets(start, least):
    outcome = drive(start().start(PAPER.problem(16), budget=least, seed=0), PAPER.environment(0))
    assert outcome.complete
    with pytest.raises(BudgetTooSmall) as error:
        start().start(PAPER.problem(16), budget=least - 1, seed=0)
    assert error.value.least == least
