"""Usages add up, and are shared out without losing anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage

COUNTS = st.integers(0, 1000)
USAGES = st.builds(
    Usage,
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    usd=st.none() | COUNTS,
    shared_tokens=COUNTS,
    shared_completion_tokens=COUNTS,
    shared_usd=COUNTS,
    latency_s=COUNTS,
    recounted=st.booleans(),
)


@given(USAGES, USAGES, USAGES)
def test_usages_can_be_added_in_any_order(a: Usage, b: Usage, c: Usage) -> None:
    assert a + b == b + a and (a + b) + c == a + (b + c)
    assert a + Usage() == a


@given(st.builds(Usage, prompt_tokens=COUNTS, completion_tokens=COUNTS, usd=COUNTS), st.integers(1, 64))
def test_shares_add_up_to_the_whole(usage: Usage, n: int) -> None:
    total = sum([usage.share(n)] * n, Usage())
    assert total.tokens == pytest.approx(usage.tokens) and total.usd == pytest.approx(usage.usd)


def test_a_sum_lasts_as_long_as_its_longest_part() -> None:
    assert (Usage(latency_s=2.0) + Usage(latency_s=3.0)).latency_s == 3.0
    assert Usage(latency_s=2.0).share(4).latency_s == 2.0


def test_one_unknown_price_makes_the_sum_unknown_unless_nothing_was_taken() -> None:
    known, unknown, refused = Usage(prompt_tokens=1, usd=0.5), Usage(prompt_tokens=1), Usage()
    assert (known + unknown).usd is None and unknown.unpriced and not refused.unpriced
    assert (known + refused).usd == 0.5 and (refused + refused).usd is None


def test_spent_adds_up_and_comes_back_from_json() -> None:
    spent = Spent(completions=2, requests=3, prompt_tokens=4, usd=0.5, seconds=1.23456, judge_requests=1, judge_usd=0.1)
    assert spent + Spent() == spent
    assert (spent + spent).usd == 1.0 and (spent + spent).judge_requests == 2
    data = spent.to_dict()
    assert data["seconds"] == 1.235 and Spent.from_dict({**data, "of a later version": 1}).to_dict() == data
