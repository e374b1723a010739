from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from iapo_dspy.errors import BudgetExceeded, ConfigurationError
from iapo_dspy.sampling.spending.budget import Budget, Meter, Spent
from iapo_dspy.sampling.spending.usage import Usage


def left(meter: Meter) -> int | None:
    """Return the completions that can still be reserved; None without a limit."""
    if meter.budget is None or meter.budget.completions is None:
        return None
    return meter.budget.completions - meter.spent.completions - meter.reserved.completions


@pytest.mark.parametrize(
    "arguments",
    [
        {"completions": 0},
        {"completions": -1},
        {"completions": 1.5},
        {"completions": True},
        {"completions": 5, "tokens": 0},
        {"completions": 5, "tokens": 1.5},
        {"completions": 5, "usd": 0},
        {"completions": 5, "usd": math.nan},
        {"completions": 5, "usd": math.inf},
        {"completions": 5, "usd": "1"},
        {"completions": 5, "seconds": -1.0},
    ],
)
def test_bad_budgets_say_what_is_needed(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="give a"):
        Budget(**arguments)


def test_seconds_alone_are_not_a_budget() -> None:
    for arguments in ({}, {"seconds": 60}):
        with pytest.raises(ConfigurationError, match="Add completions="):
            Budget(**arguments)
    assert Budget(usd=5).completions is None and Budget(tokens=10, seconds=60).bounds_requests


