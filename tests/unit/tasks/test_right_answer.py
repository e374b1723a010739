"""Whether an answer is right, and where rows have theirs."""

from __future__ import annotations

import dspy
import pytest

from iapo_dspy.errors import ScoreError
from iapo_dspy.scoring.answers.equality import close
from iapo_dspy.tasks import RightAnswer
from iapo_dspy.tasks.right_answer import after_hashes, boxed


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So \boxed{5}.", "5"),
        (r"First \boxed{4}, no: \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}} is a set", r"\left\{1, 2\right\}"),
        (r"\boxed{x \in \{1\}}", r"x \in \{1\}"),
        (r"Hence $\boxed 7$ ways", "7"),
        (r"\fbox{9}", "9"),
        (r"\boxed {3}", "3"),
        (r"\boxed{", None),
        (r"\boxed{}", None),
        (r"\boxed{{1}", None),
        ("no box", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer(solution: str, answer: str | None) -> None:
    assert boxed(solution) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6*7=42\n#### 42", 42),
        ("#### 1,234", 1234),
        ("#### -5", -5),
        ("#### 2.5 ", 2.5),
        ("#### 12\n#### 13.", 13),
        ("#### 1,00", 100),
        ("42", None),
        ("#### x", None),
        ("#### ", None),
    ],
)
def test_the_number_after_the_hashes_is_the_answer(text: str, number: float | None) -> None:
    assert after_hashes(text) == number and isinstance(after_hashes(text), type(number))


@pytest.mark.parametrize(
    ("right", "given", "worth"),
    [
        (42, 42, 1),
        (42, 42.0, 1),
        (42, "42", 1),
        (42, " 42. ", 1),
        (1234, "1,234", 1),
        (42, 41.999, 0),
        (42, "forty-two", 0),
        (42, None, 0),
        (42, True, 0),
        ("Yes", "yes.", 1),
        ("(B)", "B", 1),
        ("(B)", "(A)", 0),
        ("positive", "Positive", 1),
        ("positive", "positive or negative", 0),
        ("positive", "", 0),
    ],
)
def test_numbers_are_equal_by_value_and_words_by_what_they_say(right: object, given: object, worth: int) -> None:
    metric = RightAnswer(field="said", label="gold")
    assert metric(dspy.Example(gold=right), dspy.Prediction(said=given)) == worth


def test_an_equality_decides_where_one_is_given() -> None:
    metric = RightAnswer(field="answer", label="answer", equal=close(absolute=0.1))
    assert metric(dspy.Example(answer="3.14"), dspy.Prediction(answer="3.1")) == 1.0
    assert metric(dspy.Example(answer="3.14"), dspy.Prediction(answer="3")) == 0.0


def test_it_is_a_metric_that_reads_a_label() -> None:
    metric = RightAnswer(field="answer", label="gold")
    assert metric.labels_read == ("gold",) and metric.__name__ == "right_answer"
    assert metric(dspy.Example(gold=1), dspy.Prediction(answer=1), None, "predictor", []) == 1.0
    with pytest.raises(ScoreError, match="The example has no field 'gold'"):
        metric(dspy.Example(), dspy.Prediction(answer=1))
