from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import dspy
import litellm
import openai
import pytest

from iapo_dspy.demo import provider, tasks
from iapo_dspy.demo.batching import Batcher, shared_batcher
from iapo_dspy.demo.generation import Generation, GenerationRequest
from iapo_dspy.demo.model import TinyLM
from tests.support.demo_chat import render_chat

provider.register()

MESSAGES = render_chat(
    instruction="Work column by column, carrying, before you answer.",
    field="question",
    value="What is 123 + 456?",
    reasoning=False,
)


def ask(**options: Any) -> Any:
    return litellm.completion(**{"model": tasks.MODEL, "messages": MESSAGES, "temperature": 1.0, **options})


def texts(response: Any) -> list[str]:
    return [choice.message.content for choice in response.choices]


@pytest.fixture(autouse=True)
def _fresh_seeds() -> Any:
    yield
    provider.set_seed(None)


def test_registering_twice_from_many_threads_leaves_one_provider() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: provider.register(), range(32)))
    assert [e["provider"] for e in litellm.custom_provider_map].count(provider.PROVIDER) == 1
    assert "n" in litellm.get_supported_openai_params(model=tasks.MODEL)


@pytest.mark.parametrize(("small", "model"), [(False, tasks.MODEL), (True, tasks.SMALL_MODEL)])
def test_the_lm_of_a_snippet_is_ready_and_repeats_itself(small: bool, model: str) -> None:
    litellm.custom_provider_map.clear()
    lm = provider.lm(small=small, max_tokens=20)
    assert (lm.model, lm.kwargs["max_tokens"], lm.kwargs["temperature"]) == (model, 20, 1.0)
    student = dspy.Predict("question -> answer", n=4)
    first, again = (student(question="What is 123 + 456?", lm=provider.lm(small=small)) for _ in range(2))
    assert first.completions.answer == again.completions.answer and len(set(first.completions.answer)) > 1


def test_n_choices_come_from_one_request_that_counts_the_prompt_once() -> None:
    response = ask(n=8, seed=1)
    lengths = [len(shared_batcher().model.tokenizer.encode(t)) + 1 for t in texts(response)]
    assert [c.index for c in response.choices] == list(range(8))
    assert {c.finish_reason for c in response.choices} == {"stop"}
    assert len(set(texts(response))) > 1
    assert response.usage.prompt_tokens == len(shared_batcher().model.tokenizer.encode_chat(MESSAGES))
    assert response.usage.completion_tokens == sum(lengths)
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens
    assert litellm.completion_cost(response, model=tasks.MODEL) == 0.0


def test_a_seed_makes_a_request_deterministic_and_no_seed_makes_it_fresh() -> None:
    assert texts(ask(n=4, seed=5)) == texts(ask(n=4, seed=5)) != texts(ask(n=4, seed=6))
    assert texts(ask(n=8)) != texts(ask(n=8))


def test_set_seed_reproduces_a_run_whatever_the_order_of_different_requests() -> None:
    provider.set_seed(3)
    first = [texts(ask(n=2)), texts(ask(n=2)), texts(ask(n=3))]
    provider.set_seed(3)
    other = texts(ask(n=3))
    assert [texts(ask(n=2)), texts(ask(n=2)), other] == first
    assert first[0] != first[1]


def test_sampling_options_reach_the_model() -> None:
    assert len(set(texts(ask(n=5, temperature=0.0)))) == 1
    assert len(set(texts(ask(n=5, temperature=1.0, top_p=0.01)))) == 1
    assert len(set(texts(ask(n=5, temperature=1.0, extra_body={"top_k": 1})))) == 1
    assert ask(max_tokens=3).choices[0].finish_reason == "length"
    assert "; " not in texts(ask(stop=["; "]))[0]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n": 0}, "BadRequestError"),
        ({"temperature": -1.0}, "BadRequestError"),
        ({"messages": [{"role": "user", "content": "~" * 600}]}, "ContextWindowExceededError"),
        ({"model": "iapo_demo/huge"}, "NotFoundError"),
        ({"response_format": {"type": "json_object"}}, "BadRequestError"),
    ],
)
def test_errors_are_litellms_own(options: dict[str, Any], error: str) -> None:
    with pytest.raises(getattr(litellm, error)):
        ask(**options)


