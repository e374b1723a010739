"""One policy says which requests are sent again, how often and when."""

from __future__ import annotations

import random

import pytest
from tenacity import AsyncRetrying, Retrying

from iapo_dspy.errors import BudgetExceeded
from iapo_dspy.sampling.concurrency import retrying as module
from iapo_dspy.sampling.concurrency.retrying import backoff, retrying
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
