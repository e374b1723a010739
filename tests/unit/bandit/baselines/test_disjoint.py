"""The baseline that chooses a prompt first and its scale afterwards."""

from iapo_dspy.bandit.baselines.disjoint import Disjoint
from tests.support.recordings import PAPER, spy


def test_disjoint_tunes_the_scale_of_the_chosen_prompts_only():
    outcome, asked = spy(Disjoint().start(PAPER.problem(16), budget=6_000, seed=0), PAPER.environment(0))
    singles = sum(p.completions for p in asked[:-1])
    assert 2_990 < singles <= 3_000 and set(asked[-1].size) == {16} and set(asked[-1].prompt) == {0}
    assert outcome.spent > 6_000 - 16
    assert outcome.policy[1].n == 1  # the context that pays for completions takes one
