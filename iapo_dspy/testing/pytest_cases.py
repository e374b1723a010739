"""The conformance checks as pytest cases to inherit from.

```python
from iapo_dspy.testing.pytest_cases import StrategyCases

class TestMyStrategy(StrategyCases):
    @pytest.fixture
    def strategy(self): return MyStrategy("answer")

    @pytest.fixture
    def examples(self): return [dspy.Example(question="1 + 1", answer="2").with_inputs("question")]

    @pytest.fixture
    def predictions(self): return [dspy.Prediction(answer="2"), dspy.Prediction(answer="3")]
```

The fixtures are the arguments of `check_strategy` and `check_objective`; the remaining ones have defaults.
"""

from __future__ import annotations

from collections.abc import Sequence

import dspy
import pytest

from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.strategies.port import Strategy
from iapo_dspy.testing.objectives import check_objective
from iapo_dspy.testing.strategies import STRATEGY_RULES, StrategyTrial


class StrategyCases:
    """One test for each rule; a subclass defines the fixtures `strategy`, `examples` and `predictions`."""

    @pytest.fixture
    def metric(self) -> Metric | None:
        """Return the metric; None for strategies that need none."""
        return None

    @pytest.mark.parametrize("rule", STRATEGY_RULES)
    def test_rule(
        self,
        rule: str,
        strategy: Strategy,
        examples: Sequence[dspy.Example],
        predictions: Sequence[dspy.Prediction],
        metric: Metric | None,
    ) -> None:
        """Try one rule."""
        trial = StrategyTrial(strategy=strategy, examples=examples, predictions=predictions, metric=metric)
        STRATEGY_RULES[rule](trial)


class ObjectiveCases:
    """Tests of an objective; a subclass defines the fixtures `objective`, `examples` and `predictions`."""

    @pytest.fixture
    def deterministic(self) -> bool:
        """Tell whether equal calls must have equal scores."""
        return True

    def test_rules(
        self,
        objective: Objective,
        examples: Sequence[dspy.Example],
        predictions: Sequence[dspy.Prediction],
        deterministic: bool,
    ) -> None:
        """Try all rules."""
        check_objective(objective, examples, predictions, deterministic=deterministic)
