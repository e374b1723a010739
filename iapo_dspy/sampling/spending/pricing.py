"""Prices of language models, and upper bounds of requests."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import is_number
from iapo_dspy.sampling.lm.params import canonical, import_litellm, max_output_tokens
from iapo_dspy.sampling.spending.budget import Budget, RequestMeter, Reservation
from iapo_dspy.sampling.spending.usage import Usage

logger = logging.getLogger(__name__)

LIKELY_MARGIN = 1.25
"""The margin that a forecast allows for tokenizers that are not the model's."""
_PER_MESSAGE = 16  # tokens that chat templates add to a message
_TEMPLATE = 8  # tokens that chat templates usually add to a message
_PER_MEDIUM = 4096  # tokens that an image or a file may cost beyond its address


@dataclass(frozen=True, kw_only=True)
class Price:
    """Dollars per token; `bound` fields hold the dearest rate that may apply (long contexts cost more)."""

    prompt: float
    completion: float
    prompt_bound: float
    completion_bound: float
    own: bool = False  # the user's, or of the LM's settings; not of LiteLLM's table

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the dollars of one request."""
        return prompt_tokens * self.prompt + completion_tokens * self.completion

    def bound(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the dollars of one request at most."""
        return prompt_tokens * self.prompt_bound + completion_tokens * self.completion_bound


@dataclass(frozen=True)
class Prices:
    """The user's own prices.

    Attributes:
        per_million: (model, dollars per million input tokens, dollars per million output tokens); the model "" stands
            for every one that is not named.
    """

    per_million: tuple[tuple[str, float, float], ...]

    @classmethod
    def read(cls, value: Any) -> Prices | None:
        """Read a pair (input, output), or a mapping from model strings to such pairs.

        Raises:
            ConfigurationError: It is something else, or a price is not a finite number >= 0.
        """
        if value is None or isinstance(value, Prices):
            return value
        pairs = value if isinstance(value, Mapping) else {"": value}
        return cls(tuple((str(model), *_pair(pair)) for model, pair in pairs.items()))

    def of(self, model: str) -> Price | None:
        """Return the price under a model's full name, under its name without the provider, or under ""."""
        table = {name: rates for name, *rates in self.per_million}
        for name in (model, model.split("/", 1)[-1], ""):
            if name in table:
                return _flat(*(rate / 1e6 for rate in table[name]))
        return None

    def to_dict(self) -> dict[str, tuple[float, float]]:
        """Return plain JSON data that `read` reads back."""
        return {model: (prompt, completion) for model, prompt, completion in self.per_million}


def _pair(value: Any) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(pair) != 2 or not all(is_number(rate) and rate >= 0 for rate in pair):
        raise ConfigurationError(
            f"usd_per_million={value!r}: give dollars per million (input, output) tokens, such as (0.15, 0.60), or a "
            "mapping from model strings to such pairs."
        )
    return float(pair[0]), float(pair[1])


def price_of(lm: dspy.BaseLM, prices: Prices | None = None) -> Price | None:
    """Return the user's price, else that of the LM's own settings, else LiteLLM's (offline table), else None."""
    lm = getattr(lm, "metered_lm", lm)
    listed = isinstance(lm, dspy.LM) and type(lm.model) is str and isinstance(lm.engine, str)
    return price_of_model(lm.model, lm.kwargs, prices, listed=listed)


def price_of_model(
    model: str, settings: Mapping[str, Any], prices: Prices | None = None, *, listed: bool = True
) -> Price | None:
    """Return the price of a model: the user's, that of its settings, LiteLLM's where it may be `listed`, or None."""
    given = prices.of(model) if prices is not None else None
    if given is not None:
        return given
    own = (settings.get("input_cost_per_token"), settings.get("output_cost_per_token"))
    if own != (None, None):
        return _flat(*own)
    return _table_price(model) if listed else None


def _flat(prompt: Any, completion: Any) -> Price:
    read, written = float(prompt or 0.0), float(completion or 0.0)
    return Price(prompt=read, completion=written, prompt_bound=read, completion_bound=written, own=True)


@functools.lru_cache(maxsize=256)
def _table_price(model: str) -> Price | None:
    try:
        info = import_litellm().get_model_info(model)
    except Exception as error:  # noqa: BLE001 - an unknown model raises one of several kinds; unknown is not zero
        logger.debug("LiteLLM has no price for %s (%s).", model, type(error).__name__)
        return None

    def dearest(prefix: str) -> float:
        rates = [v for k, v in info.items() if k == prefix or k.startswith(f"{prefix}_above")]
        return max((float(r) for r in rates if isinstance(r, (int, float))), default=0.0)

    prompt, completion = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if prompt is None or completion is None:
        return None
    return Price(
        prompt=float(prompt),
        completion=float(completion),
        prompt_bound=dearest("input_cost_per_token"),
        completion_bound=dearest("output_cost_per_token"),
    )


