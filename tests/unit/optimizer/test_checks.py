"""Training examples count once each, whatever they hold."""

from __future__ import annotations

import dspy
import numpy as np
import pytest

from iapo_dspy.optimizer.checks import check_trainset
from iapo_dspy.prompts.student import Student

STUDENT = Student(dspy.Predict("question -> answer"))


class Stateful:
    def __init__(self, state: int) -> None:
        self.state = state


def example(question: object, answer: object = "1") -> dspy.Example:
    return dspy.Example(question=question, answer=answer).with_inputs("question")


def test_an_example_that_is_repeated_counts_once_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    given = [example(q) for q in ("b", "a", "b", "b", "c", "b", "b")]
    kept = check_trainset(given, STUDENT)
    assert [e.question for e in kept] == ["b", "a", "c"] and kept[0] is given[0]
    assert "4 of the 7 examples of the trainset are repetitions" in caplog.text


def test_other_labels_and_other_inputs_are_other_examples(caplog: pytest.LogCaptureFixture) -> None:
    long = np.arange(5000)
    other = long.copy()
    other[2500] = 0
    different = [
        example("a", "1"), example("a", "2"), example("a", 1), example(1), example("1"), example(True), example(1.0),
        example(long), example(other), example(Stateful(1)), example(Stateful(2)), example({1, 2}), example([1, 2]),
    ]  # fmt: skip
    assert len(check_trainset(different, STUDENT)) == len(different) and not caplog.text
    assert len(check_trainset(different + different, STUDENT)) == len(different)
