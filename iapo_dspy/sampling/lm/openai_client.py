"""A client of our own for LiteLLM's `client=`, where LiteLLM would use OpenAI's: lighter, and without silent retries.

LiteLLM reaches `openai/` models through OpenAI's client, which walks the request once per type that a message could
have, and builds typed objects from an answer that LiteLLM turns back into a dictionary at once. Together that is a
quarter of the CPU time of a call. This client sends what LiteLLM wrote and returns what the server wrote; addresses,
keys, timeouts, errors, redirects and the connection pool stay those of OpenAI's client and of LiteLLM.

Some providers' `max_retries=0` gets lost in LiteLLM on its way to that client, which then retries twice without a word.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from iapo_dspy.sampling.lm.params import import_litellm

__all__ = ["OpenAIClients", "retries_silently"]

# For these, LiteLLM drops `max_retries` as a parameter that the provider does not support, and OpenAI's client retries
# as it does by default. `tests/integration/test_silent_retries.py` asks every provider that can be asked on loopback.
_LOST_MAX_RETRIES = frozenset(
    {
        "ai21",
        "ai21_chat",
        "baseten",
        "clf_ai_gateway",
        "codestral",
        "deepinfra",
        "featherless_ai",
        "hyperbolic",
        "inception",
        "morph",
        "nscale",
        "nvidia_nim",
        "sambanova",
        "v0",
        "zai",
    }
)

# What decides how LiteLLM itself would make its client; with any of them, it shall.
_OF_THE_CLIENT = frozenset({"api_version", "base_url", "client", "organization", "shared_session"})


def retries_silently(model: str, provider: str | None = None) -> bool:
    """Whether LiteLLM retries requests to this model although it is told not to, unless it is given a client."""
    return _provider(model, provider) in _LOST_MAX_RETRIES


def _provider(model: str, provider: str | None) -> str:
    return provider or model.split("/", 1)[0]


class OpenAIClients:
    """The client of one LM, made again whenever LiteLLM renews its connection pool.

    Args:
        model: The LM's model string.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._pool: Any = None
        self._client: Any = None
        self._made_for: tuple[str, str] | None = None

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to add to a request: the client, or nothing where LiteLLM should choose its own.

        Args:
            params: What the request is sent with.
        """
        if _OF_THE_CLIENT & params.keys():
            return {}
        base, key = self._destination(params)
        if not (isinstance(base, str) and base and isinstance(key, str) and key):
            return {}
        pool = _pool()
        if pool is None:
            return {}
        if pool is not self._pool or (base, key) != self._made_for:
            self._client = _client_class()(api_key=key, base_url=base, max_retries=0, http_client=pool)
            self._pool, self._made_for = pool, (base, key)
        return {"client": self._client}

    def _destination(self, params: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return address and key, as far as they are known to be those that LiteLLM would use."""
        base, key, provider = params.get("api_base"), params.get("api_key"), params.get("custom_llm_provider")
        if _provider(self._model, provider) == "openai" and self._model.startswith("openai/"):
            return base, key
        if not retries_silently(self._model, provider):
            return None, None
        found = import_litellm().get_llm_provider(
            model=self._model, custom_llm_provider=provider, api_base=base, api_key=key
        )
        return base or found[3], key or found[2]


def _pool() -> Any:
    """LiteLLM's connection pool of the running loop; None where the user has told LiteLLM how to make clients."""
    litellm = import_litellm()
    if litellm.aclient_session is not None or getattr(litellm, "network_mock", False):
        return None
    if litellm.organization or os.environ.get("OPENAI_ORGANIZATION"):
        return None
    from litellm.llms.custom_httpx.http_handler import get_async_httpx_client

    return get_async_httpx_client(llm_provider="openai").client


@functools.cache
def _client_class() -> type:
    """Make the class at first use: OpenAI's package comes with LiteLLM, and both take long to import."""
    import httpx
    import openai
    from openai.resources.chat import AsyncChat, AsyncCompletions

    class Body:
        """A JSON object that LiteLLM asks for as a dictionary."""

        __slots__ = ("_data",)

        def __init__(self, data: Any) -> None:
            self._data = data

        def model_dump(self) -> Any:
            return self._data

    class Raw:
        """An answer as it came."""

        __slots__ = ("_response", "headers")

        def __init__(self, response: httpx.Response) -> None:
            self._response = response
            self.headers = response.headers

        def parse(self) -> Any:
            data = self._response.json()
            # LiteLLM knows what to say of anything else.
            return Body(data) if isinstance(data, dict) else data

    class RawCompletions:
        """`chat.completions.with_raw_response`."""

        def __init__(self, completions: AsyncCompletions) -> None:
            self._completions = completions

        async def create(
            self,
            *,
            timeout: Any,
            extra_headers: Mapping[str, str] | None = None,
            extra_query: Mapping[str, Any] | None = None,
            extra_body: Mapping[str, Any] | None = None,
            **body: Any,
        ) -> Any:
            options: Any = {"timeout": timeout, "max_retries": 0}  # LiteLLM sets what the client itself would do
            if extra_headers:
                options["headers"] = extra_headers
            if extra_query:
                options["params"] = extra_query
            response = await self._completions._client.post(
                "/chat/completions",
                cast_to=httpx.Response,
                body={**body, **(extra_body or {})},
                options=options,
            )
            return Raw(response)

    class Completions(AsyncCompletions):
        @functools.cached_property
        def with_raw_response(self) -> Any:
            return RawCompletions(self)

    class Chat(AsyncChat):
        @functools.cached_property
        def completions(self) -> Any:
            return Completions(self._client)

    class Client(openai.AsyncOpenAI):
        @property
        def max_retries(self) -> int:
            """None: every attempt is ours to see. Newer LiteLLM posts by itself, and asks this attribute."""
            return 0

        @max_retries.setter
        def max_retries(self, value: int) -> None:
            """Do nothing: where the setting got lost, LiteLLM puts its default of two here."""

        @functools.cached_property
        def chat(self) -> Any:
            return Chat(self)

    return Client