async def test_many_async_requests_share_batches() -> None:
    await litellm.acompletion(model=tasks.MODEL, messages=MESSAGES)
    sizes: list[int] = []
    batcher = shared_batcher()
    decode = batcher.model.decode

    def counted(tokens: Any, *rest: Any) -> Any:
        sizes.append(len(tokens))
        return decode(tokens, *rest)

    batcher.model.decode = counted  # type: ignore[assignment, method-assign]
    try:
        requests = (litellm.acompletion(model=tasks.MODEL, messages=MESSAGES, temperature=1.0) for _ in range(48))
        answers = await asyncio.gather(*requests)
    finally:
        batcher.model.decode = decode  # type: ignore[method-assign]
    assert len({texts(a)[0] for a in answers}) > 5
    assert max(sizes) >= 32
    # One by one they would have taken some 40 steps each.
    assert len(sizes) < 400


def test_it_works_from_several_event_loops_and_threads_at_once() -> None:
    async def go() -> list[str]:
        some = [litellm.acompletion(model=tasks.MODEL, messages=MESSAGES, seed=i, temperature=1.0) for i in range(4)]
        return [texts(r)[0] for r in await asyncio.gather(*some)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: asyncio.run(go()), range(4)))
    assert all(r == results[0] for r in results)


def test_dspy_predict_and_chain_of_thought_answer_through_the_provider() -> None:
    import dspy

    lm = dspy.LM(tasks.MODEL, engine="litellm", temperature=0.0, cache=False)
    task = tasks.addition_task()
    (careful,) = tasks.ADDITION_STYLES["careful"]
    with dspy.context(lm=lm):
        for reasoning in (False, True):
            student = task.student(reasoning=reasoning)
            for predictor in student.predictors():
                predictor.signature = predictor.signature.with_instructions(careful)
            prediction = student(question="What is 412 + 345?")
            assert task.metric(dspy.Example(answer="757"), prediction)
            if reasoning:
                assert "carry" in prediction.reasoning
        answers = {len(task.student()(question=e.question).answer) for e in task.heldout(5, 0)}
        assert answers == {3}


def test_a_failing_model_fails_the_requests_and_the_next_ones_work() -> None:
    batcher = Batcher(TinyLM.load())
    prefill, failures = batcher.model.prefill, [MemoryError("no room")]

    def broken_once(prompts: Any) -> Any:
        if failures:
            raise failures.pop()
        return prefill(prompts)

    batcher.model.prefill = broken_once  # type: ignore[method-assign]
    request = GenerationRequest(prompt=(70, 71, 72, 73), max_tokens=2, seed=0)
    with pytest.raises(MemoryError, match="no room"):
        batcher.submit(request).result(timeout=10)
    assert len(batcher.submit(request).result(timeout=10).choices) == 1


def test_a_cancelled_request_does_not_stop_the_worker() -> None:
    batcher = shared_batcher()
    request = GenerationRequest(prompt=tuple(batcher.model.tokenizer.encode_chat(MESSAGES)), seed=0)
    futures = [batcher.submit(request) for _ in range(20)]
    for future in futures[::2]:
        future.cancel()
    assert all(f.result(timeout=10).choices for f in futures if not f.cancelled())


async def test_a_request_that_times_out_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    sync, concurrent = futures = [Future[Generation]() for _ in range(2)]
    left = iter(futures)
    monkeypatch.setattr(Batcher, "submit", lambda self, request: next(left))
    with pytest.raises(openai.APIError):
        ask(timeout=0.01, max_retries=0)
    with pytest.raises(openai.APIError):
        await litellm.acompletion(model=tasks.MODEL, messages=MESSAGES, timeout=0.01, max_retries=0)
    assert sync.cancelled() and concurrent.cancelled()


def test_the_worker_is_a_daemon() -> None:
    ask()
    assert all(t.daemon for t in threading.enumerate() if t.name.startswith("iapo-demo"))
