"""No limit is ever exceeded, whatever happens in whatever order."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.errors import BudgetExceeded
from iapo_dspy.sampling.spending.budget import Budget, Meter
from iapo_dspy.sampling.spending.usage import Usage

step = st.tuples(
    st.integers(0, 9),
    st.integers(0, 40),
    st.floats(0, 0.2),
    st.sampled_from(["settle", "partly", "release", "forfeit", "keep"]),
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 50), st.integers(1, 200), st.floats(0.001, 1.0), st.lists(step, max_size=40))
def test_spent_and_reserved_stay_within_every_limit(
    completions: int, tokens: int, usd: float, steps: list[tuple[int, int, float, str]]
) -> None:
    meter = Meter(Budget(completions, tokens=tokens, usd=usd))
    for c, t, d, end in steps:
        try:
            reservation = meter.reserve(completions=c, tokens=t, usd=d)
        except BudgetExceeded:
            continue
        if end == "settle":
            reservation.settle(completions=c, usage=Usage(prompt_tokens=t, usd=d))
        elif end == "partly":
            reservation.settle(completions=c // 2, usage=Usage(completion_tokens=t // 2, usd=d / 2))
        elif end == "release":
            reservation.release()
        elif end == "forfeit":
            reservation.forfeit()
        spent, reserved = meter.spent, meter.reserved
        assert spent.completions + reserved.completions <= completions
        assert spent.tokens + reserved.tokens <= tokens
        assert spent.usd + reserved.usd <= usd + 1e-11


@pytest.mark.parametrize("repetition", [*range(20), *(pytest.param(r, marks=pytest.mark.slow) for r in range(20, 100))])
def test_64_threads_never_exceed_a_limit(repetition: int) -> None:
    rng = random.Random(repetition)
    budget = Budget(rng.randint(50, 1000), tokens=rng.randint(1000, 50_000), usd=rng.uniform(0.01, 1.0))
    meter = Meter(budget)
    drawn = [0, 0, 0.0]
    lock = threading.Lock()
    start = threading.Barrier(64)

    def worker(seed: int) -> None:
        own = random.Random(seed)
        start.wait()
        for _ in range(40):
            c, t, d = own.randint(1, 8), own.randint(1, 400), own.uniform(0, 0.01)
            try:
                reservation = meter.reserve(completions=c, tokens=t, usd=d)
            except BudgetExceeded:
                continue
            share = own.random()
            with lock:
                drawn[0] += c
                drawn[1] += int(t * share)
                drawn[2] += d * share
            reservation.settle(completions=c, usage=Usage(completion_tokens=int(t * share), usd=d * share))

    threads = [threading.Thread(target=worker, args=(repetition * 64 + i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = meter.spent
    assert spent.completions == drawn[0] <= (budget.completions or 0)
    assert spent.tokens == drawn[1] <= (budget.tokens or 0)
    assert drawn[2] <= spent.usd + 1e-9 and spent.usd <= (budget.usd or 0)