def check_budget(lm: dspy.BaseLM, params: Mapping[str, Any], budget: Budget, prices: Prices | None = None) -> None:
    """Refuse a budget that cannot be held, before anything is sent.

    Raises:
        ConfigurationError: The budget limits tokens or dollars, but a completion's length is not limited; or it
            limits dollars, and the price is unknown.
    """
    if (budget.tokens is not None or budget.usd is not None) and max_output_tokens(params) is None:
        raise ConfigurationError(
            f"A budget of tokens or dollars needs a limit on the length of a completion, and {lm.model!r} has none. "
            "Set it: dspy.LM(..., max_tokens=1000), or Decoding(max_tokens=1000)."
        )
    if budget.usd is not None and price_of(lm, prices) is None:
        raise ConfigurationError(
            f"A budget of dollars needs a price, and LiteLLM knows none for {lm.model!r}. Set it: "
            "Search(cost_unit=Cost(usd_per_million=(0.15, 0.60))), or dspy.LM(..., input_cost_per_token=1e-7, "
            "output_cost_per_token=4e-7), or leave out Budget(usd=...)."
        )


def prompt_bound(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int:
    """Return an upper bound of a prompt's tokens: no tokenizer makes more tokens than there are bytes."""
    size = 2 * _PER_MESSAGE
    for message in messages:
        content = message.get("content")
        size += _PER_MESSAGE
        if isinstance(content, str):
            size += len(content.encode(errors="surrogatepass"))
        else:
            size += len(canonical(dict(message)).encode(errors="surrogatepass"))
            size += sum(
                _PER_MEDIUM for block in content or () if isinstance(block, Mapping) and block.get("type") != "text"
            )
    for name in ("tools", "functions", "response_format"):
        if params.get(name) is not None:
            size += len(canonical(params[name]).encode(errors="surrogatepass"))
    return size


def likely_prompt_bound(model: str, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int:
    """Return a tight bound of a prompt's tokens, for forecasts: the tokenizer's count, and a quarter of it.

    The tokenizer is the model's as far as LiteLLM has it; chat templates add some tokens to each message. A limit on
    spending is held by `prompt_bound`, which no tokenizer can exceed.
    """
    surely = prompt_bound(messages, params)
    if any(not isinstance(message.get("content"), str) for message in messages):
        return surely
    tools = sum(
        count_text(model, canonical(params[name]))
        for name in ("tools", "functions", "response_format")
        if params.get(name) is not None
    )
    counted = count_tokens(model, messages) + tools
    return min(surely, math.ceil(LIKELY_MARGIN * counted) + _TEMPLATE * (len(messages) + 1))


async def reserve_request(
    meter: RequestMeter,
    lm: dspy.BaseLM,
    messages: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    n: int,
    prices: Prices | None = None,
) -> tuple[Reservation, int]:
    """Set the upper bound of a request for n completions aside, where a budget limits tokens or dollars.

    Returns:
        The reservation, and the upper bound of the prompt's tokens in it.

    Raises:
        BudgetExceeded: It does not fit into the budget.
        ConfigurationError: See `check_budget`.
    """
    budget = meter.budget
    if budget is None or not meter.bounds_requests:
        return await meter.areserve(), 0
    check_budget(lm, params, budget, prices)
    prompt, completion = prompt_bound(messages, params), n * (max_output_tokens(params) or 0)
    price = price_of(lm, prices) if budget.usd is not None else None
    usd = price.bound(prompt, completion) if price is not None else 0.0
    return await meter.areserve(tokens=prompt + completion, usd=usd), prompt


def count_text(model: str, text: str) -> int:
    """Count a text by the model's tokenizer, as far as LiteLLM has it."""
    return int(import_litellm().token_counter(model=model, text=text)) if text else 0


def count_tokens(model: str, messages: Sequence[Mapping[str, Any]]) -> int:
    """Count a prompt by the model's tokenizer, as far as LiteLLM has it."""
    return int(import_litellm().token_counter(model=model, messages=list(messages)))


def billed(response: Any, usage: Usage, price: Price | None) -> float | None:
    """Return the dollars of one request, None where the price is unknown.

    LiteLLM's own sum includes discounts for cached prompt tokens. Ours is used for the user's prices and for usage that
    differs from the server's.
    """
    told = getattr(response, "usage", None)
    as_told = getattr(told, "completion_tokens", None) == usage.completion_tokens and not usage.recounted
    if as_told and not (price is not None and price.own):
        cost = (getattr(response, "_hidden_params", None) or {}).get("response_cost")
        if isinstance(cost, (int, float)):
            return float(cost)
    return None if price is None else price.of(usage.prompt_tokens, usage.completion_tokens)


def batch_price(lm: dspy.BaseLM, discount: float | None = None, prices: Prices | None = None) -> Price | None:
    """Return the price of an LM's batch jobs.

    Args:
        lm: The language model.
        discount: Share of the ordinary price that jobs are cheaper by, in [0, 1). None: LiteLLM's own batch prices of
            the model; where it has none, or the user gives prices, the price as it stands.
        prices: The user's own prices. They are for ordinary requests; a `discount` lowers them.

    Returns:
        The price, or None where the ordinary one is not known.
    """
    price = price_of(lm, prices)
    if price is None:
        return None
    read = write = 1.0 - (discount or 0.0)
    if discount is None and not price.own:
        info = import_litellm().get_model_info(lm.model)
        read = _share(info.get("input_cost_per_token_batches"), price.prompt)
        write = _share(info.get("output_cost_per_token_batches"), price.completion)
    return replace(
        price,
        prompt=price.prompt * read,
        completion=price.completion * write,
        prompt_bound=price.prompt_bound * read,
        completion_bound=price.completion_bound * write,
    )


def _share(batch: float | None, ordinary: float) -> float:
    return batch / ordinary if batch is not None and ordinary > 0 else 1.0
