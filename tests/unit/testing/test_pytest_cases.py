"""Cases that authors of strategies and objectives inherit from."""

from typing import Any

import dspy
import pytest

from iapo_dspy import MajorityVote, Objective
from iapo_dspy.testing.pytest_cases import ObjectiveCases, StrategyCases
from tests.support.worlds import exact, questions


def brief(example: dspy.Example, prediction: dspy.Prediction) -> float:
    return 1.0 / (1.0 + len(prediction.answer))


class TestVote(StrategyCases):
    @pytest.fixture
    def strategy(self) -> MajorityVote:
        return MajorityVote("answer")

    @pytest.fixture
    def metric(self) -> Any:
        return exact

    @pytest.fixture
    def examples(self) -> list[dspy.Example]:
        return questions(2)

    @pytest.fixture
    def predictions(self) -> list[dspy.Prediction]:
        return [dspy.Prediction(answer=a) for a in ("4", "7", "")]


class TestBrief(ObjectiveCases):
    @pytest.fixture
    def objective(self) -> Objective:
        return Objective("brief", brief)

    @pytest.fixture
    def examples(self) -> list[dspy.Example]:
        return questions(2)

    @pytest.fixture
    def predictions(self) -> list[dspy.Prediction]:
        return [dspy.Prediction(answer="4"), dspy.Prediction(answer="seven")]


class TestBrokenVote:
    def test_a_broken_strategy_fails_the_rule_that_it_breaks(self) -> None:
        class Nameless(MajorityVote):
            objectives = ()

        cases = StrategyCases()
        with pytest.raises(AssertionError, match="give names"):
            cases.test_rule(
                "names", Nameless("answer"), questions(1), [dspy.Prediction(answer=a) for a in ("4", "5")], exact
            )
