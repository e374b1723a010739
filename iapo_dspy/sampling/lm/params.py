"""Parameters of a request: the LM's settings, the predictor's, the decoding configuration and the seed."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import dspy
import pydantic
from dspy.utils.dummies import DummyLM

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.lm.proxy import StandInLM
from iapo_dspy.types import Decoding

logger = logging.getLogger(__name__)

# Settings of DSPy itself, and those that this package decides on: none of them goes to a provider as it is.
NOT_SENT = frozenset(
    {"n", "num_generations", "cache", "rollout_id", "num_retries", "max_retries", "prompt_cache", "seed", "stream"}
)
# For these, LiteLLM drops `max_retries` as a parameter that the provider does not support, and OpenAI's client retries
# twice, as it does by default. `tests/integration/sampling/lm/test_silent_retries.py` asks every provider that can be
# asked on loopback.
DROPS_MAX_RETRIES = frozenset(
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
_REASONING = re.compile(r"^(o[1345](-(mini|nano|pro))?(-\d{4}-\d{2}-\d{2})?|gpt-5(\.\d+)*(?!-chat)(-.*)?)$")


@functools.cache
def import_litellm() -> Any:
    """Import LiteLLM at first use: it costs seconds. Its price table is the one it ships with, not a download."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


def without_retries(model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that keep LiteLLM from sending a request again by itself, where nobody would see it.

    Args:
        model: LiteLLM's model string.
        params: The parameters of the request or of the LM.
    """
    settings: dict[str, Any] = {"max_retries": 0}
    if (params.get("custom_llm_provider") or model.split("/", 1)[0]) in DROPS_MAX_RETRIES:
        settings["allowed_openai_params"] = [*(params.get("allowed_openai_params") or ()), "max_retries"]
    return settings


def is_reasoning_model(model: str) -> bool:
    """Whether this is one of OpenAI's reasoning models, which accept no temperature but 1."""
    return _REASONING.match(model.rsplit("/", 1)[-1].lower()) is not None


def request_params(
    lm: dspy.BaseLM, config: Mapping[str, Any] | None = None, decoding: Decoding | None = None
) -> dict[str, Any]:
    """Merge the parameters of a request; later sources win: LM, predictor, decoding.

    `n` is left out, because a rollout is one sample. A temperature that nobody set is sent as 1.0 where LiteLLM says
    that the model takes one, and nothing that depends on it is set: DSPy would turn it into 0.7 as soon as n > 1, and a
    provider's own default is not the same everywhere. A reasoning effort is sent to models that LiteLLM does not know,
    too: by itself it would refuse to send it to an Azure deployment of any name, for example.
    """
    merged = {**lm.kwargs, **(config or {})}
    params = {k: v for k, v in merged.items() if k not in NOT_SENT and v is not None}
    chosen = decoding.as_kwargs() if decoding is not None else {}
    if "max_tokens" in chosen and _counts_reasoning(lm.model, params):
        params.pop("max_tokens", None)
        chosen["max_completion_tokens"] = chosen.pop("max_tokens")
    params.update(chosen)
    if _takes_a_temperature(lm, params):
        params.setdefault("temperature", 1.0)
    if chosen.get("reasoning_effort") is not None and _sent_by_leave(lm, params):
        allowed = params.get("allowed_openai_params") or ()
        params["allowed_openai_params"] = [*allowed, *({"reasoning_effort"} - set(allowed))]
    return _with_room(lm.model, params)


_NOT_GENERATION = re.compile(r"key|secret|credential|token$|header|base|url|timeout|retries|cache|rollout")


def generation_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that decide an LM's answers, without addresses, secrets and time limits."""
    return {k: v for k, v in params.items() if v is not None and not _NOT_GENERATION.search(k)}


def call_of(lm: dspy.BaseLM, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> str:
    """Return a hash that is equal for equal requests in every process; keys and addresses have no part in it."""
    text = canonical([lm.model, list(messages), generation_params(params)])
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def check_decoding(lm: dspy.BaseLM, config: Mapping[str, Any] | None = None, decoding: Decoding | None = None) -> None:
    """Refuse a decoding that LiteLLM would refuse at every call. Only a `dspy.LM` is checked.

    Raises:
        ConfigurationError: LiteLLM says that the model does not take one of the settings.
    """
    if decoding is None or not isinstance(lm, dspy.LM) or lm.model_type != "chat":
        return
    params = request_params(lm, config, decoding)
    names = {*decoding.as_kwargs(), "max_completion_tokens"} & params.keys()
    names -= set(params.get("allowed_openai_params") or ())
    settings = tuple(sorted((name, params[name]) for name in names))
    problem = _refusal(lm.model, params.get("custom_llm_provider"), settings) if settings else None
    if problem is not None:
        given = ", ".join(f"{name}={value!r}" for name, value in decoding.as_kwargs().items())
        raise ConfigurationError(
            f"{lm.model!r} cannot be asked with Decoding({given}): {problem} Leave that out of decoding, or give each "
            "model decodings of its own: IAPO(lms=[...], decoding={'provider/model': [Decoding(...)], ...})."
        )


def _sent_by_leave(lm: dspy.BaseLM, params: Mapping[str, Any]) -> bool:
    """Whether LiteLLM must be told to send a reasoning effort, because it does not know the model."""
    if not isinstance(_behind(lm), dspy.LM):
        return False
    provider, effort = params.get("custom_llm_provider"), params["reasoning_effort"]
    return not _known(lm.model, provider) and _refusal(lm.model, provider, (("reasoning_effort", effort),)) is not None


def _behind(lm: dspy.BaseLM) -> dspy.BaseLM:
    """Return the LM that stand-ins stand in for."""
    while isinstance(lm, StandInLM):
        lm = lm._lm
    return lm


def _takes_a_temperature(lm: dspy.BaseLM, params: Mapping[str, Any]) -> bool:
    """Whether a temperature that nobody set may be sent."""
    real = _behind(lm)
    if not isinstance(real, dspy.LM) or not isinstance(real.engine, str) or is_reasoning_model(real.model):
        return False
    # Some models take only one of these and a temperature.
    beside = params.get("top_p") not in (None, 1) or params.get("thinking") is not None
    return not beside and _supports_temperature(real.model, params.get("custom_llm_provider"))


@functools.lru_cache(maxsize=256)
def _supports_temperature(model: str, provider: str | None) -> bool:
    litellm = import_litellm()

    def ask() -> bool:
        name, found, *_ = litellm.get_llm_provider(model=model, custom_llm_provider=provider)
        return "temperature" in (litellm.get_supported_openai_params(model=name, custom_llm_provider=found) or ())

    known = _said(model, lambda: litellm.get_model_info(model, custom_llm_provider=provider)) or {}
    return bool(_said(model, ask)) and known.get("supports_sampling_params") is not False


@functools.lru_cache(maxsize=256)
def _known(model: str, provider: str | None) -> bool:
    return _said(model, lambda: import_litellm().get_model_info(model, custom_llm_provider=provider)) is not None


def _said(model: str, ask: Callable[[], Any]) -> Any:
    """Return what LiteLLM says of a model; None where it does not know the model or its provider."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 - LiteLLM raises one of several kinds
        logger.debug("LiteLLM does not know %s (%s).", model, type(error).__name__)
        return None


@functools.lru_cache(maxsize=1024)
def _refusal(model: str, provider: str | None, settings: tuple[tuple[str, Any], ...]) -> str | None:
    """Return LiteLLM's reason not to send these settings; None where it would send them, or cannot tell."""
    litellm = import_litellm()

    def ask() -> str | None:
        name, found, *_ = litellm.get_llm_provider(model=model, custom_llm_provider=provider)
        try:
            litellm.utils.get_optional_params(model=name, custom_llm_provider=found, **dict(settings))
        except litellm.UnsupportedParamsError as error:
            return str(error).removeprefix("litellm.UnsupportedParamsError: ").split(" To drop")[0].rstrip(". ") + "."
        return None

    reason: str | None = _said(model, ask)
    return reason


def deployment_of(lm: dspy.BaseLM) -> Hashable:
    """Return model, address and key, by which providers limit requests; LMs that differ in other settings share it.

    Compare it, but never show it: it may hold a key.
    """
    if not isinstance(lm, dspy.LM):  # its provider is not known
        return id(lm)
    address = [lm.kwargs.get(name) for name in ("api_base", "base_url", "api_key", "custom_llm_provider")]
    return canonical([lm.model, lm.model_type, *address, getattr(lm, "replicas", None)])


def effective_temperature(
    lm: dspy.BaseLM, config: Mapping[str, Any] | None = None, decoding: Decoding | None = None
) -> float | None:
    """Return the temperature a request is sent with; None where the LM is sent none or does not sample by it.

    At 0 all completions of a query are the same, so that drawing more than one is money for nothing.
    """
    if isinstance(lm, DummyLM):  # scripted answers: its fixed temperature of 0 says nothing
        return None
    value = request_params(lm, config, decoding).get("temperature")
    return None if value is None else float(value)


def _counts_reasoning(model: str, params: Mapping[str, Any]) -> bool:
    """Whether the limit of a completion is called `max_completion_tokens`."""
    return "max_completion_tokens" in params or is_reasoning_model(model)


def limit_output(params: Mapping[str, Any], model: str, most: int | None) -> dict[str, Any]:
    """Return request parameters with completions of at most `most` tokens; None leaves them as they are."""
    limited = dict(params)
    if most is not None:
        name = "max_completion_tokens" if _counts_reasoning(model, params) else "max_tokens"
        own = max_output_tokens(params)
        limited[name] = most if own is None else min(own, most)
        limited = _with_room(model, limited)
    return limited


def thinking_budget(model: str, params: Mapping[str, Any]) -> int:
    """Return the tokens that a model is told to think for at most; 0 where it is told no number of them.

    Providers refuse a request whose completions may not be longer than that.
    """
    thinking, effort = params.get("thinking"), params.get("reasoning_effort")
    if thinking is None and effort is not None:
        thinking = _thinking_for(model, params.get("custom_llm_provider"), effort)
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    return budget if isinstance(budget, int) else 0


@functools.lru_cache(maxsize=256)
def _thinking_for(model: str, provider: str | None, effort: Any) -> Any:
    """Return the thinking that LiteLLM makes of a reasoning effort, where a model has no efforts of its own."""
    litellm = import_litellm()

    def ask() -> Any:
        name, found, *_ = litellm.get_llm_provider(model=model, custom_llm_provider=provider)
        options = litellm.utils.get_optional_params(model=name, custom_llm_provider=found, reasoning_effort=effort)
        return options.get("thinking")

    return _said(model, ask)


_LEAST_THINKING = 1024  # tokens; Anthropic takes no smaller budget


def _with_room(model: str, params: dict[str, Any]) -> dict[str, Any]:
    """Lower the budget for thinking where it leaves no room for an answer, to half of the limit of a completion."""
    limit, budget = max_output_tokens(params), thinking_budget(model, params)
    if limit is None or budget < limit:
        return params
    rest = {k: v for k, v in params.items() if k not in ("thinking", "reasoning_effort")}
    lowered = max(limit // 2, _LEAST_THINKING)
    fits = lowered < limit
    _tell_of_thinking(model, budget, limit, lowered if fits else 0)
    return {**rest, "thinking": {"type": "enabled", "budget_tokens": lowered}} if fits else rest


@functools.lru_cache(maxsize=256)
def _tell_of_thinking(model: str, budget: int, limit: int, lowered: int) -> None:
    """Say once what becomes of a budget for thinking."""
    now = f"it thinks for at most {lowered} tokens" if lowered else "it does not think at all"
    logger.warning(
        "%s may think for %d tokens, but a completion is limited to %d. With this limit %s.", model, budget, limit, now
    )


def max_output_tokens(params: Mapping[str, Any]) -> int | None:
    """Return the limit on the tokens of one completion, None if there is none."""
    limits = (params.get(name) for name in ("max_completion_tokens", "max_tokens"))
    return next((value for value in limits if isinstance(value, int) and value > 0), None)


@functools.lru_cache(maxsize=256)
def supports_n(model: str, provider: str | None = None) -> bool:
    """Ask LiteLLM whether one request can return several completions. Unknown models get the benefit of the doubt."""
    ask = import_litellm().get_supported_openai_params
    known = _said(model, lambda: ask(model=model, custom_llm_provider=provider))
    return known is None or "n" in known


def canonical(value: Any) -> str:
    """Write a request as text that is equal for equal requests, in any process."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_describe)


def _describe(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, pydantic.BaseModel):
        return {"schema": value.model_json_schema()}
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    return repr(value)


def derive_seed(base: int, key: Sequence[Any] | str | int, messages: str, index: int) -> int:
    """Return the seed of one request: different for every draw, the same whenever the run is repeated.

    Args:
        base: The LM's own `seed`.
        key: What the caller draws for, such as (round, position).
        messages: The request in canonical form.
        index: Which request of this draw it is.

    Returns:
        A number in [0, 2**31), which every provider accepts.
    """
    text = json.dumps([base, key, messages, index], default=str, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big") % 2**31
