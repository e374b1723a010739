"""Budgets over HTTP under concurrency, and clean stops."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy.errors import BudgetExceeded
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Budget, Meter
from tests.support.loopback import Faults, Loopback, chat
from tests.support.sampling import draw

ROOT = Path(__file__).parents[4]
PROMPT_PRICE, COMPLETION_PRICE = 1e-6, 4e-6


async def run_until_exhausted(sampler: Sampler, meter: Meter, workers: int = 64) -> list[Any]:
    program = dspy.Predict("question -> answer")
    drawn: list[Any] = []

    async def worker(number: int) -> None:
        position = 0
        while True:
            m = 1 + (number + position) % 5
            try:
                reservation = meter.reserve(completions=m)
            except BudgetExceeded:
                return
            rollouts = await sampler.sample(program, {"question": f"q{number}"}, m, key=(number, position))
            paid = [r for r in rollouts if not r.undrawn]
            reservation.settle(completions=len(paid))
            drawn.extend(paid)
            if len(paid) < m:
                return
            position += 1

    await asyncio.gather(*(worker(i) for i in range(workers)))
    return drawn


def server_dollars(server: Loopback) -> float:
    return server.prompt_tokens * PROMPT_PRICE + server.completion_tokens * COMPLETION_PRICE


@pytest.mark.parametrize(
    "budget",
    [Budget(300), Budget(10_000, tokens=9_000), Budget(10_000, usd=0.02), Budget(250, tokens=12_000, usd=0.03)],
    ids=["completions", "tokens", "usd", "all"],
)
@pytest.mark.parametrize(
    "faults",
    [Faults(), Faults(shares={429: 0.1, 500: 0.05, "fewer": 0.1, "truncated": 0.05}, retry_after="0.01")],
    ids=["clean", "faults"],
)
def test_64_workers_never_exceed_any_limit(budget: Budget, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)
    with Loopback(lambda body, i: chat(answer="word " * (i % 7)), latency=0.005, faults=faults) as server:
        lm = server.lm(max_tokens=30, input_cost_per_token=PROMPT_PRICE, output_cost_per_token=COMPLETION_PRICE)
        meter = Meter(budget)
        sampler = Sampler(lm=lm, meter=meter)
        drawn = run_on_loop(run_until_exhausted(sampler, meter))
    spent = meter.spent
    assert len(drawn) == spent.completions <= (budget.completions or 0)
    assert server.prompt_tokens + server.completion_tokens <= spent.tokens
    if budget.tokens is not None:
        assert spent.tokens <= budget.tokens
        assert spent.tokens > 0.7 * budget.tokens or spent.completions == budget.completions
    if budget.usd is not None:
        assert server_dollars(server) <= spent.usd + 1e-9
        assert spent.usd <= budget.usd
    if budget.tokens is None and budget.usd is None:
        assert spent.completions == budget.completions
        assert server.requests == spent.requests
    assert meter.reserved.tokens == 0


def test_wall_clock_budget_stops_new_requests() -> None:
    with Loopback(latency=0.05) as server:
        meter = Meter(Budget(10**6, seconds=0.5))
        sampler = Sampler(lm=server.lm(), meter=meter, max_concurrency=4)
        start = time.monotonic()
        run_on_loop(run_until_exhausted(sampler, meter, workers=8))
        assert time.monotonic() - start < 3


def test_budget_that_ends_inside_a_program_marks_the_rollouts_it_cut_off() -> None:
    class TwoSteps(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict("question -> draft")
            self.second = dspy.Predict("question, draft -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            return self.second(question=question, draft=self.first(question=question).draft)

    with Loopback(lambda body, i: chat(draft=f"d{i}", answer="a")) as server:
        meter = Meter(Budget(100, tokens=1_500))
        sampler = Sampler(lm=server.lm(max_tokens=100), meter=meter)
        rollouts = draw(sampler, TwoSteps(), {"question": "q"}, 6, key=0)
        assert any(r.undrawn for r in rollouts)
        assert all(r.undrawn == (not r.ok) for r in rollouts)
        assert meter.spent.tokens <= 1_500


CHILD = """
import sys, dspy
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.rollouts.sampler import Sampler

class Module(dspy.Module):
    def __init__(self):
        super().__init__()
        self.solve = dspy.Predict("question -> answer")

    def forward(self, question):
        while True:
            try:
                return self.solve(question=question)
            except Exception:
                pass

