import datetime
import enum
import logging
from typing import Any, Literal

import dspy
import pydantic
import pytest

from iapo_dspy.errors import ScoreError
from iapo_dspy.optimizer.probe import Probed, StandIn, probe
from iapo_dspy.prompts.student import Student
from iapo_dspy.scoring.strategies import MajorityVote

EXAMPLE = dspy.Example(question="1 + 1?", answer="2").with_inputs("question")


class Colour(enum.Enum):
    RED = "red"


class Plan(pydantic.BaseModel):
    steps: int


class Own(dspy.Module):
    """A module that makes its own prediction: which types its fields have is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=int(self.ask(question=question).answer))


def equal(example: Any, pred: Any, trace: Any = None) -> bool:
    return bool(example.answer == pred.answer)


def data(*answers: Any) -> list[dspy.Example]:
    return [dspy.Example(question=f"q{i}", answer=a).with_inputs("question") for i, a in enumerate(answers)]


def tried(metric: Any, examples: list[dspy.Example], student: dspy.Module | None = None, low: float = 0.0) -> Probed:
    strategy = MajorityVote("answer", bounds=(low, 1.0))
    return probe(strategy.probe, metric, examples, Student(student or dspy.Predict("question -> answer")), low)


def typed(annotation: Any) -> dspy.Module:
    return dspy.Predict(
        dspy.Signature({"question": (str, dspy.InputField()), "answer": (annotation, dspy.OutputField())})
    )


def test_a_stand_in_prediction_uses_the_labels_and_knows_when_made_up_fields_are_read() -> None:
    prediction = StandIn(EXAMPLE, {"reasoning": str, "answer": str, "count": int})
    assert prediction.answer == "2" and not prediction.made_up_read
    assert prediction.count == 0 and prediction.made_up_read
    assert StandIn(EXAMPLE, {"reasoning": str})["reasoning"] == "text"


@pytest.mark.parametrize(
    ("label", "annotation", "value"),
    [
        ("2", str, "2"),
        (2, str, "2"),
        (2.5, str | None, "2.5"),
        (datetime.date(2024, 1, 2), str, "2024-01-02"),
        ("2", int, 2),
        (2, float, 2.0),
        ("red", Colour, Colour.RED),
        ("b", Literal["a", "b"], "b"),
        ({"steps": 1}, Plan, Plan(steps=1)),
        ('["a", "b"]', list[str], ["a", "b"]),
    ],
)
def test_a_label_stands_there_as_the_program_would_return_it(label: Any, annotation: Any, value: Any) -> None:
    prediction = StandIn(data(label)[0], {"answer": annotation})
    assert prediction.answer == value and type(prediction.answer) is type(value) and not prediction.doubted
    assert prediction.converted == ({} if type(label) is type(value) else {"answer": (label, value)})
    assert StandIn(data(label)[0], {"answer": annotation}, is_open=True).answer == label


@pytest.mark.parametrize(("label", "annotation"), [(["a", "b"], str), (None, str), (True, str), ("many", int)])
def test_a_label_that_does_not_say_what_the_program_returns_is_doubted(label: Any, annotation: Any) -> None:
    prediction = StandIn(data(label)[0], {"answer": annotation})
    assert not prediction.doubted and prediction.answer == label and prediction.doubted


@pytest.mark.parametrize(("labels", "annotation"), [((1, 2), str), (("1", "2"), int), (("red", "red"), Colour)])
def test_a_metric_that_only_another_type_could_satisfy_is_refused(labels: Any, annotation: Any) -> None:
    with pytest.raises(ScoreError, match=r"equal scores 0.*type.*answer=.*convert one of them") as caught:
        tried(equal, data(*labels), typed(annotation))
    for each in (labels[0], type(labels[0]).__name__, annotation.__name__):
        assert str(each) in str(caught.value)
    assert not tried(lambda e, p: str(e.answer) == str(getattr(p.answer, "value", p.answer)),
                     data(*labels), typed(annotation)).doubtful  # fmt: skip


@pytest.mark.parametrize(("metric", "low"), [(lambda e, p: 0, 0.0), (lambda e, p: -1.0, -1.0)])
def test_a_metric_that_gives_labels_its_lowest_value_is_named(
    metric: Any, low: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert tried(metric, data("4", "5"), low=low).doubtful
    assert "<lambda>" in caplog.text and "all 2 training examples" in caplog.text and "answer='4'" in caplog.text


def test_a_metric_that_one_label_satisfies_is_fine(caplog: pytest.LogCaptureFixture) -> None:
    for metric in (lambda e, p: e.answer == "5", lambda e, p: 0.5, equal):
        assert tried(metric, data("4", "5")) == Probed()
    assert not caplog.records


def test_labels_that_say_nothing_decide_nothing(caplog: pytest.LogCaptureFixture) -> None:
    unlabelled = [dspy.Example(question="q", gold="4").with_inputs("question")]
    assert tried(lambda e, p: e.gold == p.answer, unlabelled) == Probed()  # `answer` is made up
    assert tried(lambda e, p: p.answer in e.answer, data(["4", "four"])) == Probed()
    assert tried(
        lambda e, p: e.answer == int(p.answer), data("4"), Own()
    ).doubtful  # perhaps right: warned, not refused
    assert "lowest value" in caplog.text


def test_an_error_of_the_metric_says_which_type_it_met() -> None:
    with pytest.raises(ScoreError, match=r"TypeError.*answer='4' \(str\) where the label is 4"):
        tried(lambda e, p: e.answer - p.answer == 0, data(4))


class Counted(dspy.BaseLM):
    """An LM that costs money: it counts its calls."""

    def __init__(self) -> None:
        super().__init__(model="counted/judge")
        self.calls = 0

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        self.calls += 1
        raise RuntimeError("it was asked")


@pytest.mark.parametrize("swallows", [True, False])
def test_no_lm_that_a_metric_holds_is_asked(swallows: bool) -> None:
    lm = Counted()

    def judged(example: Any, pred: Any, trace: Any = None) -> float:
        try:
            return float(lm("right?")[0] == "yes")
        except Exception:
            if not swallows:
                raise
            return 0.0

    def in_context(example: Any, pred: Any, trace: Any = None) -> bool:
        with dspy.context(lm=lm):
            return bool(dspy.Predict("answer -> right: bool")(answer=pred.answer).right)

    for metric in (judged, in_context):
        assert tried(metric, data("4", "5")) == Probed()
        assert lm.calls == 0
