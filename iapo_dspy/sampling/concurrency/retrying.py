"""Ask again after a failure that passes by waiting: one policy for every request of this package."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import tenacity

from iapo_dspy.sampling.lm.refusals import is_retryable, retry_after

R = TypeVar("R", bound=tenacity.BaseRetrying)
_BASE = 0.5  # seconds
_LONGEST = 60.0  # seconds


def retrying(
    kind: type[R],
    *,
    retries: int | Callable[[BaseException], int],
    rng: random.Random,
    again: Callable[[BaseException], bool] = is_retryable,
    longest: float = _LONGEST,
    before_sleep: Callable[[BaseException, float], None] | None = None,
) -> R:
    """Return an object that calls a function until it succeeds.

        await retrying(AsyncRetrying, retries=3, rng=random.Random(0))(send, request)

    The waits double, with jitter; a provider's Retry-After goes before. When there is no point in another attempt, the
    error of the last one is raised, outside of any handler.

    Args:
        kind: `tenacity.AsyncRetrying` for coroutine functions, `tenacity.Retrying` for those that block.
        retries: Attempts after the first one; it may depend on the error.
        rng: Source of the jitter.
        again: Whether an error may pass by waiting.
        longest: Seconds. A provider that asks for more patience than this is not asked again.
        before_sleep: Told of each failure, and of the seconds until the next attempt.
    """

    def stop(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number > (retries(_error(state)) if callable(retries) else retries)

    def wait(state: tenacity.RetryCallState) -> float:
        return backoff(state.attempt_number - 1, retry_after(_error(state)), rng)

    def tell(state: tenacity.RetryCallState) -> None:
        if before_sleep is not None:
            before_sleep(_error(state), state.upcoming_sleep)

    def passes(error: BaseException) -> bool:
        return isinstance(error, Exception) and again(error) and (retry_after(error) or 0.0) <= longest

    return kind(retry=tenacity.retry_if_exception(passes), stop=stop, wait=wait, before_sleep=tell, reraise=True)


def _error(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None  # asked for failures only
    return error


def backoff(attempt: int, asked: float | None, rng: random.Random) -> float:
    """Return the seconds to wait after attempt 0, 1, ...: those that the provider asked for, else doubling with jitter.

    Jitter is added to the seconds asked for, never taken off. So a crowd of requests does not come back at the same
    moment, and no request comes back early.
    """
    if asked is not None:
        return asked + rng.uniform(0.0, min(0.25, 0.1 + 0.1 * asked))
    return min(_LONGEST, _BASE * 2.0 ** min(attempt, 16)) * rng.uniform(0.5, 1.0)
