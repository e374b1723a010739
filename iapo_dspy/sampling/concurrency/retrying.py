"""Ask again after a failure that passes by waiting: one policy for every request of this package."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from iapo_dspy.sampling.concurrency.gate import Gate, Slot
from iapo_dspy.sampling.lm.refusals import is_refused, is_retryable, is_throttled, is_undrawn, retry_after

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=tenacity.BaseRetrying)
T = TypeVar("T")
_PERSISTENT = 8  # retries of a request that was surely not billed, while a run goes on
_MOST_DOUBLINGS = 4  # of the wait before these
_LONGEST_QUOTA = 120.0  # seconds; a longer wait means that a quota is used up
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


def tell(slot: Slot, error: BaseException) -> None:
    """Tell a gate what an error says about its deployment."""
    if is_throttled(error):
        slot.throttled(retry_after(error))
    elif not isinstance(error, Exception) or is_undrawn(error):  # cancelled, or never sent
        return
    elif is_retryable(error):
        slot.failed(error)
    else:
        slot.answered()


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


async def insist(
    send: Callable[[], Awaitable[T]],
    *,
    gate: Gate,
    retries: int,
    rng: random.Random,
    again: Callable[[BaseException], bool] = is_retryable,
) -> T:
    """Send a request through a gate until it succeeds, or there is no point.

    A provider that answers others, but not this request, says something about the request: it has so many retries, and
    a few more where nothing can have been billed. After a 429, the number of which depends on the requests in flight,
    it has as many more as the gate can be halved. While nobody is answered, the provider is down: the request waits at
    the gate for as long as the gate has patience (`Gate`), and that does not count as a failure of its own.

    Args:
        send: Sends the request once, and tells the gate what became of it.
        gate: The deployment's.
        retries: Attempts after the first one.
        rng: Source of the jitter.
        again: Whether an error may pass by waiting.

    Raises:
        ProviderDown: The gate has lost its patience.
        Exception: The error of the last attempt.
    """
    tries = failures = 0
    since = gate.now()
    halvings = (gate.limit - 1).bit_length()
    while True:
        try:
            return await send()
        except Exception as error:
            if not again(error):
                raise
            tries += 1
            asked, throttled = retry_after(error), is_throttled(error)
            # The first failures of an outage come while others are still answered; later ones do not.
            failures += gate.patience is None or gate.answered_since(since) or failures > 1
            since = gate.now()
            allowed = retries
            if gate.patience is None:
                allowed += halvings if throttled and retries else 0
            else:
                unbilled = is_refused(error) or isinstance(error, ConnectionError)
                allowed = retries + halvings if throttled else max(retries, _PERSISTENT if unbilled else 1)
            if failures > allowed or (gate.patience is None and (asked or 0.0) > _LONGEST_QUOTA):
                raise
            gate.lose_patience(error, retries=retries, tries=tries, asked=asked)
            attempt = tries - 1 if gate.patience is None else min(tries - 1, _MOST_DOUBLINGS)
            delay = 0.0 if gate.is_down else backoff(attempt, asked, rng)
            logger.debug("An attempt failed (%s); next in %.2f s.", type(error).__name__, delay)
        await asyncio.sleep(delay)
