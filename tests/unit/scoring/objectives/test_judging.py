"""Verdicts of judges are read, and judges and models that cannot work are refused when they are made."""

import contextlib
import math
import time
from typing import Any

import pytest

from iapo_dspy import objectives
from iapo_dspy.errors import ConfigurationError, ScoreError
from iapo_dspy.scoring.objectives.judging import read_verdict


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 0.7),
        (" **7** ", 0.7),
        ("7.5", 0.75),
        ("7,5", 0.75),
        ("7/10", 0.7),
        ("7 out of 10", 0.7),
        ("Score: 7", 0.7),
        ("7.", 0.7),
        ("I give it 7. It is a 7.", 0.7),
        ("10", 1.0),
        ("0", 0.0),
    ],
)
def test_numbers_that_judges_write(text: str, score: float) -> None:
    assert read_verdict(text, (0.0, 10.0)) == pytest.approx(score)


@pytest.mark.parametrize("text", ["", "good", "7 or 8", "11", "-1", "7/5", "3/10 and 4/10", "v2", "nan", "1e9999"])
def test_a_verdict_that_cannot_be_read_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ScoreError, match="erdict") as caught:
        read_verdict(text, (0.0, 10.0))
    assert repr(text.strip()) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["1" * 10**5, "1" * 10**5 + "x1", "1 " * 10**5 + "/", "7" + " " * 10**6 + "out", "1." * 10**5]
)
def test_a_verdict_of_any_length_is_read_in_no_time(text: str) -> None:
    start = time.perf_counter()
    with contextlib.suppress(ScoreError):
        assert read_verdict(text, (0.0, 10.0)) in (0.1, 0.7)
    assert time.perf_counter() - start < 2


def test_scales_need_not_start_at_zero_and_may_be_words() -> None:
    assert [read_verdict(t, (1.0, 5.0)) for t in ("1", "3", "5/5")] == [0.0, 0.5, 1.0]
    assert read_verdict("-1", (-1.0, 1.0)) == 0.0
    words = (("no", 0.0), ("partly", 0.5), ("yes, fully", 1.0))
    for text, score in [("No.", 0), ("**Partly**", 0.5), ("I say: yes, fully!", 1), ("Yes, fully", 1), ("NO", 0)]:
        assert read_verdict(text, words) == score
    for text in ("nope", "yes", "no, or partly", ""):
        with pytest.raises(ScoreError, match="not one of"):
            read_verdict(text, words)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"rubric": " "},
        {"lm": "openai/gpt-4o"},
        {"scale": (3, 3)},
        {"scale": (1, math.inf)},
        {"scale": "1-5"},
        {"scale": {"yes": 1.0}},
        {"scale": {"yes": 1.0, "no": -1.0}},
        {"scale": {"yes": 1.0, "YES": 0.0}},
        {"fields": []},
        {"inputs": ["not a name"]},
    ],
)
def test_judges_that_cannot_work_raise_when_they_are_made(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="judge"):
        objectives.judge(**{"rubric": "Is it good?", **kwargs})


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.similarity("answer", model="openai/e"),
        lambda: objectives.similarity("answer", "question", text="x", model="openai/e"),
        lambda: objectives.similarity("answer", text="", model="openai/e"),
        lambda: objectives.similarity("answer", "question", model=""),
        lambda: objectives.served_reward_model("m", "localhost:8000"),
        lambda: objectives.served_reward_model("", "http://x"),
        lambda: objectives.served_reward_model("m", "http://x", endpoint="embed"),  # type: ignore[arg-type]
        lambda: objectives.served_reward_model("m", "http://x", endpoint="score", form="chat"),
        lambda: objectives.served_reward_model("m", "http://x", form="prose"),  # type: ignore[arg-type]
        lambda: objectives.served_reward_model("m", "http://x", label=-1),
        lambda: objectives.served_reward_model("m", "http://x", num_retries=-1),
        lambda: objectives.served_reward_model("m", "http://x", timeout=0),
        lambda: objectives.served_reward_model("m", "http://x", bounds=(0, 5), calibrate="rank"),
    ],
)
def test_models_that_cannot_be_asked_raise_when_they_are_made(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()
