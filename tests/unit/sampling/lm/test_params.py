from __future__ import annotations

import asyncio
import email.utils
import logging
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM

from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.sampling.concurrency.gate import Gate
from iapo_dspy.sampling.concurrency.retrying import backoff
from iapo_dspy.sampling.concurrency.threads import ThreadGate, in_thread
from iapo_dspy.sampling.lm.params import (
    canonical,
    derive_seed,
    effective_temperature,
    max_output_tokens,
    request_params,
    supports_n,
)
from iapo_dspy.sampling.lm.refusals import is_fatal, is_refused, is_retryable, retry_after, secrets_of
from iapo_dspy.sampling.requests.port import CompletionRequest
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.pricing import price_of, prompt_bound
from iapo_dspy.sampling.spending.usage_check import check_usage
from iapo_dspy.types import Decoding
from tests.support.sampling import draw

ROOT = Path(__file__).parents[4]


def test_litellm_is_not_imported_before_it_is_used() -> None:
    code = (
        "import sys\nfrom iapo_dspy.sampling.rollouts.sampler import Sampler\n"
        "Sampler(); print('litellm.main' in sys.modules or 'litellm.utils' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


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


def test_who_takes_n() -> None:
    assert supports_n("openai/whatever") and supports_n("hosted_vllm/whatever") and supports_n("unknown_provider/x")
    assert not supports_n("anthropic/claude-3-5-sonnet-20240620") and not supports_n("ollama/x")


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


@pytest.mark.parametrize(
    ("reported", "texts", "truncated", "recounted"),
    [
        ((10, 5), ["a", "b"], 0, False),
        ((10, 1), ["a", "b"], 0, True),
        ((10, 1), ["a", None], 0, False),
        ((None, None), ["a", "b"], 0, True),
        ((0, 5), ["a"], 0, True),
        ((10, 9), ["a", "b"], 1, True),  # cut off at 10 tokens, so there must be 10
        ((10, 12), ["a", "b"], 1, False),
    ],
)
def test_usage_is_checked(reported: Any, texts: Any, truncated: int, recounted: bool) -> None:
    usage = check_usage(
        model="openai/x",
        messages=[{"role": "user", "content": "hi"}],
        texts=texts,
        truncated=truncated,
        limit=10,
        reported=reported,
    )
    assert usage.recounted == recounted
    assert usage.prompt_tokens > 0 and usage.completion_tokens >= len([t for t in texts if t])


class Response:
    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers


class RateLimitError(Exception):
    status_code = 429

    def __init__(self, message: str = "slow down", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = Response(headers or {})


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after(RateLimitError(headers={"Retry-After": "3"})) == 3.0
    assert retry_after(RateLimitError(headers={"retry-after-ms": "250", "retry-after": "9"})) == 0.25
    assert retry_after(RateLimitError()) is None
    assert retry_after(RateLimitError(headers={"Retry-After": "soon"})) is None
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    assert 15 < (retry_after(RateLimitError(headers={"Retry-After": date})) or 0) <= 20
    late = RateLimitError()
    late.litellm_response_headers = {"llm_provider-retry-after": "4"}  # type: ignore[attr-defined]
    assert retry_after(late) == 4.0


def test_which_errors_are_what() -> None:
    assert is_retryable(RateLimitError()) and is_refused(RateLimitError()) and not is_fatal(RateLimitError())
    assert is_fatal(RateLimitError("insufficient_quota")) and not is_retryable(RateLimitError("insufficient_quota"))
    assert is_fatal(ConfigurationError("x"))
    for error in (asyncio.TimeoutError(), TimeoutError(), ConnectionResetError()):
        assert is_retryable(error) and not is_refused(error) and not is_fatal(error)
    assert not is_retryable(ValueError("x")) and not is_fatal(ValueError("x"))


def test_waiting_grows_and_never_ends_early() -> None:
    rng = random.Random(0)
    waits = [backoff(i, None, rng) for i in range(12)]
    assert all(0.25 * 2**i <= w <= 0.5 * 2**i for i, w in enumerate(waits[:7]))
    assert max(waits) <= 60
    assert all(2.0 <= backoff(0, 2.0, rng) <= 2.25 for _ in range(50))
    assert [backoff(i, None, random.Random(1)) for i in range(3)] == [
        backoff(i, None, random.Random(1)) for i in range(3)
    ]


def test_failures_are_one_line_without_keys() -> None:
    secrets = secrets_of({"api_key": "my-private-key", "extra_headers": {"X-A": "header-value"}, "model": "m"})
    error = ValueError("\n\nkey my-private-key header-value sk-proj-abcdefgh12 Bearer abc.def\nsecond line")
    line = one_line(error, secrets)
    assert line == "ValueError: key [secret] [secret] [secret] [secret]"
    assert len(one_line(ValueError("x" * 1000))) == 300
    assert one_line(KeyError()) == "KeyError"


async def test_gate_bounds_and_pauses() -> None:
    gate = Gate(3)
    most = 0

    async def work() -> None:
        nonlocal most
        async with gate():
            most = max(most, gate.in_flight)
            await asyncio.sleep(0.005)

    await asyncio.gather(*(work() for _ in range(20)))
    assert most == 3
    gate.pause(0.1)
    start = time.monotonic()
    await work()
    assert time.monotonic() - start >= 0.1


async def test_thread_gate_admits_whole_groups_in_order() -> None:
    gate = ThreadGate(4)
    order: list[int] = []
    running = 0

    async def group(number: int, size: int) -> None:
        nonlocal running
        async with gate(size):
            running += size
            assert running <= max(4, size)
            order.append(number)
            await asyncio.sleep(0.005)
            running -= size

    sizes = [3, 2, 9, 1, 4]
    await asyncio.gather(*(group(i, size) for i, size in enumerate(sizes)))
    assert order == [0, 1, 2, 3, 4]
    blocked = asyncio.create_task(group(5, 4))
    async with gate(4):
        waiting = asyncio.create_task(group(6, 2))
        await asyncio.sleep(0)
        waiting.cancel()
    await blocked
    await asyncio.wait_for(group(7, 4), 1)


async def test_threads_hand_back_results_and_errors() -> None:
    assert await in_thread(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="SystemExit"):
        await in_thread(sys.exit)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await in_thread(lambda: next(iter([])))


def test_bad_arguments_are_refused() -> None:
    program = dspy.Predict("question -> answer")
    for m in (0, -1, 1.5, True):
        with pytest.raises(ConfigurationError, match="m="):
            draw(Sampler(lm=DummyLM([])), program, {}, m, key=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_concurrency"):
        Sampler(max_concurrency=0)
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match=r"dspy\.configure"):
        draw(Sampler(), program, {"question": "q"}, 1, key=0)


def test_another_completer_can_be_plugged_in(caplog: pytest.LogCaptureFixture) -> None:
    from iapo_dspy.sampling.requests.port import Choice, Completer

    class Fixed:
        async def complete(self, request: CompletionRequest) -> list[Choice]:
            text = "[[ ## answer ## ]]\nprivate"
            return [Choice(text=text, output=text)] * request.n

    fixed = Fixed()
    assert isinstance(fixed, Completer)
    sampler = Sampler(lm=dspy.LM("openai/x"), completer=lambda lm: fixed)
    with caplog.at_level(logging.INFO):
        rollouts = draw(sampler, dspy.Predict("question -> answer"), {"question": "private"}, 3, key=0)
    assert [r.prediction.answer for r in rollouts if r.prediction] == ["private"] * 3
    assert "private" not in caplog.text
