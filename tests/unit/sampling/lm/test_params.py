"""Parameters of requests: how they merge, and what follows from them."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.utils import DummyLM

from iapo_dspy.sampling.lm.params import (
    canonical,
    derive_seed,
    effective_temperature,
    max_output_tokens,
    request_params,
    supports_n,
)
from iapo_dspy.types import Decoding


def test_params_merge_in_order() -> None:
    lm = dspy.LM("openai/x", temperature=0.3, max_tokens=10, api_key="k", n=4, rollout_id=1, seed=5)
    params = request_params(lm, {"temperature": 0.0, "n": 9, "stop": ["x"]}, Decoding(max_tokens=7))
    assert params == {"temperature": 0.0, "max_tokens": 7, "api_key": "k", "stop": ["x"]}
    assert request_params(dspy.LM("openai/x"))["temperature"] == 1.0


def test_reasoning_models_get_no_temperature() -> None:
    lm = dspy.LM("openai/gpt-5-mini", max_tokens=16000)
    params = request_params(lm, None, Decoding(max_tokens=20000))
    assert params == {"max_completion_tokens": 20000}
    assert max_output_tokens(params) == 20000
    assert effective_temperature(lm) is None
    assert effective_temperature(dspy.LM("openai/gpt-5-chat")) == 1.0


def test_effective_temperature() -> None:
    assert effective_temperature(dspy.LM("openai/x")) == 1.0
    assert effective_temperature(dspy.LM("openai/x", temperature=0)) == 0.0
    assert effective_temperature(dspy.LM("openai/x", temperature=0), {"temperature": 0.4}) == 0.4
    assert effective_temperature(dspy.LM("openai/x"), {"temperature": 0.4}, Decoding(temperature=0)) == 0.0
    assert effective_temperature(DummyLM([])) is None


def test_seeds_are_stable_and_spread() -> None:
    seeds = {derive_seed(b, k, m, i) for b in range(3) for k in [(0, 1), (1, 0)] for m in "ab" for i in range(50)}
    assert len(seeds) == 600
    assert all(0 <= s < 2**31 for s in seeds)
    assert derive_seed(1, (2, 3), "x", 4) == 2003794279  # in every process, on every machine


def test_equal_requests_are_equal_text() -> None:
    import pydantic

    def schema(kind: type) -> Any:
        return pydantic.create_model("Same", value=(kind, ...))

    assert canonical({"b": 1, "a": schema(int)}) == canonical({"a": schema(int), "b": 1})
    assert canonical(schema(int)) != canonical(schema(str))


def test_providers_that_take_n() -> None:
    assert supports_n("openai/whatever") and supports_n("hosted_vllm/whatever") and supports_n("unknown_provider/x")
    assert not supports_n("anthropic/claude-3-5-sonnet-20240620") and not supports_n("ollama/x")
