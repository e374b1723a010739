"""Conformance checks that authors of strategies and objectives run on their own.

`check_strategy` and `check_objective` work in any test. `pytest_cases` has the same as classes to inherit from, which
need pytest.
"""

from iapo_dspy.testing.objectives import check_objective
from iapo_dspy.testing.strategies import check_strategy

__all__ = ["check_objective", "check_strategy"]
