"""Comparisons by functions: verdicts, opponents, and what cannot work is refused when it is made."""

import itertools
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import BestOfN, objectives
from iapo_dspy.errors import ConfigurationError, ScoreError
from iapo_dspy.scoring.objectives.preferring import as_verdict
from iapo_dspy.scoring.once_per_call import sharing
from iapo_dspy.testing import check_objective

EXAMPLE = dspy.Example(question="1 + 2", answer="3").with_inputs("question")
PAIR = dspy.Example(a="1", b="2").with_inputs("a", "b")


def longer(example: dspy.Example, first: dspy.Prediction, second: dspy.Prediction) -> str:
    """Prefer the longer answer."""
    one, two = len(first.answer), len(second.answer)
    return "first" if one > two else "second" if two > one else "tie"


def of(objective: Any, example: dspy.Example = EXAMPLE, **fields: Any) -> float:
    return float(objective(example, dspy.Prediction(**fields)))


@pytest.mark.parametrize(
    ("verdict", "worth"),
    [
        ("first", 1.0),
        ("**Second**", 0.0),
        ("It is a tie.", 0.5),
        (1, 1.0),
        (0, 0.5),
        (-1, 0.0),
        (np.int64(-1), 0.0),
        (1.0, 1.0),
        (0.0, 0.0),  # a probability
        (0.25, 0.25),
        (np.float64(0.75), 0.75),
        (True, 1.0),
        (False, 0.0),
    ],
)
def test_verdicts_of_functions(verdict: Any, worth: float) -> None:
    assert as_verdict(verdict, "judge") == worth


@pytest.mark.parametrize("verdict", ["third", "first or second", "", 2, -2, 1.5, -1.0, float("nan"), None, []])
def test_what_is_not_a_verdict_is_an_error(verdict: Any) -> None:
    with pytest.raises(ScoreError, match=r"judge|Unreadable"):
        as_verdict(verdict, "judge")


def test_both_orders_are_asked_and_the_completion_wins_loses_or_ties() -> None:
    asked = []

    def noted(example: dspy.Example, first: dspy.Prediction, second: dspy.Prediction) -> str:
        asked.append((example.question, first.answer, second.answer, sorted(example.keys())))
        return longer(example, first, second)

    objective = objectives.prefers(noted, baseline=lambda question: "four")
    assert [of(objective, answer=a) for a in ("three", "one", "nine")] == [1.0, 0.0, 0.5]
    assert asked[:2] == [("1 + 2", "three", "four", ["question"]), ("1 + 2", "four", "three", ["question"])]
    assert len(asked) == 6 and objective.bias().compared == 3 and objective.bias().contradicted == 0


def test_a_judge_that_always_names_one_place_makes_ties_and_is_found_out() -> None:
    def always(place: str) -> Any:
        return lambda example, first, second: place

    for place, share in (("first", 1.0), ("second", 0.0)):
        objective = objectives.prefers(always(place), baseline={"1 + 2": "four"})
        assert [of(objective, answer=str(i)) for i in range(5)] == [0.5] * 5
        bias = objective.bias()
        assert (bias.compared, bias.contradicted, bias.share) == (5, 5, share)


def test_one_order_is_asked_by_chance_so_that_a_judge_of_places_is_worth_a_half_on_average() -> None:
    asked = []

    def first(example: dspy.Example, one: dspy.Prediction, two: dspy.Prediction) -> str:
        asked.append(one.answer)
        return "first"

    objective = objectives.prefers(first, baseline=lambda question: "four", orders=1)
    scores = [of(objective, answer=str(i)) for i in range(200)]
    assert len(asked) == 200 and set(scores) == {0.0, 1.0}
    assert 0.4 < sum(scores) / 200 < 0.6
    assert scores == [of(objective, answer=str(i)) for i in range(200)]  # the same order for the same texts
    assert objective.bias().compared == 0


def test_a_completion_that_says_the_same_ties_and_nobody_is_asked() -> None:
    objective = objectives.prefers(lambda *_: pytest.fail("asked"), baseline=lambda question: "four")
    assert of(objective, answer="four", reasoning="a chain of thought is not compared") == 0.5


