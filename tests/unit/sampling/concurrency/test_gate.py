"""A gate that adapts its width to refusals."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable

import pytest

from iapo_dspy.errors import ProviderDown
from iapo_dspy.sampling.concurrency.gate import Gate, Slot
from iapo_dspy.sampling.concurrency.retrying import insist
from tests.support.virtual_time import run_in_virtual_time


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


async def answer_all(gate: Gate, clock: Clock, refused: int = 0) -> None:
    """One round trip: as many requests as may be in flight, of which the last ones are refused."""
    slots = await enter(gate, clock, gate.width)
    clock.now += 1
    for i, slot in enumerate(slots):
        slot.succeeded() if i < len(slots) - refused else slot.throttled()
    await leave(slots)


async def test_each_round_trip_that_is_borne_widens_the_gate_by_twice_as_much_up_to_the_limit() -> None:
    clock = Clock()
    gate = Gate(32, clock=clock)
    await answer_all(gate, clock, refused=32)
    await answer_all(gate, clock, refused=16)
    widths = [gate.width]
    for _ in range(6):
        await answer_all(gate, clock)
        widths.append(gate.width)
    assert widths == [8, 9, 11, 15, 23, 32, 32]


async def test_a_width_that_is_not_borne_is_tried_again_after_1_3_7_and_15_round_trips() -> None:
    clock = Clock()
    gate = Gate(32, clock=clock)
    await answer_all(gate, clock, refused=32)
    await answer_all(gate, clock, refused=16)
    widths = []
    for _ in range(46):  # the provider bears 8; of 9 requests two are refused, which is more than a fifth
        widths.append(gate.width)
        await answer_all(gate, clock, refused=2 if gate.width > 8 else 0)
    tries = [i for i, width in enumerate(widths) if width > 8]
    assert [later - earlier - 2 for earlier, later in itertools.pairwise(tries)] == [1, 3, 7, 15]
    assert set(widths) == {8, 9}
    await answer_all(gate, clock, refused=8)  # now it bears less
    assert gate.width == 4


async def test_a_gate_that_is_hardly_used_is_not_widened() -> None:
    clock = Clock()
    gate = Gate(16, clock=clock)
    await answer_all(gate, clock, refused=16)
    for _ in range(100):
        (slot,) = await enter(gate, clock, 1)
        slot.succeeded()
        await leave([slot])
    assert gate.width == 8


class Refused(Exception):
    status_code = 429


class Provider:
    """Bears so many requests at a time for about a second, and refuses others at once, in virtual time."""

    def __init__(self, gate: Gate, clock: Callable[[], float], bears: int) -> None:
        self.gate, self.clock, self.bears = gate, clock, bears
        self.in_flight = self.most = self.refused = 0
        self.rng = random.Random(3)

    async def send(self) -> None:
        async with self.gate() as slot:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            try:
                if self.in_flight > self.bears:
                    self.refused += 1
                    await asyncio.sleep(0.02)
                    slot.throttled()
                    raise Refused
                await asyncio.sleep(self.rng.uniform(0.5, 1.5))
                slot.succeeded()
            finally:
                self.in_flight -= 1

    async def serve(self, requests: int) -> float:
        """Answer all and return the seconds."""
        started = self.clock()
        each = (insist(self.send, gate=self.gate, retries=3, rng=self.rng) for _ in range(requests))
        await asyncio.gather(*each)
        return self.clock() - started


@pytest.mark.parametrize(("limit", "bears"), [(32, 6), (64, 20)])
def test_a_provider_is_kept_busy_at_the_width_that_it_bears_and_the_gate_grows_back(limit: int, bears: int) -> None:
    async def run(clock: Callable[[], float]) -> None:
        gate = Gate(limit, patience=600.0, clock=clock)
        provider = Provider(gate, clock, bears)
        assert await provider.serve(100 * bears) < 1.1 * 100
        # All that were in flight at first, two halvings, and then a few of each round trip that tries more.
        assert limit - bears < provider.refused < 3 * limit
        assert bears <= gate.width <= bears + 1
        provider.bears, provider.most, provider.refused = limit, 0, 0
        await provider.serve(30 * limit)
        assert gate.width == provider.most == limit and not provider.refused

    run_in_virtual_time(run)


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


async def test_a_few_refusals_among_answers_neither_narrow_the_gate_nor_pause_it() -> None:
    clock = Clock()
    gate = Gate(64, clock=clock)
    for _ in range(10):
        slots = await enter(gate, clock, 64)
        for i, slot in enumerate(slots):  # one in eight
            slot.throttled(5.0) if i % 8 == 0 else slot.succeeded()
        await leave(slots)
    assert gate.width == 64
    start = clock.now
    await asyncio.wait_for(gate().__aenter__(), 1)
    assert clock.now == start


async def test_a_crowd_of_refusals_pauses_as_long_as_was_asked() -> None:
    clock = Clock()
    gate = Gate(8, clock=clock)
    slots = await enter(gate, clock, 8)
    for slot in slots:
        slot.throttled(3.0)
    await leave(slots)
    waiting = asyncio.ensure_future(gate().__aenter__())
    await asyncio.sleep(0.01)
    assert gate.width == 4 and not waiting.done()
    waiting.cancel()
    clock.now += 3.0
    await asyncio.wait_for(gate().__aenter__(), 1)


async def down(clock: Clock, patience: float = 60.0) -> Gate:
    """A gate of 8 that was answered once and is down now."""
    gate = Gate(8, clock=clock, patience=patience, name="m")
    slots = await enter(gate, clock, 8)
    slots[0].succeeded()
    for slot in slots[1:]:
        assert not gate.is_down or slot in slots[6:]
        slot.failed(ConnectionError("refused"))
    await leave(slots)
    return gate


async def test_failures_in_a_row_break_the_circuit_and_one_probe_at_a_time_goes_out() -> None:
    clock = Clock()
    gate = await down(clock)
    assert gate.is_down and gate.width == 1
    waiting = [asyncio.ensure_future(gate().__aenter__()) for _ in range(5)]
    pauses = []
    for _ in range(4):
        start = clock.now
        while not any(w.done() for w in waiting):
            clock.now += 0.25
            gate._change()
            await asyncio.sleep(0.001)
        pauses.append(clock.now - start)
        (sent,) = [w for w in waiting if w.done()]  # one
        waiting.remove(sent)
        sent.result().failed(ConnectionError("refused"))
        await leave([sent.result()])
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    clock.now += 8.0
    gate._change()
    probe = await asyncio.wait_for(waiting[0], 1)
    probe.succeeded()
    assert not gate.is_down and gate.width == 2  # few at first ...
    await leave([probe])
    for _ in range(3):  # ... and twice as many each round trip, up to the width that it had
        slots = await enter(gate, clock, gate.width)
        for slot in slots:
            slot.succeeded()
        await leave(slots)
    assert gate.width == 8


async def test_an_outage_that_outlasts_the_patience_ends_all_requests() -> None:
    clock = Clock()
    gate = await down(clock, patience=10.0)
    waiting = [asyncio.ensure_future(gate().__aenter__()) for _ in range(5)]
    await asyncio.sleep(0)
    gate.lose_patience(ConnectionError("refused"), retries=3, tries=1)  # not yet
    clock.now += 10.1
    with pytest.raises(ProviderDown, match=r"^m has not answered for 10 seconds \(ConnectionError: refused\)\.$"):
        gate.lose_patience(ConnectionError("refused"), retries=3, tries=9)
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(each, ProviderDown)
    with pytest.raises(ProviderDown):
        await gate().__aenter__()
    assert gate.in_flight == 0


async def test_without_patience_every_request_is_sent() -> None:
    clock = Clock()
    gate = Gate(2, clock=clock)
    for _ in range(20):
        (slot,) = await enter(gate, clock, 1)
        slot.failed(ConnectionError("refused"))
        gate.lose_patience(ConnectionError("refused"), retries=0, tries=99)
        await leave([slot])
    assert not gate.is_down and gate.width == 2
