"""Limits hold by the server's own count, whatever the server says about it: what cannot be counted costs its bound."""

from __future__ import annotations

import time
from typing import Any

import dspy
import pytest

from iapo_dspy import Budget, Cost, Preference, metered
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter
from iapo_dspy.types import Decoding
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback, chat
from tests.support.sampling import draw
from tests.support.worlds import TwoSteps, adder, exact, questions, student

CAP = 12_000
UNREADABLE = b'{"id": "x", "object": "chat.completion", "choices": null}'
SERVERS = {
    "unreadable": Faults(shares={UNREADABLE: 0.5}),
    "html": Faults(shares={b"<html>": 0.5}),
    "no message": Faults(shares={b'{"id": "x", "choices": [{"index": 0}]}': 0.5}),
    "error in the body": Faults(shares={b'{"error": {"message": "overloaded", "code": 503}}': 0.5}),
    "no usage": Faults(no_usage=True, hidden=80),
    "first choice": Faults(count_first=True),
    "first choice, hidden": Faults(count_first=True, hidden=50),
}
optimizer = optimizers(max_n=8, budget=Budget(10_000, tokens=CAP))


def tokens_of(server: Loopback) -> int:
    return server.prompt_tokens + server.completion_tokens


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai/fake", "unreadable"),
        ("hosted_vllm/fake", "no usage"),
        ("openai/fake", "first choice, hidden"),
        *(pytest.param("hosted_vllm/fake", name, marks=pytest.mark.slow) for name in SERVERS if name != "no usage"),
        *(pytest.param("openai/fake", name, marks=pytest.mark.slow) for name in ("html", "no usage", "first choice")),
    ],
)
def test_no_server_bills_more_than_the_cap(model: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)
    with Loopback(adder, faults=SERVERS[name]) as server, dspy.context(lm=server.lm(model, max_tokens=120)):
        program: Any = optimizer().compile(student(), trainset=questions(30))
    spent = program.detailed_results.spent
    print(f"{model}, {name}: {tokens_of(server)} tokens billed, {spent.tokens} counted, {CAP} allowed")
    assert 0.1 * CAP < tokens_of(server) <= spent.tokens <= CAP


@pytest.mark.parametrize("model_type", ["chat", "responses"])
def test_every_attempt_of_an_lm_that_retries_by_itself_is_counted(model_type: str) -> None:
    """DSPy itself asks again, up to `num_retries` times, where it sends the requests."""
    with Loopback(adder, faults=Faults(first=[UNREADABLE] * 2)) as server:
        lm = server.lm(model_type=model_type, max_tokens=120, num_retries=2)
        meter = Meter(Budget(10, tokens=5_000))
        draw(Sampler(lm=lm, meter=meter), student(), {"question": "What is 1 + 2?"}, 1, key=0)
    assert server.requests == meter.spent.requests == 3
    assert meter.spent.tokens >= tokens_of(server) + 2 * 60


def test_counts_that_hide_nothing_are_taken_as_they_are() -> None:
    """One request asks for a single completion, to see how the server counts; all others ask for several."""
    with Loopback(lambda body, i: chat(answer="word " * (i % 7)), faults=Faults(hidden=40)) as server:
        meter = Meter(Budget(100, tokens=100_000))
        sampler = Sampler(lm=server.lm(max_tokens=200), meter=meter)
        for key in range(4):
            assert all(r.ok for r in draw(sampler, student(), {"question": "q"}, 8, key=key))
    assert meter.spent.tokens == tokens_of(server)
    assert [body.get("n", 1) for body in server.bodies] == [1, 7, 8, 8, 8]


def test_hidden_tokens_that_only_the_total_shows_are_counted() -> None:
    from iapo_dspy.sampling.spending.usage_check import reported_tokens

    assert reported_tokens({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}) == (10, 105)
    details = {"completion_tokens_details": {"reasoning_tokens": 50}}
    assert reported_tokens({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, **details}) == (10, 55)
    assert reported_tokens({"prompt_tokens": 10, "completion_tokens": 60, "total_tokens": 70, **details}) == (10, 60)
    assert reported_tokens(None) == (None, None)


