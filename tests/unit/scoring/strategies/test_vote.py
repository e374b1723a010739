import enum
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Optional

import dspy
import numpy as np
import pydantic
import pytest

from iapo_dspy.errors import ConfigurationError, LabelRequired, ScoreError
from iapo_dspy.optimizer.probe import StandIn
from iapo_dspy.scoring.answers.normalize import answer_key, is_countable_type, normalize_answer
from iapo_dspy.scoring.no_labels import InputsOnly, field_reads
from iapo_dspy.scoring.scores import as_score, function_digest
from iapo_dspy.scoring.strategies import BestOfN, MajorityVote, Objective
from tests.support.selecting import select

EXAMPLE = dspy.Example(question="1 + 1?", answer="2").with_inputs("question")


def exact(example: Any, pred: Any, trace: Any = None) -> bool:
    return example.answer == pred.answer


# -- scores


@pytest.mark.parametrize(
    ("value", "score"),
    [(True, 1.0), (False, 0.0), (0.25, 0.25), (1, 1.0), (np.float32(0.5), 0.5), (np.bool_(True), 1.0)],
)
def test_scores_that_count(value: Any, score: float) -> None:
    assert as_score(value, what="metric") == score
    assert as_score(dspy.Prediction(score=value, feedback="x"), what="metric") == score


@pytest.mark.parametrize("value", ["1", None, math.nan, math.inf, 1.5, -0.1, [1], dspy.Prediction(feedback="x")])
def test_what_is_no_score_raises(value: Any) -> None:
    with pytest.raises(ScoreError, match="metric returned"):
        as_score(value, what="metric")


def test_bounds_are_inclusive() -> None:
    assert as_score(-2, what="m", bounds=(-2, 3)) == -2
    assert as_score(3, what="m", bounds=(-2, 3)) == 3


# -- answers


@pytest.mark.parametrize(
    ("one", "other"),
    [(" Paris ", "paris"), ("the  answer", "The answer."), ("ﬁve", "five"), (4, 4.0), ("4", 4), ("x\n y", "x y")],
)
def test_answers_that_are_the_same(one: Any, other: Any) -> None:
    assert answer_key(one, normalize_answer) == answer_key(other, normalize_answer)


@pytest.mark.parametrize(("one", "other"), [("-5", "5"), ("1.5", "15"), (True, "yes"), ("a b", "ab"), ("3..", "3")])
def test_answers_that_differ(one: Any, other: Any) -> None:
    assert answer_key(one, normalize_answer) != answer_key(other, normalize_answer)


def test_no_vote_and_enums() -> None:
    class Color(enum.Enum):
        RED = "r"

    assert answer_key(None, normalize_answer) == "None"  # of an optional field
    assert answer_key("  ", normalize_answer) is None
    assert answer_key(Color.RED, normalize_answer) == "Color.RED"
    with pytest.raises(ScoreError, match="told apart"):
        answer_key([object()], normalize_answer)


