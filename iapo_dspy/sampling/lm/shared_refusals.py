"""Tells a refusal that every request of a deployment would meet from one that concerns a single request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iapo_dspy.sampling.lm.params import canonical
from iapo_dspy.sampling.lm.refusals import is_fatal, may_concern_one

_GONE = 8  # queries refused in a row, after which no other one is expected to be answered


class SharedRefusals:
    """The refusals of one deployment. To be used on the sampling loop only.

    A wrong key concerns every request. A 404, a 403 and some bad requests may mean an unknown model, or one query that
    the provider does not like. The other requests tell: where one of them had another outcome, a refusal concerns its
    own request. So a refusal that comes first waits for the requests in flight.

    Args:
        sound: Whether requests are known to have been answered before.
    """

    def __init__(self, *, sound: bool = False) -> None:
        self._sound = sound
        self._open = 0  # requests whose outcome is not known yet
        self._refused: set[str] = set()  # queries that were refused since the last answer
        self._waiting: list[asyncio.Future[None]] = []

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Hold a request while it is in flight, retries included; it is answered where the block ends without error."""
        self._open += 1
        try:
            yield
        except Exception as error:
            if not is_fatal(error):
                self._wake(sound=True)
            raise
        else:
            self._refused.clear()
            self._wake(sound=True)
        finally:
            self._open -= 1
            if not self._open:
                self._wake()

    async def concern_all(self, error: Exception, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether every other request will fail as this one did.

        Args:
            error: Why it failed, after `request` has ended.
            messages: What was asked; the last message tells queries apart, whatever the instruction.
        """
        if not is_fatal(error) or not may_concern_one(error):
            return is_fatal(error)
        self._refused.add(canonical(messages[-1:]))
        if len(self._refused) >= _GONE:
            self._wake()
        elif not self._sound and self._open:
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(news)
            await news
        return not self._sound or len(self._refused) >= _GONE

    def _wake(self, *, sound: bool = False) -> None:
        self._sound |= sound
        for news in self._waiting:
            if not news.done():
                news.set_result(None)
        self._waiting.clear()
