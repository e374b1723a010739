"""One policy says which requests are sent again, how often and when."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable

import pytest
from tenacity import AsyncRetrying, Retrying

from iapo_dspy.errors import BudgetExceeded, ProviderDown
from iapo_dspy.sampling.concurrency import retrying as module
from iapo_dspy.sampling.concurrency.gate import Gate
from iapo_dspy.sampling.concurrency.retrying import backoff, insist, retrying, tell
from iapo_dspy.sampling.lm.refusals import is_retryable


class Busy(Exception):
    """A provider that may answer later."""

    status_code = 503

    def __init__(self, after: float | None = None) -> None:
        self.retry_after = after


class Failing:
    """Fails with these errors, one after the other, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    async def send(self) -> str:
        return self()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float | None]]:
    found: list[tuple[int, float | None]] = []

    def note(attempt: int, asked: float | None, rng: random.Random) -> float:
        found.append((attempt, asked))
        return 0.0

    monkeypatch.setattr(module, "backoff", note)
    return found


async def test_failures_that_may_pass_are_tried_again(waits: list[tuple[int, float | None]]) -> None:
    told: list[str] = []
    failing = Failing(Busy(), Busy(7.0), ConnectionError())
    attempts = retrying(
        AsyncRetrying, retries=3, rng=random.Random(0), before_sleep=lambda e, s: told.append(type(e).__name__)
    )
    assert await attempts(failing.send) == "answer"
    assert waits == [(0, None), (1, 7.0), (2, None)]
    assert told == ["Busy", "Busy", "ConnectionError"]


@pytest.mark.parametrize(
    ("error", "retries", "calls"),
    [
        (ValueError("no"), 3, 1),  # waiting does not help
        (BudgetExceeded("no"), 3, 1),
        (Busy(61.0), 3, 1),  # asks for too much patience
        (Busy(), 0, 1),
        (Busy(), 2, 3),
    ],
)
def test_the_last_error_is_raised(
    error: Exception, retries: int, calls: int, waits: list[tuple[int, float | None]]
) -> None:
    failing = Failing(*[error] * 5)
    with pytest.raises(type(error)) as caught:
        retrying(Retrying, retries=retries, rng=random.Random(0), again=is_retryable)(failing)
    assert caught.value is error
    assert failing.calls == calls


async def test_the_number_of_attempts_may_depend_on_the_error(waits: list[tuple[int, float | None]]) -> None:
    failing = Failing(ConnectionError(), *[Busy()] * 9)
    with pytest.raises(Busy):
        await retrying(
            AsyncRetrying, retries=lambda e: 1 if isinstance(e, ConnectionError) else 4, rng=random.Random(0)
        )(failing.send)
    assert failing.calls == 5


def test_waiting_grows_and_never_ends_early() -> None:
    rng = random.Random(0)
    waits = [backoff(i, None, rng) for i in range(12)]
    assert all(0.25 * 2**i <= w <= 0.5 * 2**i for i, w in enumerate(waits[:7]))
    assert max(waits) <= 60
    assert all(2.0 <= backoff(0, 2.0, rng) <= 2.25 for _ in range(50))
    assert [backoff(i, None, random.Random(1)) for i in range(3)] == [
        backoff(i, None, random.Random(1)) for i in range(3)
    ]


class Down(Exception):
    """A provider that failed by itself."""

    status_code = 503


class Crowd(Exception):
    """A 429."""

    status_code = 429


def insisting(gate: Gate, failing: Failing, retries: int = 0) -> Awaitable[str]:
    async def send() -> str:
        async with gate() as slot:
            try:
                answer = failing()
            except Exception as error:
                tell(slot, error)
                raise
            slot.succeeded()
            return answer

    return insist(send, gate=gate, retries=retries, rng=random.Random(0))


async def test_without_patience_a_request_has_its_own_retries(waits: list[tuple[int, float | None]]) -> None:
    assert await insisting(Gate(8), Failing(Down(), Down()), retries=2) == "answer"
    with pytest.raises(Down):
        await insisting(Gate(8), Failing(Down()))
    # After a 429 it has as many more as the gate can be halved, unless it is never to be retried.
    assert await insisting(Gate(8), Failing(*[Crowd()] * 4), retries=1) == "answer"
    with pytest.raises(Crowd):
        await insisting(Gate(8), Failing(*[Crowd()] * 5), retries=1)
    with pytest.raises(Crowd):
        await insisting(Gate(8), Failing(Crowd()))


async def test_a_request_that_fails_while_others_are_answered_has_failed(waits: list[tuple[int, float | None]]) -> None:
    clock = itertools.count()
    gate = Gate(8, patience=1e9, clock=lambda: float(next(clock)))
    failing = Failing(*[ConnectionError()] * 99)

    async def send() -> str:
        await insisting(gate, Failing())  # another request, which is answered
        async with gate() as slot:
            try:
                return failing()
            except ConnectionError as error:
                tell(slot, error)
                raise

    with pytest.raises(ConnectionError):
        await insist(send, gate=gate, retries=0, rng=random.Random(0))
    assert failing.calls == 9  # the first attempt, and eight more: nothing was billed


async def test_an_outage_is_not_a_failure_of_the_requests_that_meet_it(waits: list[tuple[int, float | None]]) -> None:
    gate = Gate(8, patience=60.0)
    assert await insisting(gate, Failing()) == "answer"
    shared = Failing(*[Down()] * 4)  # nobody is answered
    assert await asyncio.gather(*(insisting(gate, shared) for _ in range(4))) == ["answer"] * 4
    assert not gate.is_down


async def test_a_provider_that_never_answered_is_given_up_soon(waits: list[tuple[int, float | None]]) -> None:
    gate, failing = Gate(8, patience=600.0, name="m"), Failing(*[Down()] * 99)
    with pytest.raises(ProviderDown, match="m has not answered once"):
        await insisting(gate, failing, retries=3)
    assert failing.calls == 4