def test_which_types_can_be_counted() -> None:
    class Loose(pydantic.BaseModel):
        x: int

    class Frozen(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(frozen=True)
        x: int

    class Bare:
        pass

    countable = [str, int, Literal["a", "b"], Optional[str], tuple[int, str], Any, Frozen, Loose, list[str], set[int]]  # noqa: UP045
    countable += [dict[str, list[int]], Optional[list[Loose]], list[Loose | None], bool | None]  # noqa: UP045
    uncountable = [Bare, list[Bare], dict[str, Bare], Bare | None, Callable, tuple[Bare, ...]]
    assert all(is_countable_type(t) for t in countable)
    assert not any(is_countable_type(t) for t in uncountable)


# -- labels


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


def test_an_objective_that_compares_with_a_label_raises_when_built() -> None:
    for wants_label in (exact, dspy.evaluate.answer_exact_match, lambda e, p: e["answer"] == p["answer"]):
        with pytest.raises(LabelRequired, match="`answer`"):
            Objective("right", wants_label)


def test_an_objective_with_a_third_argument_raises_when_built() -> None:
    with pytest.raises(LabelRequired, match="score"):
        Objective("right", lambda example, pred, gold: 1.0)
    Objective("fine", lambda example, pred, trace=None: 1.0)


def test_an_objective_that_reads_another_label_raises_once_the_inputs_are_known() -> None:
    strategy = BestOfN([Objective("gold", Judge())])
    with pytest.raises(LabelRequired, match="`gold`"):
        strategy.check_student(["question"], {"answer": str})


def test_a_label_read_in_a_way_that_cannot_be_seen_raises_when_called() -> None:
    sneaky = Objective("sneaky", lambda e, p: float(getattr(e, "ans" + "wer") == "2"))
    with pytest.raises(LabelRequired, match="`answer`"):
        BestOfN([sneaky]).score(EXAMPLE, dspy.Prediction(answer="2"), None)
    shown = InputsOnly(EXAMPLE, objective="o")
    assert shown.question == "1 + 1?" and shown.get("question") and "answer" not in shown
    for read in (lambda: shown.answer, lambda: shown["answer"], lambda: shown.get("answer")):
        with pytest.raises(LabelRequired):
            read()


# -- majority vote


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
        strategy.check_student(["q"], {"answer": list[type("Bare", (), {})]})
    MajorityVote("answer", normalize=tuple).check_student(["q"], {"answer": type("Bare", (), {})})


# -- best of n


def length(example: Any, pred: Any) -> float:
    return len(pred.answer) / 10


def brevity(example: Any, pred: Any) -> float:
    return 1 - len(pred.answer) / 10


def test_best_of_n_takes_the_highest_weighted_utility_and_the_first_of_equals() -> None:
    strategy = BestOfN([Objective("long", length), Objective("short", brevity)])
    predictions = [dspy.Prediction(answer=a) for a in ("xxx", "x", "xxxxx", "yyyyy")]
    chosen = select(strategy, {"question": "q"}, predictions, np.array([1.0, 0.0]))
    assert chosen is not None and chosen.index == 2
    assert chosen.utilities == pytest.approx((0.3, 0.1, 0.5, 0.5))
    shortest = select(strategy, {"question": "q"}, predictions, np.array([0.2, 0.8]))
    assert shortest is not None and shortest.index == 1


def test_a_completion_that_cannot_be_scored_is_never_the_best() -> None:
    strategy = BestOfN([Objective("long", length)])
    predictions = [dspy.Prediction(answer="x" * 50), dspy.Prediction(answer="x"), dspy.Prediction(other=1)]
    chosen = select(strategy, {}, predictions, np.ones(1))
    assert chosen is not None and chosen.index == 1 and set(chosen.failures) == {0, 2}
    assert select(strategy, {}, predictions[2:], np.ones(1)) is None
    failed = strategy.score(EXAMPLE, predictions[0], None)
    assert failed.scores is None and "[0, 1]" in str(failed.failure)


def test_best_of_n_checks() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        BestOfN([])
    with pytest.raises(ConfigurationError, match="must differ"):
        BestOfN([Objective("a", length), Objective("a", brevity)])
    with pytest.raises(ConfigurationError, match="not an Objective"):
        BestOfN([length])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="low < high"):
        Objective("a", length, bounds=(1, 0))


def test_a_stand_in_prediction_uses_the_labels_and_knows_when_made_up_fields_are_read() -> None:
    prediction = StandIn(EXAMPLE, {"reasoning": str, "answer": str, "count": int})
    assert prediction.answer == "2" and not prediction.made_up_read
    assert prediction.count == 0 and prediction.made_up_read
    assert StandIn(EXAMPLE, {"reasoning": str})["reasoning"] == "text"


def test_methods_of_predictions_are_no_answers() -> None:
    strategy = MajorityVote("labels")
    drawn = [dspy.Prediction(labels=v, note=str(i)) for i, v in enumerate(["no", "yes", "yes"])]
    chosen = select(strategy, {}, drawn, np.ones(1))
    assert chosen is not None and (chosen.index, chosen.votes) == (1, {"yes": 2, "no": 1})


def test_equal_answers_of_any_type_have_equal_keys() -> None:
    assert answer_key([0, 8], frozenset) == answer_key([8, 0], frozenset)
    assert answer_key([4.0, "x"], tuple) == answer_key([4, "x"], tuple)
    with pytest.raises(ScoreError, match="told apart"):
        answer_key("x", lambda v: object())


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


def test_inputs_that_come_back_in_the_prediction_can_be_declared() -> None:
    def faithful(example: Any, pred: Any) -> float:
        return float(example.context == pred.context)

    with pytest.raises(LabelRequired, match="inputs="):
        Objective("faithful", faithful)
    Objective("faithful", faithful, inputs=["context"])


def test_the_digest_of_a_function_is_that_of_its_code() -> None:
    def make(text: str) -> Any:
        space: dict[str, Any] = {}
        exec(text, space)
        return space["f"]

    one, same, other = make("def f(e, p): return 1.0"), make("def f(e, p): return 1.0"), make("def f(e, p): return 0.5")
    assert function_digest(one) == function_digest(same) != function_digest(other)
    assert function_digest(Judge()) == function_digest(Judge())
    assert function_digest(functools.partial(one, 1)) != function_digest(functools.partial(one, 2))


def test_keys_are_kept_out_of_failures() -> None:
    def leaking(example: Any, pred: Any) -> float:
        raise RuntimeError("Incorrect API key provided: sk-judge-SECRET-123456\nmore")

    failure = str(MajorityVote("answer").score(EXAMPLE, dspy.Prediction(answer="2"), leaking).failure)
    assert "SECRET" not in failure and "\n" not in failure and "Incorrect API key" in failure
