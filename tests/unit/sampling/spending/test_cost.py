"""The cost of a completion, by hand."""

import json
import math
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy import Cost
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.spending.pricing import Prices, price_of
from iapo_dspy.sampling.spending.usage import Usage

# Two completions of one request: 100 prompt tokens for both, 10 and 30 output tokens, a dollar a token, 2 seconds.
SHARED = [
    Usage(prompt_tokens=50, completion_tokens=20, usd=70, shared_tokens=50, shared_usd=50, latency_s=2.0),
    Usage(prompt_tokens=50, completion_tokens=20, usd=70, shared_tokens=50, shared_usd=50, latency_s=2.0),
]
# The same from a provider that does not take n: each request has its own 100 prompt tokens.
ALONE = [
    Usage(prompt_tokens=100, completion_tokens=10, usd=110, latency_s=1.0),
    Usage(prompt_tokens=100, completion_tokens=30, usd=130, latency_s=3.0),
]


@pytest.mark.parametrize(
    ("cost", "shared", "alone"),
    [
        (Cost(), (0, (20, 20)), (0, (10, 30))),
        (Cost(completion_tokens=1, prompt_tokens=0.25), (25, (20, 20)), (0, (35, 55))),
        (Cost(usd=1), (100, (20, 20)), (0, (110, 130))),
        (Cost(seconds=1), (2, (0, 0)), (3, (0, 0))),
        (Cost(usd=0.5, seconds=10), (70, (10, 10)), (30, (55, 65))),
        (Cost(usd_per_million=(1, 2)), (100, (20, 20)), (0, (110, 130))),
    ],
)
def test_what_is_paid_once_and_what_each_completion_adds(cost: Cost, shared: Any, alone: Any) -> None:
    assert cost.split(SHARED) == shared
    assert cost.split(ALONE) == alone


def test_a_failed_request_without_a_price_costs_nothing_known() -> None:
    assert Cost(usd=1).split([Usage()]) == (0.0, (0.0,))
    assert Cost(seconds=1).split([]) == (0.0, ())


WEIGHT = st.floats(0, 100)


@given(WEIGHT, WEIGHT, WEIGHT, st.lists(st.tuples(*[st.floats(0, 1e4)] * 3), min_size=1, max_size=8))
def test_a_split_loses_nothing(c: float, p: float, u: float, taken: list[tuple[float, float, float]]) -> None:
    rows = [
        Usage(prompt_tokens=a, completion_tokens=b, usd=a + b, shared_tokens=min(s, a), shared_usd=min(s, a))
        for a, b, s in taken
    ]
    once, each = Cost(completion_tokens=c + 0.1, prompt_tokens=p, usd=u).split(rows)
    total = sum((c + 0.1) * r.completion_tokens + p * r.prompt_tokens + u * (r.usd or 0.0) for r in rows)
    assert once + sum(each) == pytest.approx(total) and once >= 0 and min(each) >= 0


def test_the_default_counts_output_tokens_and_prices_alone_mean_dollars() -> None:
    assert Cost() == Cost(completion_tokens=1) and Cost().unit == "output tokens"
    assert Cost(usd_per_million=(0.15, 0.6)).usd == 1 and Cost(usd_per_million=(0.15, 0.6)).completion_tokens == 0
    with_prices = Cost(completion_tokens=1, usd_per_million=(0.15, 0.6))
    assert with_prices.usd == 0 and with_prices.unit == "output tokens"
    assert Cost(usd=1, seconds=0.5).unit == "1 dollars + 0.5 seconds"


@pytest.mark.parametrize(
    "settings",
    [
        {"usd": -1},
        {"seconds": math.nan},
        {"prompt_tokens": "1"},
        {"usd": True},
        {"usd": 0},
        {"usd_per_million": 3},
        {"usd_per_million": (1,)},
        {"usd_per_million": (1, -2)},
        {"usd_per_million": {"openai/x": (1, math.inf)}},
    ],
)
def test_bad_costs_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"finite number|every weight is 0|usd_per_million"):
        Cost(**settings)


def test_costs_are_plain_json_and_come_back_equal() -> None:
    for cost in (Cost(), Cost(usd=1, seconds=0.25), Cost(usd_per_million={"openai/a": (1, 2), "b": (3, 4)})):
        assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost
        assert hash(cost) == hash(Cost.from_dict(cost.to_dict()))
    with pytest.raises(ConfigurationError, match="joules"):
        Cost.from_dict({"joules": 1})


def test_the_users_prices_come_before_the_lms_and_litellms() -> None:
    prices = Prices.read({"openai/gpt-4o-mini": (1, 2), "local": (3, 4)})
    named, suffix = price_of(dspy.LM("openai/gpt-4o-mini"), prices), price_of(dspy.LM("hosted_vllm/local"), prices)
    assert named is not None and (named.prompt, named.completion) == (1e-6, 2e-6)
    assert suffix is not None and suffix.of(1000, 100) == pytest.approx(3e-3 + 4e-4)
    table, mine = price_of(dspy.LM("openai/gpt-4o")), price_of(dspy.LM("openai/gpt-4o"), prices)
    assert table is not None and mine == table  # not named: LiteLLM's table, offline
    assert price_of(dspy.LM("hosted_vllm/other"), prices) is None
    everything = price_of(dspy.LM("hosted_vllm/other", input_cost_per_token=1.0), Prices.read((5, 6)))
    assert everything is not None and everything.prompt == 5e-6


def test_dollars_without_a_price_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigurationError, match=r"no price of 'hosted_vllm/x'.*usd_per_million"):
        Cost(usd=1).check(dspy.LM("hosted_vllm/x"))
    Cost(usd_per_million=(1, 1)).check(dspy.LM("hosted_vllm/x"))
    Cost(seconds=1).check(dspy.LM("hosted_vllm/x"))
