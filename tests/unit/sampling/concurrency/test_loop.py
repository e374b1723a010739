"""The shared event loop: it survives what tasks raise, a dead one is replaced, and callers hear of its death."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
from typing import Any

import pytest

from iapo_dspy.sampling.concurrency import loop as loops
from iapo_dspy.sampling.concurrency.loop import await_on_loop, background_loop, run_on_loop


async def three() -> int:
    await asyncio.sleep(0.01)
    return 3


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_the_loop_goes_on_after_a_task_that_exits(error: BaseException) -> None:
    async def leave() -> None:
        await asyncio.sleep(0)
        raise error

    loop, other = background_loop(), asyncio.run_coroutine_threadsafe(three(), background_loop())
    with pytest.raises(type(error)):
        run_on_loop(asyncio.wait_for(leave(), 5))
    assert other.result(5) == 3  # the work of others goes on
    loop.call_soon_threadsafe(loop.stop)
    assert run_on_loop(three()) == 3
    assert background_loop() is loop


def test_a_dead_loop_is_replaced_and_its_callers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_POLL", 0.05)
    for name in ("_loop", "_thread"):
        monkeypatch.setattr(loops, name, getattr(loops, name))  # put back afterwards
    dead = threading.Thread(target=lambda: None)
    dead.start()
    dead.join()
    loop, errors = background_loop(), queue.SimpleQueue[Exception]()

    def wait() -> None:
        try:
            run_on_loop(asyncio.sleep(60))
        except Exception as error:  # noqa: BLE001
            errors.put(error)

    async def await_() -> None:
        await await_on_loop(asyncio.sleep(60))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.05)
    monkeypatch.setattr(loops, "_thread", dead)
    assert "died" in str(errors.get(timeout=5))
    waiting.join()
    assert run_on_loop(three()) == 3
    assert background_loop() is not loop
    monkeypatch.setattr(loops, "_thread", dead)

    async def die() -> None:
        waiting = asyncio.ensure_future(await_())  # starts another loop, which dies as well
        await asyncio.sleep(0.02)
        monkeypatch.setattr(loops, "_thread", dead)
        await waiting

    with pytest.raises(RuntimeError, match="died"):
        asyncio.run(die())


def test_the_waiting_thread_calls_what_the_work_asks_for_in_order() -> None:
    calls: loops.Calls = queue.SimpleQueue()
    seen: list[tuple[int, threading.Thread]] = []

    async def work() -> str:
        for i in range(3):
            calls.put(lambda i=i: seen.append((i, threading.current_thread())))  # type: ignore[misc]
            await asyncio.sleep(0)
        return "done"

    assert run_on_loop(work(), calls=calls) == "done"
    assert seen == [(i, threading.current_thread()) for i in range(3)]

    cancelled = threading.Event()

    async def endless() -> None:
        calls.put(lambda: 1 / 0)
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    with pytest.raises(ZeroDivisionError):
        run_on_loop(endless(), calls=calls)
    assert cancelled.wait(5)


def test_a_call_that_is_cancelled_in_its_first_part_leaves_no_coroutine_behind(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """LiteLLM makes its coroutine in a thread; nobody awaits it where the call is cancelled meanwhile."""
    made = threading.Event()

    async def rest() -> str:
        return "answer"

    def first() -> Any:
        time.sleep(0.05)
        made.set()
        return rest()

    async def call() -> str:
        found = await asyncio.get_running_loop().run_in_executor(None, first)
        assert asyncio.iscoroutine(found)
        return str(await found)

    async def cancelled() -> None:
        task = asyncio.ensure_future(call())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    assert run_on_loop(call()) == "answer"
    made.clear()
    run_on_loop(cancelled())
    assert made.wait(5.0)
    time.sleep(0.05)
    gc.collect()
    assert not [w for w in recwarn if "never awaited" in str(w.message)]
