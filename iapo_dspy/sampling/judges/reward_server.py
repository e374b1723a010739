"""Reward models behind HTTP: vLLM's `/pooling`, `/classify` and `/score`."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import httpx

from iapo_dspy.errors import ConfigurationError, LMRefused, ScoreError, one_line
from iapo_dspy.sampling.lm.refusals import backoff, retry_after
from iapo_dspy.sampling.spending.budget import Budget
from iapo_dspy.sampling.spending.pricing import Prices

__all__ = ["RewardServer"]

logger = logging.getLogger(__name__)

_REFUSED = frozenset({401, 403, 404})  # a wrong key, address or model: every other request fails the same way
_LATER = frozenset({408, 409, 429})
_LONGEST_WAIT = 60.0  # seconds; who is told to wait longer waits in vain


class RewardServer:
    """Posts JSON to a server that scores, with retries. Thread-safe; connections are kept.

    It is a server of the user's own, so that what it reads is in no budget.

    Args:
        api_base: Its address, with or without `/v1`.
        api_key: Sent as a bearer token; None sends none.
        timeout: Seconds per attempt, > 0.
        num_retries: Attempts after the first one, >= 0.
        headers: Sent with every request.

    Raises:
        ConfigurationError: An address that is no HTTP address, or another unusable argument.
    """

    billed = False

    def __init__(
        self,
        api_base: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        num_retries: int = 3,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(api_base, str) or not api_base.startswith(("http://", "https://")):
            raise ConfigurationError(f"api_base={api_base!r}: give the server's address, http://localhost:8000.")
        if isinstance(num_retries, bool) or not isinstance(num_retries, int) or num_retries < 0:
            raise ConfigurationError(f"num_retries={num_retries!r}: give a whole number >= 0.")
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 < timeout < float("inf"):
            raise ConfigurationError(f"timeout={timeout!r}: give seconds > 0.")
        self.address = api_base.rstrip("/").removesuffix("/v1")
        self._key = api_key
        self._headers = {**(headers or {}), **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
        self._timeout = timeout
        self._retries = num_retries
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._process = os.getpid()

    def __deepcopy__(self, memo: dict[int, Any]) -> RewardServer:
        """Stay one: it has nothing that a copy could change."""
        return self

    def check_budget(self, budget: Budget, prices: Prices | None) -> None:
        """Nothing of it is in a budget."""

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that the server answers.

        Raises:
            LMRefused: The server refuses every such request: a wrong key, address or model.
            ScoreError: It refuses this one, or does not answer after all retries.
        """
        attempt, rng = 0, random.Random(0)
        while True:
            try:
                return self._attempt(path, body)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
                asked = retry_after(error)
                again = status is None or status in _LATER or status >= 500
                if not again or attempt >= self._retries or (asked or 0.0) > _LONGEST_WAIT:
                    failure = self._failure(path, error, status)
                    break
            wait = backoff(attempt, asked, rng)
            logger.debug("Attempt %d at %s failed; next in %.2f s.", attempt + 1, path, wait)
            time.sleep(wait)
            attempt += 1
        raise failure  # outside the handler: the request has the key

    def _attempt(self, path: str, body: Mapping[str, Any]) -> Any:
        response = self._connected().post(f"{self.address}{path}", json=dict(body))
        response.raise_for_status()
        try:
            return response.json()
        except ValueError:
            raise httpx.RemoteProtocolError(f"{path} answered with no JSON.") from None

    def _connected(self) -> httpx.Client:
        with self._lock:
            if self._client is None or self._process != os.getpid():  # a forked child must not share connections
                limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
                self._client = httpx.Client(timeout=self._timeout, headers=self._headers, limits=limits)
                self._process = os.getpid()
                weakref.finalize(self, self._client.close)
            return self._client

    def _failure(self, path: str, error: Exception, status: int | None) -> Exception:
        said = one_line(error, [self._key] if self._key else [])
        if isinstance(error, httpx.HTTPStatusError):
            said = f"{status}: {_message(error.response)}"
            if self._key:
                said = said.replace(self._key, "[secret]")
        message = f"The reward model server at {self.address}{path} answered {said}"
        if status in _REFUSED:
            return LMRefused(f"{message} Check api_base, api_key, the model's name and that it is served for pooling.")
        return ScoreError(message)


def _message(response: httpx.Response) -> str:
    """What a server says of an error: vLLM and OpenAI put it under error.message, others elsewhere."""
    try:
        data = response.json()
    except ValueError:
        return response.text[:200]
    error = data.get("error", data) if isinstance(data, Mapping) else data
    said = error.get("message") or error.get("detail") if isinstance(error, Mapping) else error
    return str(said or data)[:200]
