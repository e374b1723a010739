"""A student's predictors, fields and LMs, each looked up once."""

from __future__ import annotations

import dspy
import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.student import Student
from tests.support.worlds import TwoSteps


def test_a_predictor_knows_its_fields() -> None:
    for module, outputs in (
        (dspy.Predict("question, hint -> answer: int"), {"answer": int}),
        (dspy.ChainOfThought("question, hint -> answer: int"), {"reasoning": str, "answer": int}),
    ):
        student = Student(module)
        assert student.input_fields == ("question", "hint")
        assert student.output_fields == outputs
        assert list(student.predictors.values()) == module.predictors()
        assert student.predictors is student.predictors


def test_only_its_forward_knows_the_inputs_of_another_program() -> None:
    student = Student(TwoSteps())
    assert student.input_fields is None
    assert list(student.predictors) == list(student.instructions) == ["plan", "ask"]
    assert {"idea", "answer"} <= set(student.output_fields)


def test_lms_are_the_predictors_own_or_the_configured_one() -> None:
    own, configured = dspy.LM("openai/own"), dspy.LM("openai/configured")
    program = TwoSteps()
    program.plan.lm = own
    with dspy.context(lm=configured):
        assert Student(program).lms == {"plan": own, "ask": configured}
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match="'ask' has no LM"):
        _ = Student(program).lms
