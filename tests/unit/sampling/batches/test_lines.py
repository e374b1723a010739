"""Lines of batch jobs: bodies as LiteLLM sends them, bounds, and results."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.sampling.batches.lines import (
    BatchLine,
    LineError,
    chat_body,
    make_line,
    read_choices,
    read_results,
    write_line,
)
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.rollouts.single_predictor import PredictorCall, predictor_call
from iapo_dspy.sampling.spending.pricing import Price, batch_price
from iapo_dspy.types import Decoding
from tests.support.loopback import Loopback, chat


def ready(
    predictor: dspy.Predict, lm: dspy.BaseLM, adapter: Any = None, decoding: Decoding | None = None
) -> PredictorCall:
    made = predictor_call(
        predictor, {"question": "1 + 1"}, lm=lm, adapter=adapter or dspy.ChatAdapter(), decoding=decoding
    )
    assert made is not None
    return made


class Mood(dspy.Signature):
    """Say how it is."""

    question: str = dspy.InputField()
    mood: Literal["good", "bad"] = dspy.OutputField()


SETTINGS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "plain": ({"temperature": 0.7, "max_tokens": 50}, "question -> answer", None),
    "more": (
        {
            "top_p": 0.9,
            "stop": ["x"],
            "presence_penalty": 0.5,
            "top_k": 5,
            "extra_body": {"min_p": 0.1},
            "logprobs": True,
        },
        "question -> answer",
        None,
    ),
    "schema": ({"max_tokens": 50}, Mood, dspy.JSONAdapter()),
    "headers": ({"extra_headers": {"X-Secret": "hidden-value"}, "timeout": 9}, "question -> answer", None),
}


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "hosted_vllm/m", "litellm_proxy/m", "openai/o3-mini"])
@pytest.mark.parametrize("settings", SETTINGS)
async def test_a_line_is_what_an_ordinary_request_would_send(model: str, settings: str) -> None:
    more, signature, adapter = SETTINGS[settings]
    if "o3" in model:
        more = {k: v for k, v in more.items() if k in ("extra_body", "extra_headers", "timeout")}
        more["max_tokens"] = 20_000  # DSPy refuses less
    predictor = dspy.Predict(signature)
    with Loopback(lambda body, i: chat(answer="2", mood="good")) as server:
        lm = server.lm(model, seed=5, **more)
        with dspy.context(lm=lm, adapter=adapter or dspy.ChatAdapter()):
            await Sampler(lm=lm).sample(predictor, {"question": "1 + 1"}, 3, key=["p", "q", 0])
        (sent,) = server.bodies
        request = ready(predictor, lm, adapter)
        line = make_line(("p", "q", 0), range(3), ready=request, price=None, bounded=False)
        body = chat_body(lm, request.messages, request.params, n=3, seed=line.seed)
    sent.pop("stream", None)
    assert json.loads(json.dumps(body)) == sent
    assert line.seed == sent["seed"] and sent["n"] == 3
    text = write_line(line, body, url="/v1/chat/completions").decode()
    assert "sk-loopback" not in text and "hidden-value" not in text and "127.0.0.1" not in text


def test_bounds_are_for_the_whole_line() -> None:
    lm = dspy.LM("openai/fake", max_tokens=30, input_cost_per_token=1.0, output_cost_per_token=10.0)
    request = ready(dspy.Predict("question -> answer"), lm)
    price = batch_price(lm)
    one = make_line(("p", "q", 0), [0], ready=request, price=price, bounded=True)
    four = make_line(("p", "q", 0), range(4), ready=request, price=price, bounded=True)
    assert four.tokens - one.tokens == 90 and four.usd - one.usd == 900.0
    assert one.tokens - 30 > sum(len(m["content"]) for m in request.messages)
    assert make_line(("p", "q", 0), [0], ready=request, price=price, bounded=False).tokens == 0


def line_of(**more: Any) -> str:
    return json.dumps({"id": "x", "custom_id": "0-0-0", "response": None, "error": None, **more})


def test_output_lines() -> None:
    body: dict[str, Any] = {"choices": []}

    def result(**more: Any) -> Any:
        found, whole = read_results(line_of(**more).encode())
        assert whole
        return found["0-0-0"]

    assert result(response={"status_code": 200, "body": body}) == body
    refused = result(response={"status_code": 400, "body": {"error": {"message": "no", "code": "bad"}}})
    assert (refused.status_code, refused.code, str(refused)) == (400, "bad", "400: no")
    expired = result(error={"code": "batch_expired", "message": "too late"})
    assert (expired.status_code, expired.code) == (500, "batch_expired")
    assert result(response={"status_code": 429, "body": None}).status_code == 429
    assert "does not say why" in str(result())
    assert isinstance(result(response={"status_code": 200, "body": {"error": "odd"}}), LineError)


@given(st.integers(0, 400))
def test_a_file_that_is_cut_off_anywhere_loses_its_last_line_at_most(length: int) -> None:
    good = line_of(response={"status_code": 200, "body": {"choices": []}})
    whole = "\n".join(good.replace("0-0-0", f"0-{i}-0") for i in range(3)) + "\n"
    cut = whole[: min(length, len(whole))]
    found, all_read = read_results(cut.encode())
    assert len(found) in (cut.count("\n"), cut.count("\n") + 1)  # the last one may be whole without its end
    assert all_read == (len(found) == len([part for part in cut.split("\n") if part]))


def test_an_answer_is_read_like_any_other() -> None:
    lm = dspy.LM("openai/fake")
    request = ready(dspy.Predict("question -> answer"), lm)
    line = make_line(("p", "q", 0), [2, 3], ready=request, price=None, bounded=False)
    choices = [{"index": i, "message": {"role": "assistant", "content": chat(answer=str(i))}, "finish_reason": "stop"}
               for i in range(3)]  # fmt: skip
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "fake", "choices": choices,
            "usage": {"prompt_tokens": 10, "completion_tokens": 30, "total_tokens": 40}}  # fmt: skip
    price = Price(prompt=1.0, completion=2.0, prompt_bound=1.0, completion_bound=2.0)
    found, usage = read_choices(request, line, body, price)
    predictions = [request.read(choice, ())[0] for choice in found]
    assert [p.answer for p in predictions if p is not None] == ["0", "1"]  # more than were asked for are left out
    assert (usage.prompt_tokens, usage.completion_tokens, usage.usd) == (10, 30, 70.0)  # but they are billed
    assert [(c.usage.prompt_tokens, c.usage.completion_tokens, c.usage.usd) for c in found] == [(5.0, 15.0, 35.0)] * 2
    assert read_choices(request, line, {**body, "choices": []}, price)[0] == []
    with pytest.raises(Exception):  # noqa: B017 - whatever LiteLLM makes of it
        read_choices(request, line, {"choices": "none"}, price)


@given(
    st.tuples(st.text(), st.text()),
    st.lists(st.integers(0, 99), min_size=1, unique=True),
    st.none() | st.integers(0, 2**31 - 1),
)
def test_lines_survive_the_ledger(cell: tuple[str, str], draws: list[int], seed: int | None) -> None:
    line = BatchLine(id="i", prompt=cell[0], query=cell[1], first=0, draws=tuple(draws), seed=seed, tokens=3, usd=0.5)
    assert BatchLine.decode(json.loads(json.dumps(asdict(line)))) == line
