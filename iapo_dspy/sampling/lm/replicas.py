"""One model served by several replicas, through LiteLLM's Router."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import dspy
from dspy.utils.callback import with_callbacks

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.lm.params import import_litellm, without_retries
from iapo_dspy.sampling.lm.refusals import is_retryable, secrets_of

_ROUTINGS = ("least-busy", "weighted")
_KNOWN = frozenset({"api_base", "api_key", "model", "weight"})
_COOLDOWN = 5.0  # seconds without requests for a replica that fails; LiteLLM's own default


class ReplicatedLM(dspy.LM):  # type: ignore[misc]
    """A `dspy.LM` whose requests are spread over several servers of the same model by `litellm.Router`.

    The Router only chooses: its own silent retries are off, so that every attempt is seen, counted and held within a
    budget. A replica that answers 429 or fails is left alone for some seconds while another one is alive. Answers are
    never cached.

    Args:
        model: LiteLLM model string, for replicas without a model of their own.
        replicas: For each server its address, or a mapping with `api_base` and optionally `api_key`, `model`, `weight`
            (> 0, its share of the requests; weighted routing only).
        routing: "least-busy" sends each request to the replica with the fewest in flight; "weighted" draws by weight.
        cooldown: Seconds for which a replica that failed gets no request, >= 0.
        api_key: For replicas without one of their own.
        **settings: As for `dspy.LM`: temperature, max_tokens, seed, num_retries, ...

    Raises:
        ConfigurationError: No replicas, an unknown key, routing or weight, or an `api_base` beside `replicas`.

    Example:
        >>> lm = ReplicatedLM("hosted_vllm/m", replicas=["http://gpu1:8000/v1", "http://gpu2:8000/v1"])
    """

    def __init__(
        self,
        model: str,
        *,
        replicas: Sequence[str | Mapping[str, Any]],
        routing: Literal["least-busy", "weighted"] = "least-busy",
        cooldown: float = _COOLDOWN,
        api_key: str | None = None,
        **settings: Any,
    ) -> None:
        if routing not in _ROUTINGS:
            raise ConfigurationError(f"routing={routing!r}: choose one of {', '.join(map(repr, _ROUTINGS))}.")
        if "api_base" in settings or "base_url" in settings:
            raise ConfigurationError("Give each replica its own api_base: replicas=['http://gpu1:8000/v1', ...].")
        if isinstance(replicas, str) or not replicas:
            raise ConfigurationError(f"replicas={replicas!r}: give a list with the address of each server.")
        # Answers are never cached, so the LM must not look cached. Only LiteLLM's chat route has a Router.
        super().__init__(model, **{**settings, "cache": False, "engine": "litellm", "model_type": "chat"})
        self.replicas = tuple(_replica(r) for r in replicas)
        self.routing = routing
        self.cooldown = cooldown
        self._api_key = api_key
        self._start()

    @property
    def secrets(self) -> tuple[str, ...]:
        """The keys of all replicas, to be kept out of messages."""
        return secrets_of({"api_key": self._api_key, **{str(i): r for i, r in enumerate(self.replicas)}})

    async def acompletion(self, **request: Any) -> Any:
        """Send one request to the replica that the Router chooses; `litellm.acompletion` with the model filled in."""
        with self._chosen() as name:
            return await self._routed().acompletion(**{**request, "model": name})

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[Any]:
        """Return outputs as DSPy adapters expect them."""
        request = self._request(prompt, messages, kwargs)
        with self._chosen() as name:
            response = self._routed().completion(**request, model=name, num_retries=self.num_retries)
        return self._finish(request, response)

    @with_callbacks  # type: ignore[untyped-decorator]
    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[Any]:
        """Return outputs as DSPy adapters expect them."""
        request = self._request(prompt, messages, kwargs)
        response = await self.acompletion(**request, num_retries=self.num_retries)
        return self._finish(request, response)

    def dump_state(self) -> dict[str, Any]:
        """Return plain data to make it from again, without any key."""
        replicas = [{k: v for k, v in r.items() if k != "api_key"} for r in self.replicas]
        state = {k: v for k, v in super().dump_state().items() if k not in ("cache", "engine", "model_type")}
        return {**state, "replicas": replicas, "routing": self.routing, "cooldown": self.cooldown}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out locks and connections, which belong to one process."""
        state: dict[str, Any] = super().__getstate__()
        return {k: v for k, v in state.items() if k not in ("_lock", "_router")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without connections."""
        super().__setstate__(state)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._router: Any = None
        self._busy = [0] * len(self.replicas)  # requests in flight
        self._served = [0] * len(self.replicas)
        self._rests = [0.0] * len(self.replicas)  # until when a replica that failed is left alone

    @contextlib.contextmanager
    def _chosen(self) -> Iterator[str]:
        """Yield the Router's name of the replica that gets a request, for as long as the request is in flight.

        The Router's own "least-busy" counts by callbacks that are global to the process, registered for one Router
        only, and run after the fact; a second Router sends everything to one replica. So requests in flight are counted
        here.
        """
        if self.routing == "weighted":
            yield self.model
            return
        now = time.monotonic()
        with self._lock:
            known = range(len(self.replicas))
            awake = [i for i in known if self._rests[i] <= now] or [min(known, key=self._rests.__getitem__)]
            i = min(awake, key=lambda j: (self._busy[j], self._served[j]))
            self._busy[i] += 1
            self._served[i] += 1
        try:
            yield self._name(i)
        except Exception as error:
            if is_retryable(error):
                self._rests[i] = time.monotonic() + self.cooldown
            raise
        finally:
            with self._lock:
                self._busy[i] -= 1

    def _name(self, i: int) -> str:
        return self.model if self.routing == "weighted" else f"{self.model}#{i}"

    def _routed(self) -> Any:
        with self._lock:
            if self._router is None:
                self._router = self._make_router()
            return self._router

    def _make_router(self) -> Any:
        deployments = []
        for i, replica in enumerate(self.replicas):
            settings = {"model": self.model, "api_key": self._api_key, **replica}
            settings |= without_retries(settings["model"], self.kwargs)
            settings = {k: v for k, v in settings.items() if v is not None}
            deployments.append({"model_name": self._name(i), "litellm_params": settings})
        litellm = import_litellm()
        known = set(litellm.model_cost)
        router = litellm.Router(
            model_list=deployments,
            num_retries=0,
            cooldown_time=self.cooldown,
            disable_cooldowns=self.cooldown <= 0 or self.routing != "weighted",
            allowed_fails=0,
        )
        # A Router enters its models into LiteLLM's price table, at no price: unknown would become free.
        for name in set(litellm.model_cost) - known:
            del litellm.model_cost[name]
        return router

    def _request(self, prompt: Any, messages: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        merged = {**self.kwargs, **kwargs}
        dropped = ("cache", "rollout_id", "num_retries", "max_retries", "prompt_cache")
        merged = {k: v for k, v in merged.items() if k not in dropped and v is not None}
        content = list(messages) if messages else [{"role": "user", "content": prompt}]
        return {**merged, "messages": content}

    def _finish(self, request: Mapping[str, Any], response: Any) -> list[Any]:
        """Write DSPy's history and usage, as any LM does."""
        params = {k: v for k, v in request.items() if k != "messages"}
        outputs = self._process_completion(response, params)
        return list(self._record_response(response, None, request["messages"], outputs, params))


def _replica(given: str | Mapping[str, Any]) -> dict[str, Any]:
    replica = {"api_base": given} if isinstance(given, str) else dict(given)
    unknown = replica.keys() - _KNOWN
    if unknown or not isinstance(replica.get("api_base"), str):
        shown = sorted(replica)  # names only: a value may be a key
        raise ConfigurationError(f"A replica with {shown}: give api_base and, if needed, api_key, model, weight.")
    weight = replica.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ConfigurationError(f"A replica with weight={weight!r}: give a number > 0.")
    return replica
