"""Threads that are used again, and a gate for them that admits whole groups."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref

import pytest

from iapo_dspy.sampling.concurrency.threads import ThreadGate, Workers, in_thread


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


def settle(workers: Workers) -> None:
    deadline = time.monotonic() + 5
    while workers.busy and time.monotonic() < deadline:
        time.sleep(0.001)
    assert workers.busy == 0


def test_workers_are_used_again_and_all_run_at_once() -> None:
    workers = Workers()
    together = threading.Barrier(8)
    used: set[int] = set()

    def meet() -> None:
        together.wait(5)  # breaks unless all eight run at the same time
        used.add(threading.get_ident())

    for _ in range(20):
        for _ in range(8):
            workers.submit(meet)
        settle(workers)
    assert not together.broken
    assert len(used) == 8


def test_idle_workers_end_and_hold_nothing() -> None:
    class Thing:
        pass

    workers = Workers(idle=0.05)
    thing = Thing()
    seen = weakref.ref(thing)
    threads: list[threading.Thread] = []
    workers.submit(lambda held=thing: threads.append(threading.current_thread()))  # type: ignore[misc]
    settle(workers)
    del thing
    gc.collect()
    assert seen() is None
    threads[0].join(5)
    assert not threads[0].is_alive()
    workers.submit(lambda: threads.append(threading.current_thread()))
    settle(workers)
    assert len(threads) == 2


def test_no_work_is_lost_while_workers_time_out() -> None:
    workers = Workers(idle=0.001)
    done: list[int] = []
    for i in range(300):
        workers.submit(lambda i=i: done.append(i))  # type: ignore[misc]
        time.sleep(0.001 * (i % 3) / 2)
    settle(workers)
    assert sorted(done) == list(range(300))
