import dspy

from iapo_dspy.optimizer.probe import StandIn

EXAMPLE = dspy.Example(question="1 + 1?", answer="2").with_inputs("question")


def test_a_stand_in_prediction_uses_the_labels_and_knows_when_made_up_fields_are_read() -> None:
    prediction = StandIn(EXAMPLE, {"reasoning": str, "answer": str, "count": int})
    assert prediction.answer == "2" and not prediction.made_up_read
    assert prediction.count == 0 and prediction.made_up_read
    assert StandIn(EXAMPLE, {"reasoning": str})["reasoning"] == "text"
