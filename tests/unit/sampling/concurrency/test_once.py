"""Each key is worked out once, however many ask for it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from iapo_dspy.sampling.concurrency.once import AsyncOnce, Once


def test_threads_that_ask_for_one_key_share_one_result() -> None:
    once: Once[str, int] = Once()
    calls: list[int] = []
    start = threading.Barrier(8)

    def compute() -> int:
        calls.append(1)
        return len(calls)

    def ask() -> int:
        start.wait()
        return once("a", compute)

    with ThreadPoolExecutor(8) as pool:
        assert [f.result() for f in [pool.submit(ask) for _ in range(8)]] == [1] * 8
    assert once("b", compute) == 2


def test_several_keys_are_computed_in_one_go_and_the_oldest_are_forgotten() -> None:
    once: Once[int, int] = Once(2)
    batches: list[list[int]] = []

    def squares(keys: list[int]) -> list[int]:
        batches.append(keys)
        return [k * k for k in keys]

    assert [f.result() for f in once.all([1, 2, 1], squares)] == [1, 4, 1]
    assert [f.result() for f in once.all([1, 3, 4], squares)] == [1, 9, 16]
    assert [f.result() for f in once.all([3, 1], squares)] == [9, 1]
    assert batches == [[1, 2], [3, 4], [1]]


@pytest.mark.parametrize("keep", [False, True])
def test_failures_are_kept_only_where_they_are_results(keep: bool) -> None:
    once: Once[str, int] = Once(keep_errors=keep)
    tries: list[int] = []

    def fail() -> int:
        tries.append(1)
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            once("a", fail)
    assert len(tries) == (1 if keep else 2)


async def test_tasks_share_one_result_and_outlive_one_that_is_cancelled() -> None:
    once: AsyncOnce[str, int] = AsyncOnce()
    go = asyncio.Event()
    calls: list[int] = []

    async def compute() -> int:
        calls.append(1)
        await go.wait()
        return len(calls)

    first, second = (asyncio.ensure_future(once("a", compute)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    go.set()
    assert await second == 1
    assert first.cancelled()
    assert await once("a", compute) == 2  # nothing is kept


async def test_results_are_kept_and_failures_are_not() -> None:
    once: AsyncOnce[int, int] = AsyncOnce(2)
    calls: list[int] = []

    async def compute(key: int) -> int:
        calls.append(key)
        if key < 0:
            raise ValueError(key)
        return key

    for key in (1, 2, 1, 3, 1, 2):
        assert await once(key, lambda key=key: compute(key)) == key  # type: ignore[misc]
    for _ in range(2):
        with pytest.raises(ValueError):
            await once(-1, lambda: compute(-1))
    await asyncio.sleep(0)
    assert calls == [1, 2, 3, 2, -1, -1]


async def test_cancel_gives_up_what_is_worked_on() -> None:
    once: AsyncOnce[str, None] = AsyncOnce()
    waiting = asyncio.ensure_future(once("a", lambda: asyncio.sleep(60)))
    await asyncio.sleep(0)
    once.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
