from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.preferences import RESOURCES
from iapo_dspy.program.evidence.columns import (
    check_ranges,
    dumped,
    loaded,
    numbers,
    packed,
    plain,
    rounded,
    unpacked,
    written,
)
from iapo_dspy.types import Observations, Pulls


def observed(seconds: list[float]) -> Observations:
    """Two pulls of two completions and of one: prompt tokens are taken once, output tokens are not."""
    used = np.array([[22.0, 40.0, np.nan, seconds[0]], [11.0, 41.0, np.nan, seconds[1]]])
    once = np.array([[0.0, 40.0, np.nan, seconds[0]], [0.0, 41.0, np.nan, 0.25]])
    return Observations(
        pulls=Pulls(np.array([1, 0]), np.array([3, 4]), np.array([2, 1])),
        label=np.array([0, -1, 2]),
        score=np.array([[1.0, 0.25], [np.nan, np.nan], [0.0, 1 / 3]]),
        cost=np.array([11.0, 11.0, 11.0]),
        used=used,
        once=once,
    )


def test_a_column_that_is_taken_once_as_a_whole_is_written_once() -> None:
    data = dumped(observed([0.5, 2.0]))
    assert data == {
        "prompt": "1 0",
        "query": "3 4",
        "size": "2 1",
        "label": "0 -1 2",
        "score": ["1 nan 0", "0.25 nan 0.333333333"],
        "cost": "11 11 11",
        "used": {"tokens": "22 11", "prompt_tokens": "40 41", "usd": "nan nan", "seconds": "0.5 2"},
        "once": {"prompt_tokens": "used", "usd": "used", "seconds": "0.5 0.25"},
    }
    again = loaded(json.loads(json.dumps(data)))
    for name in ("label", "score", "cost", "overhead", "used", "once"):
        np.testing.assert_allclose(getattr(again, name), getattr(observed([0.5, 2.0]), name), rtol=1e-9)


def test_logprobs_are_a_column_where_there_are_any() -> None:
    seen = replace(observed([0.5, 2.0]), logprob=np.array([-0.123456, np.nan, 0.0]))
    data = json.loads(json.dumps(dumped(seen)))
    assert data["logprob"] == "-0.12346 nan 0"
    again = loaded(data)
    np.testing.assert_allclose(again.logprobs, [-0.12346, np.nan, 0.0])
    check_ranges(again, 2, 5)
    assert loaded({k: v for k, v in data.items() if k != "logprob"}).logprob is None
    with pytest.raises(ValueError, match="logprobs"):
        check_ranges(replace(again, logprob=np.array([0.1, 0.0, 0.0])), 2, 5)


def test_columns_that_are_not_there_are_zero_or_not_known() -> None:
    data = dumped(observed([0.5, 2.0]))
    assert loaded({k: v for k, v in data.items() if k not in ("used", "once")}).used is None
    np.testing.assert_array_equal(loaded({**data, "once": {}}).once, np.zeros((2, len(RESOURCES))))


def test_rounding_again_changes_nothing_and_shortens_seconds_only() -> None:
    once, *_ = rounded([observed([0.123456789, 2.0])])
    twice, *_ = rounded([once])
    assert once.used is not None and twice.used is not None
    assert once.used[0].tolist()[RESOURCES.index("seconds")] == 0.123457
    assert written(once.used) == written(twice.used) and once.score[2, 1] == 0.333333333


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_what_is_packed_is_plain_text_and_unpacks(data: object) -> None:
    text = packed(data)
    assert text.isascii() and "\n" not in text and unpacked(text) == data


def test_numbers_that_json_lacks_are_words() -> None:
    assert plain({"a": (float("nan"), float("inf"), 1.0)}) == {"a": ["NaN", "Infinity", 1.0]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        packed([float("nan")])


def test_numbers_have_the_shape_that_is_asked_for() -> None:
    values = np.array([[1.0, np.nan], [0.1, 2e-7]])
    np.testing.assert_array_equal(numbers(written(values), np.float64, (2, 2)), values)
    with pytest.raises(ValueError, match="reshape"):
        numbers("1 2 3", np.float64, (2, 2))
    with pytest.raises(ValueError, match="whole numbers"):
        numbers("1 2.5", np.int64)
