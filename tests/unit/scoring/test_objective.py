from typing import Any

import dspy
import pytest

from iapo_dspy.errors import LabelRequired
from iapo_dspy.scoring.strategies import BestOfN, Objective


def exact(example: Any, pred: Any, trace: Any = None) -> bool:
    return example.answer == pred.answer


class Judge:
    def __call__(self, example: Any, pred: Any) -> float:
        return float(example["gold"] in pred.answer)


def test_an_objective_that_compares_with_a_label_raises_when_built() -> None:
    for wants_label in (exact, dspy.evaluate.answer_exact_match, lambda e, p: e["answer"] == p["answer"]):
        with pytest.raises(LabelRequired, match="`answer`"):
            Objective("right", wants_label)


def test_an_objective_with_a_third_argument_raises_when_built() -> None:
    with pytest.raises(LabelRequired, match="score"):
        Objective("right", lambda example, pred, gold: 1.0)  # type: ignore[arg-type, misc]
    Objective("fine", lambda example, pred, trace=None: 1.0)  # type: ignore[misc]


def test_an_objective_that_reads_another_label_raises_once_the_inputs_are_known() -> None:
    strategy = BestOfN([Objective("gold", Judge())])
    with pytest.raises(LabelRequired, match="`gold`"):
        strategy.check_student(["question"], {"answer": str})


def test_inputs_that_come_back_in_the_prediction_can_be_declared() -> None:
    def faithful(example: Any, pred: Any) -> float:
        return float(example.context == pred.context)

    with pytest.raises(LabelRequired, match="inputs="):
        Objective("faithful", faithful)
    Objective("faithful", faithful, inputs=["context"])