@pytest.mark.parametrize("fault", [Faults(shares={UNREADABLE: 0.5}), Faults(no_usage=True, hidden=30)])
def test_judges_keep_the_cap_too(fault: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)
    with Loopback(adder) as server, Loopback(lambda body, i: chat(good="True"), faults=fault) as judging:
        judge = dspy.Predict("question, answer -> good: bool")
        judge.set_lm(metered(judging.lm(max_tokens=100)))

        def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
            good = judge(question=example.question, answer=prediction.answer).good
            return bool(good and exact(example, prediction))

        with dspy.context(lm=server.lm(max_tokens=120)):
            program: Any = optimizer(metric=metric).compile(student(), trainset=questions(20))
        spent = program.detailed_results.spent
        assert spent.judge_requests == judging.requests > 5
        assert tokens_of(judging) <= spent.judge_tokens
        assert tokens_of(server) + tokens_of(judging) <= spent.tokens <= CAP


@pytest.mark.parametrize("program", [student(), TwoSteps()], ids=["predict", "two steps"])
@pytest.mark.parametrize(
    "faults", [Faults(first=[UNREADABLE] * 9), Faults(no_usage=True, hidden=60)], ids=["unreadable", "no usage"]
)
def test_the_tokens_of_a_deployed_completion_are_limited_over_all_attempts(program: Any, faults: Faults) -> None:
    """An answer that may be billed is not asked for again, and what cannot be counted takes all that it was granted."""

    def says(body: dict[str, Any], i: int) -> str:
        return "a few words " * 3 + chat(idea="d", answer="a")

    with Loopback(says, faults=faults) as server:
        sampler = Sampler(lm=server.lm(max_tokens=200))
        coroutine = sampler.sample(program, {"question": "q"}, 3, key=0, decoding=Decoding(), most_tokens=100)
        run_on_loop(coroutine)
    assert server.completions == 3 and server.completion_tokens <= 3 * 100
    assert all((body.get("max_tokens") or 0) <= 100 for body in server.bodies)


def test_a_refusal_costs_a_deployed_completion_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)
    with Loopback(faults=Faults(first=[500, 429])) as server:
        sampler = Sampler(lm=server.lm(max_tokens=200))
        (drawn,) = run_on_loop(sampler.sample(student(), {"question": "q"}, 1, key=0, most_tokens=100))
    assert drawn.ok and server.requests == 3


@pytest.mark.parametrize("program", [student(), TwoSteps()], ids=["predict", "two steps"])
def test_requests_in_flight_are_cancelled_when_the_seconds_are_over(program: dspy.Module) -> None:
    def latency(body: dict[str, Any]) -> float:
        return 0.02 if server.requests <= 12 else 6.0

    with Loopback(lambda body, i: chat(idea="d", answer="a"), latency=latency) as server:
        chooser = optimizer(budget=Budget(500, tokens=10**6, seconds=1.5), candidates=[program], num_threads=8)
        start = time.monotonic()
        with dspy.context(lm=server.lm(max_tokens=120)):
            compiled: Any = chooser.compile(program, trainset=questions(30))
        assert time.monotonic() - start < 4.5
        spent = compiled.detailed_results.spent
        assert 0 < spent.completions < 100 and not compiled.detailed_results.complete
        assert spent.requests == server.requests > 12
        assert spent.tokens >= 120 * (server.requests - 12)  # those that were cancelled count with their bound


def test_dollars_are_capped_alike() -> None:
    cost = Cost(usd_per_million=(1_000, 4_000))
    with Loopback(adder, faults=Faults(count_first=True, hidden=30)) as server:
        chooser = optimizer(Preference("quality", cost=0.0), budget=Budget(10_000, usd=10.0), cost_unit=cost)
        with dspy.context(lm=server.lm(max_tokens=120)):
            program: Any = chooser.compile(student(), trainset=questions(30))
        billed = server.prompt_tokens * 1e-3 + server.completion_tokens * 4e-3
        assert 1.0 < billed <= program.detailed_results.spent.usd <= 10.0