program = Module() if sys.argv[2] == "general" else dspy.Predict("question -> answer")
lm = dspy.LM("openai/fake", api_base=sys.argv[1], api_key="k", cache=False)
sampler = Sampler(lm=lm)
print("ready", flush=True)
try:
    run_on_loop(sampler.sample(program, {"question": "q"}, 4, key=0))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if sys.argv[3] == "raise":
        raise
    again = sampler.sample(dspy.Predict("question -> answer"), {"question": "q"}, 2, key=1)
    print(run_on_loop(again)[0].ok, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("path", "after"), [pytest.param("general", "raise", marks=pytest.mark.slow), ("fast", "go on")]
)
def test_ctrl_c_leaves_nothing_behind(path: str, after: str) -> None:
    with Loopback(latency=0.0, faults=Faults(first=["hang"], hang=60)) as server:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, server.base, path, after],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 40
            while not server.requests and time.monotonic() < deadline:
                time.sleep(0.02)
            start = time.monotonic()
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert time.monotonic() - start < 40  # of the 60 seconds that the server hangs
    assert "interrupted" in out
    assert child.returncode == (-signal.SIGINT if after == "raise" else 0), err
    assert "was destroyed" not in err and "never retrieved" not in err and "Unclosed" not in err
    if after == "go on":
        assert "True" in out
        assert err == ""


def test_an_lm_that_reports_no_usage_does_not_escape_a_token_budget() -> None:
    from dspy.utils import DummyLM

    meter = Meter(Budget(100, tokens=6_000))
    lm = DummyLM([{"answer": "word " * 30}] * 500)
    sampler = Sampler(lm=lm, meter=meter)
    rollouts = draw(sampler, dspy.Predict("question -> answer"), {"question": "q"}, 60, key=0)
    assert any(r.ok for r in rollouts) and any(r.undrawn for r in rollouts)
    assert 3_000 < meter.spent.tokens <= 6_000


async def many(sampler: Sampler, count: int) -> list[Any]:
    program = dspy.Predict("question -> answer")
    pulls = (sampler.sample(program, {"question": f"q{i}"}, 1, key=i) for i in range(count))
    return [r for rollouts in await asyncio.gather(*pulls) for r in rollouts]


@pytest.mark.slow
def test_concurrency_falls_to_what_a_server_bears_and_grows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "iapo_dspy.sampling.concurrency.retrying.backoff", lambda attempt, asked, rng: rng.uniform(0.02, 0.06)
    )
    faults = Faults(most_in_flight=6)
    with Loopback(latency=0.03, faults=faults) as server:
        sampler = Sampler(lm=server.lm(num_retries=3), max_concurrency=32, seed=7)
        drawn = run_on_loop(many(sampler, 200))
        assert all(r.ok for r in drawn)
        refused = server.statuses[429]
        # Without adapting, some 26 of 32 requests would be refused again and again: over 800 in all. The width itself
        # depends on how fast this machine sends; in virtual time it is exact (tests/unit/sampling/concurrency).
        assert 0 < refused < 150
        assert sampler.meter.spent.requests == server.requests == 200 + refused
        faults.most_in_flight = None
        server.max_in_flight = 0
        assert all(r.ok for r in run_on_loop(many(sampler, 500)))
        assert [gate.width for gate in sampler._gates.values()] == [32]
        assert 8 < server.max_in_flight <= 32


@pytest.mark.parametrize("model", ["mistral/fake", "anthropic/claude-3-haiku-20240307", "cohere_chat/fake"])
def test_retry_after_is_honoured_where_litellm_drops_it(model: str) -> None:
    with Loopback(faults=Faults(first=[429], retry_after="0.6")) as server:
        sampler = Sampler(lm=server.lm(model, num_retries=1))
        # The other providers' formats are not spoken here: it is the second request that counts.
        draw(sampler, dspy.Predict("question -> answer"), {"question": "q"}, 1, key=0)
    assert server.times[1] - server.times[0] >= 0.6


@pytest.mark.slow
def test_a_429_of_one_model_does_not_throttle_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)

    async def pulls(sampler: Sampler, lm: dspy.LM, key: str) -> list[Any]:
        program = dspy.Predict("question -> answer")
        program.lm = lm
        drawn = [sampler.sample(program, {"question": f"{key}{i}"}, 1, key=i) for i in range(16)]
        return [r for rollouts in await asyncio.gather(*drawn) for r in rollouts]

    def reply(body: dict[str, Any], i: int) -> str:
        return chat(answer=str(i))

    with (
        Loopback(reply, latency=0.2, faults=Faults(most_in_flight=2)) as strict,
        Loopback(reply, latency=0.3) as free,
    ):
        sampler = Sampler(max_concurrency=8)
        first, second = strict.lm(num_retries=5), free.lm()
        assert all(r.ok for r in run_on_loop(pulls(sampler, first, "a")))
        assert strict.statuses[429] > 0
        before = strict.max_in_flight
        assert all(r.ok for r in run_on_loop(pulls(sampler, second, "b")))
        assert before <= 8
        assert free.max_in_flight == 8  # at once, not after growing back

        async def both() -> None:
            twin = first.copy(temperature=0.3)  # the same deployment
            await asyncio.gather(pulls(sampler, twin, "c"), pulls(sampler, second, "d"))

        run_on_loop(both())
        assert max(strict.max_in_flight, free.max_in_flight) <= 8