def test_work_is_cancelled_when_the_seconds_are_over() -> None:
    ended: list[str] = []

    async def work(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.append("now")
        return "done"

    async def run() -> None:
        meter = Meter(Budget(5, seconds=0.1))
        assert await meter.in_time(work(0.0)) == "done"
        with pytest.raises(BudgetExceeded, match=r"0\.1 seconds"):
            await meter.in_time(work(30.0))
        with pytest.raises(BudgetExceeded):
            await meter.in_time(work(30.0))  # not even begun
        assert await Meter().in_time(work(0.0)) == "done"

    asyncio.run(run())
    assert len(ended) == 3


def test_what_cannot_be_counted_costs_the_reservation() -> None:
    meter = Meter(Budget(10, tokens=100, usd=1.0))
    meter.reserve(tokens=60, usd=0.6).settle(usage=Usage(prompt_tokens=20, completion_tokens=5, usd=0.1), counted=False)
    assert (meter.spent.prompt_tokens, meter.spent.completion_tokens, meter.spent.usd) == (20, 40, 0.6)
    meter.reserve(tokens=10, usd=0.1).settle(usage=Usage(prompt_tokens=4, completion_tokens=9), counted=False)
    assert (meter.spent.tokens, meter.spent.usd) == (73, 0.7)  # never less than what is known


def test_a_number_is_a_budget_of_completions() -> None:
    assert Budget.of(7) == Budget(7)
    assert Budget.of(Budget(7, usd=1)) == Budget(7, usd=1)
    assert left(Meter(7)) == 7


def test_reserve_settle_release() -> None:
    meter = Meter(Budget(10, tokens=100, usd=1.0))
    first = meter.reserve(completions=6, tokens=60, usd=0.6)
    assert left(meter) == 4
    with pytest.raises(BudgetExceeded, match="5 completions"):
        meter.reserve(completions=5)
    with pytest.raises(BudgetExceeded, match="41 tokens"):
        meter.reserve(tokens=41)
    with pytest.raises(BudgetExceeded, match="dollars"):
        meter.reserve(usd=0.41)
    first.settle(completions=5, requests=1, usage=Usage(prompt_tokens=10, completion_tokens=20, usd=0.25))
    first.settle(completions=5, requests=1)  # settling twice counts once
    first.release()
    spent = meter.spent
    assert (spent.completions, spent.requests, spent.tokens, spent.usd) == (5, 1, 30, 0.25)
    second = meter.reserve(completions=5, tokens=70, usd=0.75)
    second.release()
    assert left(meter) == 5
    assert not meter.exhausted
    assert meter.reserved == Spent()


def test_what_may_have_been_billed_is_forfeited() -> None:
    meter = Meter(Budget(10, tokens=100, usd=1.0))
    meter.reserve(tokens=40, usd=0.3).forfeit(requests=1, prompt_tokens=15)
    spent = meter.spent
    assert (spent.prompt_tokens, spent.completion_tokens, spent.usd, spent.requests) == (15, 25, 0.3, 1)


def test_dollars_do_not_drift() -> None:
    meter = Meter(Budget(10**9, usd=1.0))
    for _ in range(10):
        meter.reserve(usd=0.1).settle(usage=Usage(usd=0.1))
    assert meter.spent.usd == 1.0
    assert meter.exhausted
    with pytest.raises(BudgetExceeded):
        meter.reserve(usd=1e-12)


def test_time_is_up() -> None:
    now = [0.0]
    meter = Meter(Budget(10, seconds=5), clock=lambda: now[0])
    meter.reserve(completions=1).settle(completions=1)
    now[0] = 5.0
    assert meter.exhausted
    with pytest.raises(BudgetExceeded, match="seconds"):
        meter.reserve(completions=1)


def test_a_resumed_meter_goes_on_where_it_was() -> None:
    now = [100.0]
    meter = Meter(Budget(10, usd=1, seconds=50), spent=Spent(completions=4, usd=0.5, seconds=40), clock=lambda: now[0])
    assert left(meter) == 6
    assert meter.spent.seconds == 40
    meter.charge(Spent(completions=6, completion_tokens=3))
    assert left(meter) == 0
    assert meter.exhausted


def test_stored_completions_are_kept_free_until_they_are_used_again() -> None:
    meter = Meter(Budget(10), stored=6)
    meter.reserve(completions=4).release()
    with pytest.raises(BudgetExceeded, match="5 completions do not fit: 6 of 10"):
        meter.reserve(completions=5)
    meter.replay(5, own=2)  # the other three were paid by another run
    assert meter.spent.completions == 5 and meter.stored == 4
    meter.reserve(completions=1)
    with pytest.raises(BudgetExceeded, match="10 of 10"):
        meter.reserve(completions=1)


def test_without_a_budget_everything_fits() -> None:
    meter = Meter()
    meter.reserve(completions=10**9, tokens=10**12, usd=1e6).settle(completions=3)
    assert left(meter) is None
    assert meter.spent.completions == 3
    assert not meter.exhausted


async def test_upper_bounds_wait_for_what_is_in_flight() -> None:
    meter = Meter(Budget(10, tokens=100))
    first = await meter.areserve(tokens=80)
    waiting = asyncio.create_task(meter.areserve(tokens=60))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    first.settle(usage=Usage(prompt_tokens=10, completion_tokens=20))
    second = await asyncio.wait_for(waiting, 1)
    with pytest.raises(BudgetExceeded):  # 71 would not fit even if all of the second came back
        await meter.areserve(tokens=71)
    second.release()
    with pytest.raises(BudgetExceeded):
        await asyncio.wait_for(meter.areserve(tokens=71), 1)
    (await meter.areserve(tokens=70)).release()


async def test_waiting_ends_when_nothing_comes_back() -> None:
    meter = Meter(Budget(10, tokens=100))
    first = await meter.areserve(tokens=80)
    waiting = asyncio.create_task(meter.areserve(tokens=60))
    await asyncio.sleep(0.01)
    first.settle(usage=Usage(prompt_tokens=40, completion_tokens=40))
    with pytest.raises(BudgetExceeded):
        await asyncio.wait_for(waiting, 1)


def test_the_journal_never_lies_below_what_may_be_billed() -> None:
    written: list[tuple[float, int]] = []
    meter = Meter(Budget(10, usd=5.0, tokens=100))
    meter.keep_journal(
        lambda spent, reserved: written.append((spent.usd + reserved.usd, spent.tokens + reserved.tokens))
    )
    first = meter.reserve(tokens=10, usd=1.0)
    assert written == [(1.0, 10)]  # before the request is sent
    meter.reserve(tokens=20, usd=2.0)
    assert written[-1] == (3.0, 30)
    first.settle(usage=Usage(prompt_tokens=2, completion_tokens=1, usd=0.25))
    meter.reserve(completions=3)  # completions alone are nothing that is billed
    assert len(written) == 2
    meter.write_journal()
    assert written[-1] == (2.25, 23)
    with pytest.raises(BudgetExceeded):
        meter.reserve(tokens=1, usd=4.0)
    assert len(written) == 3
