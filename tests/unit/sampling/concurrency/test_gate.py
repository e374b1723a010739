"""A gate that adapts its width to refusals."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from iapo_dspy.sampling.concurrency.gate import Gate, Slot


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def enter(gate: Gate, clock: Clock, count: int) -> list[Slot]:
    slots = [gate() for _ in range(count)]
    for slot in slots:
        clock.now += 0.001
        await slot.__aenter__()
    return slots


async def leave(slots: list[Slot]) -> None:
    for slot in slots:
        await slot.__aexit__(None, None, None)


async def test_a_crowd_of_429_halves_once_and_the_next_round_trip_again() -> None:
    clock = Clock()
    gate = Gate(16, clock=clock)
    first = await enter(gate, clock, 16)
    clock.now += 1
    for slot in first:
        slot.throttled()
    assert gate.width == 8
    for slot in first:  # sent before the halving: no good news about the new width either
        slot.succeeded()
    assert gate.width == 8
    await leave(first)
    second = await enter(gate, clock, 8)
    clock.now += 1
    for slot in second:
        slot.throttled()
    assert gate.width == 4
    await leave(second)


async def test_width_grows_by_about_one_per_round_trip_up_to_the_limit() -> None:
    clock = Clock()
    gate = Gate(8, clock=clock)
    (slot,) = await enter(gate, clock, 1)
    slot.throttled()
    await leave([slot])
    widths = [gate.width]
    for _ in range(10):
        slots = await enter(gate, clock, gate.width)
        for slot in slots:
            slot.succeeded()
        await leave(slots)
        widths.append(gate.width)
    assert widths[0] == 4
    assert all(0 <= later - earlier <= 1 for earlier, later in itertools.pairwise(widths))
    assert widths[5] >= 7 and widths[-1] == 8


async def test_width_never_falls_below_one() -> None:
    clock = Clock()
    gate = Gate(4, clock=clock)
    for _ in range(10):
        (slot,) = await enter(gate, clock, 1)
        slot.throttled()
        await leave([slot])
    assert gate.width == 1


async def test_cancelled_waits_give_their_place_back() -> None:
    gate = Gate(1)
    held = gate()
    await held.__aenter__()
    queued = [asyncio.ensure_future(gate().__aenter__()) for _ in range(3)]
    await asyncio.sleep(0)
    queued[0].cancel()
    await held.__aexit__(None, None, None)  # lets the second one in
    queued[1].cancel()  # at the moment it was let in
    with pytest.raises(asyncio.CancelledError):
        await queued[1]
    slot = await asyncio.wait_for(queued[2], 1)
    await slot.__aexit__(None, None, None)
    gate.pause(30)
    paused = asyncio.ensure_future(gate().__aenter__())
    await asyncio.sleep(0)
    paused.cancel()
    with pytest.raises(asyncio.CancelledError):
        await paused
    assert gate.in_flight == 0


async def test_a_throttled_or_paused_gate_takes_nothing_from_the_others() -> None:
    clock = Clock()
    both = Gate(4, clock=clock)
    slow, fast = Gate(4, within=both, clock=clock), Gate(4, within=both, clock=clock)
    slots = await enter(slow, clock, 4)
    blocked = asyncio.ensure_future(fast().__aenter__())
    await asyncio.sleep(0)
    assert not blocked.done() and both.in_flight == 4  # all together are bounded
    clock.now += 1
    for slot in slots:
        slot.throttled()
    slow.pause(1000)
    await leave(slots)
    held = [await asyncio.wait_for(blocked, 1), *await enter(fast, clock, 3)]
    assert (slow.width, fast.width, both.width) == (2, 4, 4)
    paused = asyncio.ensure_future(slow().__aenter__())
    await asyncio.sleep(0)
    await leave(held[:1])
    held[0] = await asyncio.wait_for(fast().__aenter__(), 1)  # the paused one did not take the place
    assert both.in_flight == 4
    paused.cancel()
    with pytest.raises(asyncio.CancelledError):
        await paused
    await leave(held)
    assert (slow.in_flight, fast.in_flight, both.in_flight) == (0, 0, 0)


async def test_a_pause_that_begins_while_a_request_waits_for_the_others_is_kept() -> None:
    both = Gate(1)
    mine, other = Gate(1, within=both), Gate(1, within=both)
    (held,) = [await other().__aenter__()]
    waiting = asyncio.ensure_future(mine().__aenter__())
    await asyncio.sleep(0)
    mine.pause(0.05)
    await leave([held])
    await asyncio.sleep(0)
    again = await asyncio.wait_for(other().__aenter__(), 1)  # the pausing one has given its place up
    assert not waiting.done()
    await leave([again])
    slot = await asyncio.wait_for(waiting, 5)
    await leave([slot])
    for i in range(3):  # cancelled at any moment of it, nothing stays taken
        (held,) = [await other().__aenter__()]
        waiting = asyncio.ensure_future(mine().__aenter__())
        await asyncio.sleep(0)
        mine.pause(0.01)
        await leave([held])
        for _ in range(i):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (mine.in_flight, other.in_flight, both.in_flight) == (0, 0, 0)


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
