"""The suite for objectives passes built-in ones, and catches each rule that is broken."""

import math
import threading
from typing import Any

import dspy
import pytest

from iapo_dspy import Objective, objectives
from iapo_dspy.testing import check_objective

EXAMPLE = dspy.Example(question="Capital of France?", answer="Paris").with_inputs("question")
CASES = [EXAMPLE, EXAMPLE.copy(question="Sum?", answer="4")]
ANSWERS = [dspy.Prediction(answer='"It is Paris"', tags=["a"]), dspy.Prediction(answer='{"sum": 4}', tags=[])]


@pytest.mark.parametrize(
    "objective",
    [
        objectives.regex_match("answer", "Paris"),
        objectives.json_valid("answer", {"type": "object"}),
        objectives.length("answer", most=2),
        objectives.length("answer", target=9, unit="tokens"),
        Objective("raw", lambda e, p: 3.0 * len(p.answer), calibrate="rank"),
    ],
    ids=lambda o: str(o.name),
)
def test_objectives_that_conform(objective: Objective) -> None:
    check_objective(objective, CASES, ANSWERS)


class Unsteady:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, example: Any, prediction: Any) -> float:
        self.calls += 1
        return (self.calls % 10) / 10


class NotThreadSafe:
    def __init__(self) -> None:
        self.busy = threading.Lock()

    def __call__(self, example: Any, prediction: Any) -> float:
        if not self.busy.acquire(blocking=False):
            raise RuntimeError("already borrowed")
        try:
            threading.Event().wait(0.005)
            return 0.5
        finally:
            self.busy.release()


def mutates(example: Any, prediction: Any) -> float:
    prediction.tags.append("seen")
    return 0.5


def peeks(example: Any, prediction: Any) -> float:
    return float(getattr(example, "ans" + "wer") == prediction.answer)


def hides(example: Any, prediction: Any) -> float:
    try:
        return float(getattr(example, "ans" + "wer") == prediction.answer)
    except Exception:  # noqa: BLE001 - just this is what must not pass
        return 0.0


@pytest.mark.parametrize(
    ("score", "kwargs", "message"),
    [
        (lambda e, p: 1.5, {}, "cannot score"),
        (lambda e, p: math.nan, {"calibrate": "rank"}, "cannot score"),
        (Unsteady(), {}, "scores equal"),
        (NotThreadSafe(), {}, "among threads"),
        (mutates, {}, "changes what it scores"),
        (peeks, {}, "reads a label"),
        (hides, {}, "reads the label"),
        (lambda e, p: 1 / 0, {}, "ZeroDivisionError"),
    ],
)
def test_objectives_that_do_not_conform(score: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_objective(Objective("broken", score, **kwargs), CASES, ANSWERS)
    with pytest.raises(ValueError, match="as many predictions"):
        check_objective(Objective("broken", score, **kwargs), CASES, [])


def test_an_objective_may_be_said_not_to_be_deterministic() -> None:
    check_objective(Objective("unsteady", Unsteady()), CASES, ANSWERS, deterministic=False)
