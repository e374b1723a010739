"""Each choice gets its share of the request, and its prompt is marked as shared where n completions pay for it once."""

from __future__ import annotations

import dspy
import pytest

from iapo_dspy.sampling.requests.choices import Reading, seed_of
from iapo_dspy.sampling.spending.pricing import Price
from iapo_dspy.sampling.spending.usage import Usage

PRICE = Price(prompt=1.0, completion=2.0, prompt_bound=1.0, completion_bound=2.0)
READING = Reading(
    outputs=["one", {"text": "two", "reasoning_content": "hm"}],
    reasons=["stop", "length"],
    usage=Usage(prompt_tokens=10, completion_tokens=30, usd=70.0, latency_s=0.5),
)


def test_choices_share_the_usage_and_the_prompt() -> None:
    one, two = READING.choices(2, shared=True, price=PRICE, seed=3)
    assert (one.text, two.text, two.output) == ("one", "two", READING.outputs[1])
    assert (two.finish_reason, two.seed) == ("length", 3)
    whole = one.usage + two.usage
    assert (whole.prompt_tokens, whole.completion_tokens, whole.usd, whole.latency_s) == (10, 30, 70.0, 0.5)
    assert (whole.shared_tokens, whole.shared_usd) == (10, 10.0)  # the prompt's part of the dollars


def test_nothing_is_shared_where_each_completion_is_a_request() -> None:
    (one,) = READING.choices(1, shared=False, price=PRICE, seed=None)  # more than were asked for are left out
    assert one.usage == READING.usage


@pytest.mark.parametrize("price", [None, PRICE])
def test_an_unknown_price_leaves_the_shared_dollars_at_zero(price: Price | None) -> None:
    reading = Reading(outputs=["a"], reasons=["stop"], usage=Usage(prompt_tokens=1, usd=None if price else 1.0))
    assert reading.choices(1, shared=True, price=price, seed=None)[0].usage.shared_usd == 0.0


def test_seeds_are_made_of_the_lms_own_seed() -> None:
    messages = [{"role": "user", "content": "hi"}]
    lm = dspy.LM("openai/fake", seed=1)
    assert seed_of(lm, [0, 1], messages, 0) == seed_of(lm, [0, 1], messages, 0) != seed_of(lm, [0, 1], messages, 1)
    assert seed_of(dspy.LM("openai/fake"), [0, 1], messages, 0) is None
