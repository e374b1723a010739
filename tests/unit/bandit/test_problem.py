"""Problems that make no sense are refused."""

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.errors import ConfigurationError
from tests.support.draws import small_problem

NAN = float("nan")


@pytest.mark.parametrize(
    "changes",
    [
        {"n_prompts": 0},
        {"n_queries": 0},
        {"max_n": 0},
        {"max_n": 2.5},
        {"cost_scale": -1.0},
        {"cost_scale": NAN},
        {"n_prompts": 2, "parts": np.zeros((3, 1), dtype=int)},
        {"n_prompts": 2, "parts": np.zeros(2, dtype=int)},
        {"n_prompts": 2, "parts": np.zeros((2, 0), dtype=int)},
        {"n_prompts": 2, "parts": np.zeros((2, 1))},
        {"n_prompts": 2, "parts": np.array([[0], [-1]])},
        {"n_prompts": 2, "present": 0},
        {"n_prompts": 2, "present": 3},
        {"aggregator": BestOfNAggregator(floors=(0.0, 0.0))},
    ],
)
def test_bad_problems_are_refused(changes):
    with pytest.raises(ConfigurationError):
        small_problem(**changes)


def test_a_problem_whose_prompts_are_all_present_is_like_any_other():
    assert small_problem(n_prompts=2, present=1).present == 1
    assert small_problem(n_prompts=2, present=2).present is None
