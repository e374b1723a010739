"""The demo models as a LiteLLM provider inside this process.

`lm` is the `dspy.LM` of a snippet or a test. After `register`, ``dspy.LM("iapo_demo/tiny-adder", engine="litellm")``
and ``litellm.acompletion(model="iapo_demo/tiny-adder", ...)`` work like any other model, and so does
``iapo_demo/tiny-adder-q3``, the same model rounded to three bits (`iapo_dspy.demo.shipped`). Requests to a model that
arrive at about the same time, from any thread or event loop, run in one numpy batch.

LiteLLM treats a custom provider as if it took all OpenAI parameters: ``litellm.get_supported_openai_params`` lists
``n`` once `register` was called. ``n`` reaches the model, which returns that many choices and counts the prompt once.
The models cost nothing, which is registered with LiteLLM too; `tasks` has made-up prices to compare them by.

The models are test fixtures of about a million parameters and no evidence about large language models.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

import dspy

from iapo_dspy.demo.batching import SeedSource, parse_request, shared_batcher
from iapo_dspy.demo.generation import ContextLengthError, Generation, InvalidRequestError
from iapo_dspy.demo.shipped import BITS, MODEL_NAME, SMALL_MODEL_NAME
from iapo_dspy.sampling.lm.params import import_litellm

litellm = import_litellm()  # without the download that LiteLLM makes at import

PROVIDER: Final = "iapo_demo"

_lock = threading.Lock()
_seeds = SeedSource()


class DemoProvider(litellm.CustomLLM):  # type: ignore[misc, name-defined]  # litellm is not typed
    """LiteLLM's port to the demo model."""

    def completion(self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """Serves a blocking request to a shipped model; fills and returns LiteLLM's ``model_response``.

        Raises:
            litellm.ContextWindowExceededError: The prompt is too long.
            litellm.BadRequestError: Another option is wrong.
            litellm.NotFoundError: The model's name is unknown.
        """
        with _translated(model):
            future = _submit(model, messages, options)
            try:
                result = future.result(timeout=_seconds(options.get("timeout")))
            finally:
                future.cancel()  # nobody waits any more; does nothing to a finished request
            return _fill(options["model_response"], model, result)

    async def acompletion(self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """Serves a request without blocking the event loop; see `completion`."""
        with _translated(model):
            future = asyncio.wrap_future(_submit(model, messages, options))
            result = await asyncio.wait_for(future, timeout=_seconds(options.get("timeout")))
            return _fill(options["model_response"], model, result)


def lm(*, small: bool = False, **options: Any) -> dspy.LM:
    """Returns a shipped model, registered and ready for ``dspy.configure(lm=...)``.

    Args:
        small: Whether it is the one that is rounded to three bits, which is right less often.
        **options: For `dspy.LM`, instead of a seed of 0, a temperature of 1, at most 200 tokens and no cache.
    """
    register()
    return dspy.LM(
        f"{PROVIDER}/{SMALL_MODEL_NAME if small else MODEL_NAME}",
        **{"engine": "litellm", "seed": 0, "temperature": 1.0, "max_tokens": 200, "cache": False, **options},
    )


def register(*, seed: int | None = None) -> None:
    """Makes the shipped models known to LiteLLM. May be called any number of times from any thread.

    Args:
        seed: If given, `set_seed` is called with it.
    """
    with _lock:
        if not any(entry["provider"] == PROVIDER for entry in litellm.custom_provider_map):
            litellm.custom_provider_map.append({"provider": PROVIDER, "custom_handler": DemoProvider()})
        litellm.utils.custom_llm_setup()
        about = {
            "litellm_provider": PROVIDER,
            "mode": "chat",
            "input_cost_per_token": 0.0,
            "output_cost_per_token": 0.0,
            "cache_creation_input_token_cost": 0.0,
            "cache_read_input_token_cost": 0.0,
            "max_tokens": 512,
            "max_input_tokens": 511,
            "max_output_tokens": 511,
        }
        new = [name for name in (f"{PROVIDER}/{model}" for model in BITS) if name not in litellm.model_cost]
        if new:
            litellm.register_model({name: dict(about) for name in new})
    if seed is not None:
        set_seed(seed)


def set_seed(seed: int | None) -> None:
    """Makes requests without a ``seed`` of their own reproducible, as `SeedSource` does; None makes them fresh."""
    global _seeds
    _seeds = SeedSource(seed)


def _submit(model: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Future[Generation]:
    if model not in BITS:
        raise litellm.NotFoundError(
            message=f"the demo provider has the models {list(BITS)}, got {model!r}",
            model=model,
            llm_provider=PROVIDER,
        )
    batcher = shared_batcher(model)
    given = dict(options.get("optional_params") or {})
    sampling = {**given, **(given.pop("extra_body", None) or {})}
    # The first model's seeds are those that it had when it was the only one.
    which = () if model == MODEL_NAME else (model,)
    seed = _seeds.next((*which, messages, sorted(sampling.items(), key=lambda item: item[0])))
    return batcher.submit(parse_request(messages, sampling, batcher.model.tokenizer, seed=seed))


def _fill(response: Any, model: str, result: Generation) -> Any:
    response.choices = [
        litellm.Choices(
            index=i,
            finish_reason=choice.finish_reason,
            message=litellm.Message(role="assistant", content=choice.text),
        )
        for i, choice in enumerate(result.choices)
    ]
    response.model = f"{PROVIDER}/{model}"
    response.created = int(time.time())
    response.usage = litellm.Usage(
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        total_tokens=result.prompt_tokens + result.completion_tokens,
    )
    return response


@contextlib.contextmanager
def _translated(model: str) -> Iterator[None]:
    try:
        yield
    except InvalidRequestError as error:
        kind = litellm.ContextWindowExceededError if isinstance(error, ContextLengthError) else litellm.BadRequestError
        raise kind(message=str(error), model=model, llm_provider=PROVIDER) from error


def _seconds(timeout: object) -> float | None:
    return float(timeout) if isinstance(timeout, int | float) else None
