import math
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.strategies import MajorityVote
from tests.support.selecting import select

EXAMPLE = dspy.Example(question="1 + 1?", answer="2").with_inputs("question")


def exact(example: Any, pred: Any, trace: Any = None) -> bool:
    return example.answer == pred.answer


def vote(*answers: Any) -> Any:
    strategy = MajorityVote("answer")
    return select(strategy, {}, [dspy.Prediction(answer=a) for a in answers], np.ones(1))


def test_the_majority_wins_and_the_first_of_its_completions_is_returned() -> None:
    selection = vote("7", "8", " 8", "9")
    assert (selection.index, selection.votes) == (1, {"8": 2, "7": 1, "9": 1})


def test_a_tie_goes_to_the_answer_drawn_first() -> None:
    assert vote("b", "a", "a", "b").index == 0


def test_empty_answers_cast_no_vote() -> None:
    selection = vote("", " ", "x")
    assert (selection.index, selection.votes, set(selection.failures)) == (2, {"x": 1}, {0, 1})
    assert vote("", "") is None


def test_scoring_a_vote() -> None:
    strategy = MajorityVote("answer")
    right = strategy.score(EXAMPLE, dspy.Prediction(answer="2"), exact)
    assert (right.answer, right.scores, right.failure) == ("2", (1.0,), None)
    missing = strategy.score(EXAMPLE, dspy.Prediction(other="2"), exact)
    assert missing.scores is None and "no field" in str(missing.failure) and not missing.error
    broken = strategy.score(EXAMPLE, dspy.Prediction(answer="2"), lambda e, p: 1 / 0)
    assert broken.scores is None and "ZeroDivisionError" in str(broken.failure) and broken.error
    nan = strategy.score(EXAMPLE, dspy.Prediction(answer="2"), lambda e, p: math.nan)
    assert nan.scores is None and "nan" in str(nan.failure)


def test_majority_vote_checks() -> None:
    for bad in ("", "not a name", 3):
        with pytest.raises(ConfigurationError):
            MajorityVote(bad)  # type: ignore[arg-type]
    strategy = MajorityVote("answer")
    with pytest.raises(ConfigurationError, match="needs a metric"):
        strategy.check(metric=None)
    with pytest.raises(ConfigurationError, match="output fields are"):
        strategy.check_student(["q"], {"reply": str})
    MajorityVote("answer", strict=False).check_student(["q"], {"reply": str})
    strategy.check_student(["q"], {"answer": list[str]})
    with pytest.raises(ConfigurationError, match="addresses"):
        strategy.check_student(["q"], {"answer": list[type("Bare", (), {})]})  # type: ignore[misc]
    MajorityVote("answer", normalize=tuple).check_student(["q"], {"answer": type("Bare", (), {})})


def test_methods_of_predictions_are_not_answers() -> None:
    strategy = MajorityVote("labels")
    drawn = [dspy.Prediction(labels=v, note=str(i)) for i, v in enumerate(["no", "yes", "yes"])]
    chosen = select(strategy, {}, drawn, np.ones(1))
    assert chosen is not None and (chosen.index, chosen.votes) == (1, {"yes": 2, "no": 1})


def test_keys_are_kept_out_of_failures() -> None:
    def leaking(example: Any, pred: Any) -> float:
        raise RuntimeError("Incorrect API key provided: sk-judge-SECRET-123456\nmore")

    failure = str(MajorityVote("answer").score(EXAMPLE, dspy.Prediction(answer="2"), leaking).failure)
    assert "SECRET" not in failure and "\n" not in failure and "Incorrect API key" in failure
