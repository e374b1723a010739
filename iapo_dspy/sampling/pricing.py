"""What a request will take at most, and what it took."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.params import canonical, import_litellm, max_output_tokens

__all__ = ["Price", "Usage", "check_budget", "check_usage", "price_of", "prompt_bound", "whole_text"]

logger = logging.getLogger(__name__)

_PER_MESSAGE = 16  # tokens that chat templates add to a message
_PER_MEDIUM = 4096  # tokens that an image or a file may cost beyond its address


@dataclass(frozen=True, kw_only=True)
class Price:
    """Dollars per token; `bound` fields hold the dearest rate that may apply (long contexts cost more)."""

    prompt: float
    completion: float
    prompt_bound: float
    completion_bound: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the dollars of one request."""
        return prompt_tokens * self.prompt + completion_tokens * self.completion

    def bound(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the dollars of one request at most."""
        return prompt_tokens * self.prompt_bound + completion_tokens * self.completion_bound


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one request; `recounted` where what the provider reported cannot be right."""

    prompt_tokens: int
    completion_tokens: int
    recounted: bool = False


def price_of(lm: dspy.BaseLM) -> Price | None:
    """Return the price from the LM's own settings, else from LiteLLM's offline table, else None."""
    own = (lm.kwargs.get("input_cost_per_token"), lm.kwargs.get("output_cost_per_token"))
    if own[0] is not None or own[1] is not None:
        prompt, completion = float(own[0] or 0.0), float(own[1] or 0.0)
        return Price(prompt=prompt, completion=completion, prompt_bound=prompt, completion_bound=completion)
    if not isinstance(lm, dspy.LM) or type(lm.model) is not str or not isinstance(lm.engine, str):
        return None
    return _table_price(lm.model)


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


def check_budget(lm: dspy.BaseLM, params: Mapping[str, Any], *, tokens: bool, usd: bool) -> None:
    """Refuse a budget that cannot be held, before anything is sent.

    Raises:
        ConfigurationError: The budget limits tokens or dollars, but a completion's length is not limited; or it
            limits dollars, and the price is unknown.
    """
    if (tokens or usd) and max_output_tokens(params) is None:
        raise ConfigurationError(
            f"A budget of tokens or dollars needs a limit on the length of a completion, and {lm.model!r} has none. "
            "Set it: dspy.LM(..., max_tokens=1000), or Decoding(max_tokens=1000)."
        )
    if usd and price_of(lm) is None:
        raise ConfigurationError(
            f"A budget of dollars needs a price, and LiteLLM knows none for {lm.model!r}. Set it: "
            "dspy.LM(..., input_cost_per_token=1e-7, output_cost_per_token=4e-7), or leave out Budget(usd=...)."
        )


def prompt_bound(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int:
    """Return more tokens than the prompt can have: no tokenizer makes more tokens than there are bytes."""
    size = 2 * _PER_MESSAGE
    for message in messages:
        content = message.get("content")
        size += _PER_MESSAGE
        if isinstance(content, str):
            size += len(content.encode())
        else:
            size += len(canonical(dict(message)).encode())
            size += sum(
                _PER_MEDIUM for block in content or () if isinstance(block, Mapping) and block.get("type") != "text"
            )
    for name in ("tools", "functions", "response_format"):
        if params.get(name) is not None:
            size += len(canonical(params[name]).encode())
    return size


def check_usage(
    *,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    texts: Sequence[str | None],
    truncated: int,
    limit: int | None,
    prompt_tokens: Any,
    completion_tokens: Any,
) -> Usage:
    """Take the provider's usage of a whole request, or count anew where it cannot be right.

    Some servers leave usage out, and some count one choice of n. It cannot be right when there are fewer tokens than
    choices that are not empty, or than `max_tokens` for every choice that was cut off there.

    Args:
        model: Whose tokenizer a new count uses, as far as LiteLLM has it.
        messages: What was sent.
        texts: What came back, one per choice.
        truncated: How many choices were cut off at the limit.
        limit: `max_tokens`.
        prompt_tokens: As reported.
        completion_tokens: As reported.
    """
    full = [text for text in texts if text]
    least = max(len(full), truncated * (limit or 0))
    sound = isinstance(prompt_tokens, int) and isinstance(completion_tokens, int) and prompt_tokens > 0
    if sound and completion_tokens >= least:
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    if not full and not messages:
        return Usage(prompt_tokens=0, completion_tokens=0, recounted=True)
    counter = import_litellm().token_counter
    if not (isinstance(prompt_tokens, int) and prompt_tokens > 0):
        prompt_tokens = int(counter(model=model, messages=list(messages)))
    counted = sum(int(counter(model=model, text=text)) for text in full)
    logger.debug("Usage of %d choices from %s cannot be right; recounted.", len(texts), model)
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=max(counted, least), recounted=True)


def whole_text(output: Any) -> str | None:
    """Everything a choice made the LM write, for counting."""
    if isinstance(output, str) or output is None:
        return output
    parts = [output.get("reasoning_content"), output.get("text")]
    parts += [canonical(call) for call in output.get("tool_calls") or ()]
    return "\n".join(p for p in parts if p) or None
