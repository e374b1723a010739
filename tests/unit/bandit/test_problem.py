"""Problems that make no sense are refused."""

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
        {"aggregator": BestOfNAggregator(floors=(0.0, 0.0))},
    ],
)
def test_bad_problems_are_refused(changes):
    with pytest.raises(ConfigurationError):
        small_problem(**changes)
