"""Prices of models, and bounds of what a request may cost."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM

from iapo_dspy.sampling.spending.pricing import Price, batch_price, price_of, prompt_bound


def test_prices() -> None:
    table = price_of(dspy.LM("openai/gpt-4o-mini"))
    assert table is not None and table.of(1e6, 1e6) == pytest.approx(0.75)
    own = price_of(dspy.LM("hosted_vllm/x", input_cost_per_token=1e-6, output_cost_per_token=2e-6))
    assert own is not None and own.of(1, 1) == pytest.approx(3e-6)
    assert price_of(dspy.LM("hosted_vllm/x")) is None
    assert price_of(DummyLM([])) is None


def test_prompt_bound_is_above_every_tokenizer() -> None:
    import litellm

    for text in ("hello " * 50, "日本語" * 30, "🙂" * 20, "x" * 300, ""):
        messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
        assert prompt_bound(messages, {}) >= litellm.token_counter(model="openai/x", messages=messages)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/i.png"}}]}]
    assert prompt_bound(image, {}) > 4000
    assert prompt_bound([], {"tools": [{"a": "b" * 100}]}) > 100


def test_the_price_of_jobs() -> None:
    def price(discount: float | None = None, model: str = "openai/gpt-4o-mini", **settings: Any) -> Price:
        found = batch_price(dspy.LM(model, **settings), discount)
        assert found is not None
        return found

    ordinary = price_of(dspy.LM("openai/gpt-4o-mini"))
    assert ordinary is not None
    assert price().of(100, 10) == pytest.approx(ordinary.of(100, 10) / 2)  # as LiteLLM's table says
    assert price().bound(100, 10) == pytest.approx(ordinary.bound(100, 10) / 2)
    assert price(0.25).of(100, 10) == pytest.approx(0.75 * ordinary.of(100, 10))
    own: dict[str, Any] = {"model": "openai/mine", "input_cost_per_token": 2.0, "output_cost_per_token": 4.0}
    assert price(**own).of(1, 1) == 6.0  # nobody said that it is cheaper
    assert price(0.5, **own).bound(1, 1) == 3.0
    known = batch_price(dspy.LM("azure/us/gpt-4o-mini"))
    full = price_of(dspy.LM("azure/us/gpt-4o-mini"))
    assert known is not None and full is not None
    assert known.completion == full.completion  # the table has a batch price for its input only
    assert batch_price(dspy.LM("openai/unknown")) is None
    given = batch_price(dspy.LM("openai/unknown", output_cost_per_token=4.0))
    assert given is not None and (given.prompt, given.completion) == (0.0, 4.0)
