import functools
import math
from collections.abc import Callable
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy.errors import ScoreError
from iapo_dspy.scoring.scores import as_score, function_digest


@pytest.mark.parametrize(
    ("value", "score"),
    [(True, 1.0), (False, 0.0), (0.25, 0.25), (1, 1.0), (np.float32(0.5), 0.5), (np.bool_(True), 1.0)],
)
def test_scores_that_count(value: Any, score: float) -> None:
    assert as_score(value, what="metric") == score
    assert as_score(dspy.Prediction(score=value, feedback="x"), what="metric") == score


@pytest.mark.parametrize("value", ["1", None, math.nan, math.inf, 1.5, -0.1, [1], dspy.Prediction(feedback="x")])
def test_a_bad_score_raises(value: Any) -> None:
    with pytest.raises(ScoreError, match="metric returned"):
        as_score(value, what="metric")


def test_bounds_are_inclusive() -> None:
    assert as_score(-2, what="m", bounds=(-2, 3)) == -2
    assert as_score(3, what="m", bounds=(-2, 3)) == 3


class Judge:
    def __call__(self, example: Any, pred: Any) -> float:
        return float(example["gold"] in pred.answer)


def test_the_digest_of_a_function_is_that_of_its_code() -> None:
    def make(text: str) -> Any:
        space: dict[str, Any] = {}
        exec(text, space)
        return space["f"]

    one, same, other = make("def f(e, p): return 1.0"), make("def f(e, p): return 1.0"), make("def f(e, p): return 0.5")
    assert function_digest(one) == function_digest(same) != function_digest(other)
    assert function_digest(Judge()) == function_digest(Judge())
    assert function_digest(functools.partial(one, 1)) != function_digest(functools.partial(one, 2))


class Above:
    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(self, example: Any, pred: Any) -> bool:
        return bool(pred.answer >= self.least)

    def method(self, example: Any, pred: Any) -> bool:
        return self(example, pred)


def above(least: float, *, keyword: bool = False) -> Any:
    def closed(example: Any, pred: Any) -> bool:
        return bool(pred.answer >= least)

    def given(example: Any, pred: Any, *, least: float = least) -> bool:
        return bool(pred.answer >= least)

    return given if keyword else closed


def checked(example: Any, pred: Any, *, checker: Any) -> bool:
    return bool(checker(example, pred))


@pytest.mark.parametrize(
    "make",
    [
        above,
        lambda least: above(least, keyword=True),
        Above,
        lambda least: Above(least).method,
        lambda least: functools.partial(checked, checker=Above(least)),
        lambda least: functools.partial(checked, checker=above(least)),
    ],
)
def test_the_digest_of_a_function_is_also_that_of_what_it_holds(make: Callable[[float], Any]) -> None:
    assert function_digest(make(2)) == function_digest(make(2)) != function_digest(make(8))
