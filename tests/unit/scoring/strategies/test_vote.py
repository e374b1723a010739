import math
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.inside_pipeline import probe_metric, score_inside
from iapo_dspy.scoring.strategies import MajorityVote, Mean, Mixed, Objective, WeightedVote
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


@pytest.mark.parametrize(
    ("worth", "cause"),
    [
        (lambda e, p: 1 / 0, "ZeroDivisionError"),
        (lambda e, p: math.nan, "nan"),
        (lambda e, p: None, "None"),
        (lambda e, p: 2.0, "must lie in"),
        (lambda e, p: dspy.Prediction(feedback="good"), "without a `score`"),
    ],
)
def test_what_a_metric_cannot_score_votes_and_is_worth_the_least(worth: Any, cause: str) -> None:
    prediction = dspy.Prediction(answer=" 2")
    weighted = WeightedVote("answer", weight=lambda e, p: 0.25, bounds=(-1, 1))
    mixed = Mixed(MajorityVote("answer", bounds=(-1, 1)), objectives=[Objective("brief", lambda e, p: True)])
    both = Mixed(weighted, objectives=[Objective("brief", lambda e, p: True)])
    for strategy, rest in ((MajorityVote("answer", bounds=(-1, 1)), ()), (weighted, (0.25,)), (mixed, (1.0,)),
                           (both, (1.0, 0.25))):  # fmt: skip
        scored, read = strategy.score(EXAMPLE, prediction, worth), strategy.read({}, prediction)
        assert scored.answer == read.answer == "2" and scored.usable and read.usable
        assert scored.scores == (-1.0, *rest)
        assert cause in str(scored.failure) and scored.error


def test_a_rating_that_an_affine_metric_cannot_score_counts_in_the_mean() -> None:
    rating = Mean("answer", affine=True, bounds=(-1, 1))
    scored = rating.score(EXAMPLE, dspy.Prediction(answer="2"), lambda e, p: 1 / 0)
    assert scored.usable and scored.scores == (-1.0,) and "ZeroDivisionError" in str(scored.failure)


def test_a_mixed_vote_has_its_metrics_bounds_inside_of_a_pipeline_too() -> None:
    mixed = Mixed(MajorityVote("answer", bounds=(-2, 2)), objectives=[Objective("brief", lambda e, p: True)])
    probe_metric(mixed, EXAMPLE, dspy.Prediction(answer="2"), lambda e, p: -2)
    lost = score_inside(mixed, EXAMPLE, inputs={"question": "1 + 1?"}, said=dspy.Prediction(answer="2"), outcome=None,
                        metric=lambda e, p: 2, failure="a later step failed")  # fmt: skip
    assert lost.scores == (-2.0, 1.0) and lost.usable and lost.failure == "a later step failed"


def test_a_completion_without_a_weight_has_no_vote_on_either_side() -> None:
    strategy = WeightedVote("answer", weight=lambda e, p: 1 / 0)
    for metric in (exact, lambda e, p: 1 / 0):
        scored = strategy.score(EXAMPLE, dspy.Prediction(answer="2"), metric)
        assert not scored.usable and "ZeroDivisionError" in str(scored.failure)
    assert not strategy.read({"question": "1 + 1"}, dspy.Prediction(answer="2")).usable


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
