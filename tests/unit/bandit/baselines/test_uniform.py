"""The uniform baseline."""

import numpy as np

from iapo_dspy.bandit.baselines.uniform import Uniform
from tests.support.recordings import PAPER, spy


def test_uniform_pulls_every_prompt_at_its_largest_scale_alike():
    outcome, asked = spy(Uniform().start(PAPER.problem(16), budget=490, seed=0), PAPER.environment(0))
    assert len(asked) == 1 and set(asked[0].size) == {16}
    assert np.bincount(asked[0].prompt).tolist() == [10, 10, 10]
    assert outcome.count[:, 0].tolist() == [160] * 3 and outcome.count[:, 15].tolist() == [10] * 3