def test_opponents_are_functions_mappings_programs_or_several_of_them() -> None:
    class Fixed(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer="12345", note="not compared")

    def of_baseline(baseline: Any, **settings: Any) -> float:
        return of(objectives.prefers(longer, baseline=baseline, **settings), answer="1234")

    assert of_baseline(Fixed(), fields="answer") == 0.0
    assert of_baseline({"1 + 2": "123"}) == 1.0
    assert of_baseline({"1 + 2": {"answer": "12345"}}) == 0.0
    assert of_baseline(lambda question: dspy.Prediction(answer="9876")) == 0.5
    assert of_baseline([{"1 + 2": "123"}, lambda question: "1", Fixed()], fields="answer") == pytest.approx(2 / 3)
    several = objectives.prefers(longer, baseline={("1", "2"): "123"})
    assert of(several, PAIR, answer="1234") == 1.0


def test_an_opponent_that_failed_loses_without_a_question() -> None:
    def broken(question: str) -> str:
        raise ValueError("no idea")

    for baseline in (broken, {"1 + 2": {"note": "the field is missing"}}):
        objective = objectives.prefers(lambda *_: pytest.fail("asked"), baseline=baseline)
        assert of(objective, answer="3") == 1.0


def test_an_opponent_is_asked_once_in_a_deployed_call() -> None:
    numbers = itertools.count()
    objective = objectives.prefers(longer, baseline=lambda question: "1" * (3 + next(numbers)))
    strategy = BestOfN([objective])
    with sharing():
        read = [strategy.read({"question": "1 + 2"}, dspy.Prediction(answer=a)) for a in ("12", "123", "1234")]
        assert [r.scores for r in read] == [(0.0,), (0.5,), (1.0,)] and next(numbers) == 1


def test_a_judge_that_fails_is_a_failure_of_the_completion_with_its_cause() -> None:
    read = BestOfN([objectives.prefers(lambda e, a, b: "neither", baseline={"1 + 2": "4"})]).read(
        {"question": "1 + 2"}, dspy.Prediction(answer="3")
    )
    assert read.scores is None and read.failure is not None and "neither" in read.failure


def test_it_is_a_metric_too_and_needs_no_label() -> None:
    metric = objectives.prefers(longer, baseline={"1 + 2": "12"})
    assert metric(EXAMPLE, dspy.Prediction(answer="123"), trace=[], pred_name="x") == 1.0
    evaluate = dspy.Evaluate(devset=[EXAMPLE] * 4, metric=metric, display_progress=False)

    class Fixed(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer="1")

    assert evaluate(Fixed()).score == 0.0


def test_it_passes_the_checks_of_objectives() -> None:
    objective = objectives.prefers(longer, baseline={"1 + 2": "12"})
    check_objective(objective, [EXAMPLE] * 3, [dspy.Prediction(answer=a) for a in ("1", "12", "123")])


def test_without_a_baseline_it_needs_a_run() -> None:
    with pytest.raises(ConfigurationError, match="baseline=program"):
        of(objectives.prefers(longer), answer="3")


def test_a_query_that_a_mapping_does_not_have_and_fields_that_are_not_clear() -> None:
    objective = objectives.prefers(longer, baseline={"2 + 2": "4"})
    with pytest.raises(ConfigurationError, match=r"no output for the query '1 \+ 2'"):
        of(objective, answer="3")
    with pytest.raises(ConfigurationError, match="no output for the query"):
        objective.check_queries([EXAMPLE])
    with pytest.raises(ConfigurationError, match="name the one field"):
        of(objectives.prefers(longer, baseline=lambda question: "4"), answer="3", note="x")
    with pytest.raises(ConfigurationError, match="must return a text"):
        of(objectives.prefers(longer, baseline=lambda question: 4), answer="3")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"judge": "openai/gpt-4o"},
        {"judge": None},
        {"judge": dspy.Predict("question -> answer")},
        {"judge": str},
        {"baseline": "a text"},
        {"baseline": []},
        {"baseline": {}},
        {"baseline": [None, 3]},
        {"criterion": " "},
        {"orders": 0},
        {"orders": True},
        {"fields": []},
        {"inputs": ["not a name"]},
        {"name": ""},
    ],
)
def test_what_cannot_work_raises_when_it_is_made(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        objectives.prefers(**{"judge": longer, **kwargs})


def test_settings_and_opponents_are_part_of_the_identity() -> None:
    def digest(**settings: Any) -> str:
        return BestOfN([objectives.prefers(**{"judge": longer, "baseline": {"q": "a"}, **settings})]).digest(None)

    assert digest() == digest()
    others = [
        digest(baseline={"q": "b"}),
        digest(orders=1),
        digest(fields="answer"),
        digest(judge=lambda e, a, b: "tie"),
        digest(baseline=dspy.Predict("question -> answer")),
        digest(baseline=dspy.Predict(dspy.Signature("question -> answer", "Other."))),
        digest(baseline=None),
    ]
    assert len({digest(), *others}) == 8
