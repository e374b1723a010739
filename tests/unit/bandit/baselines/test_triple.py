"""The baseline that chooses prompts by single completions, without scales."""

from iapo_dspy.bandit.baselines.triple import Triple
from iapo_dspy.environments.port import drive
from tests.support.recordings import PAPER, spy


def test_triple_pulls_single_completions_and_draws_scales_on_request():
    outcome, asked = spy(Triple().start(PAPER.problem(16), budget=600, seed=0), PAPER.environment(0))
    assert {n for p in asked for n in p.size.tolist()} == {1}
    assert [arm.n for arm in outcome.policy.arms] == [1, 1]
    scales = set()
    for seed in range(30):
        chosen = drive(
            Triple(scale="random").start(PAPER.problem(16), budget=600, seed=seed), PAPER.environment(0)
        ).policy
        scales |= {arm.n for arm in chosen.arms}
    assert len(scales) > 10 and max(scales) <= 16
