from typing import Any

import dspy
import pytest

from iapo_dspy.errors import LabelRequired
from iapo_dspy.scoring.no_labels import InputsOnly, field_reads
from iapo_dspy.scoring.strategies import BestOfN, Objective

EXAMPLE = dspy.Example(question="1 + 1?", answer="2").with_inputs("question")


def exact(example: Any, pred: Any, trace: Any = None) -> bool:
    return example.answer == pred.answer


class Judge:
    def __call__(self, example: Any, pred: Any) -> float:
        return float(example["gold"] in pred.answer)


def test_fields_that_a_function_reads() -> None:
    def all_ways(e: Any, p: Any) -> float:
        return len(e.question) + len(e["hint"]) + float(e.get("limit", 3) > 0) + len(e.keys())

    assert field_reads(all_ways, 0) == {"question", "hint", "limit"}
    assert field_reads(exact, 0) == {"answer"} == field_reads(exact, 1)
    assert field_reads(Judge(), 0) == {"gold"}
    assert field_reads(len, 0) == frozenset()


def test_a_label_read_in_a_way_that_cannot_be_seen_raises_when_called() -> None:
    sneaky = Objective("sneaky", lambda e, p: float(getattr(e, "ans" + "wer") == "2"))
    with pytest.raises(LabelRequired, match="`answer`"):
        BestOfN([sneaky]).score(EXAMPLE, dspy.Prediction(answer="2"), None)
    shown = InputsOnly(EXAMPLE, objective="o")
    assert shown.question == "1 + 1?" and shown.get("question") and "answer" not in shown
    for read in (lambda: shown.answer, lambda: shown["answer"], lambda: shown.get("answer")):
        with pytest.raises(LabelRequired):
            read()


def test_an_objective_may_use_examples_as_examples() -> None:
    def judge(example: Any, pred: Any) -> float:
        assert "answer" not in example.toDict() and example.without("question").keys() == []
        return float(len(dict(**example.inputs())) + len(example.copy().with_inputs("question").inputs().keys()) == 2)

    assert BestOfN([Objective("judge", judge)]).score(EXAMPLE, dspy.Prediction(answer="x"), None).scores == (1.0,)


def test_a_label_read_that_the_objective_hides_is_found_all_the_same() -> None:
    def hiding(example: Any, pred: Any) -> float:
        try:
            return float(getattr(example, "answer") == pred.answer)  # noqa: B009
        except Exception:  # noqa: BLE001  # what this test is about
            return 0.0

    with pytest.raises(LabelRequired):
        BestOfN([Objective("hiding", hiding)]).score(EXAMPLE, dspy.Prediction(answer="2"), None)
    with pytest.raises(LabelRequired):
        BestOfN([Objective("all", lambda e, p: float(e.labels() is None))]).score(EXAMPLE, dspy.Prediction(), None)
