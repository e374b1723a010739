"""Reward models behind HTTP: vLLM's `/pooling`, `/classify` and `/score`."""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import httpx
from tenacity import Retrying

from iapo_dspy.errors import ConfigurationError, LMRefused, ScoreError, one_line
from iapo_dspy.sampling.concurrency.retrying import retrying
from iapo_dspy.sampling.lm.refusals import LATER

_REFUSED = frozenset({401, 403, 404})  # a wrong key, address or model: every other request fails the same way


class RewardServer:
    """Posts JSON to a server that scores, with retries. Thread-safe; connections are kept.

    The server is the user's own, so no budget counts its tokens.

    Args:
        api_base: Its address, with or without `/v1`.
        api_key: Sent as a bearer token; None sends none.
        timeout: Seconds per attempt, > 0.
        num_retries: Attempts after the first one, >= 0.
        headers: Sent with every request.

    Raises:
        ConfigurationError: An address that is not HTTP, or another unusable argument.
    """

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

    @property
    def secret(self) -> bool:
        """Whether it is sent a key or headers, which are not for files."""
        return bool(self._headers)

    def __deepcopy__(self, memo: dict[int, Any]) -> RewardServer:
        """Return itself: nothing of it ever changes."""
        return self

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that the server answers.

        Raises:
            LMRefused: The server refuses every such request: a wrong key, address or model.
            ScoreError: It refuses this one, or does not answer after all retries.
        """
        attempts = retrying(Retrying, retries=self._retries, rng=random.Random(0), again=_may_pass)
        try:
            return attempts(self._attempt, path, body)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            failure = self._failure(path, error)
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

    def _failure(self, path: str, error: Exception) -> Exception:
        status = _status(error)
        said = one_line(error, [self._key] if self._key else [])
        if isinstance(error, httpx.HTTPStatusError):
            said = f"{status}: {_message(error.response)}"
            if self._key:
                said = said.replace(self._key, "[secret]")
        message = f"The reward model server at {self.address}{path} answered {said}"
        if status in _REFUSED:
            return LMRefused(f"{message} Check api_base, api_key, the model's name and that it is served for pooling.")
        return ScoreError(message)


def _status(error: BaseException) -> int:
    return error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, httpx.TransportError) or _status(error) in LATER or _status(error) >= 500


def _message(response: httpx.Response) -> str:
    """Return a server's own words on an error: vLLM and OpenAI put them under error.message, others elsewhere."""
    try:
        data = response.json()
    except ValueError:
        return response.text[:200]
    error = data.get("error", data) if isinstance(data, Mapping) else data
    said = error.get("message") or error.get("detail") if isinstance(error, Mapping) else error
    return str(said or data)[:200]
