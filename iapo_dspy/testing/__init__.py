"""Conformance checks that authors of strategies, objectives and proposers run on their own.

`check_strategy`, `check_objective` and `check_proposer` work in any test. `pytest_cases` has the first two as classes
to inherit from, which need pytest.
"""

from iapo_dspy.testing.objectives import check_objective
from iapo_dspy.testing.proposers import check_proposer
from iapo_dspy.testing.strategies import check_strategy

__all__ = ["check_objective", "check_proposer", "check_strategy"]
