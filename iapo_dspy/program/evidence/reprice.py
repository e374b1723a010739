"""The observations of a run at other prices of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.prompts.prompt import PromptState
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.sampling.spending.pricing import Price
from iapo_dspy.types import Observations

_TOKENS, _PROMPT, _USD, _SECONDS = (RESOURCES.index(r) for r in ("tokens", "prompt_tokens", "usd", "seconds"))


def prices_of(
    prompts: Sequence[PromptState], programs: Sequence[dspy.Module], cost: Cost, model: str | None
) -> list[Price]:
    """Return the price of each prompt's LM: of the one that it was measured with, its predictor's, or the configured.

    `model` is the model string of the LM of predictors without one of their own; None where it is not known.

    Raises:
        ConfigurationError: There is no price for an LM, or a prompt's predictors have LMs of different prices.
    """
    table = cost.prices
    assert table is not None  # `Cost.repriced` was given some
    found: list[Price] = []
    for index, (prompt, program) in enumerate(zip(prompts, programs, strict=True)):
        own = {name: p.lm for name, p in program.named_predictors() if p.lm is not None}
        asked = {**own, **prompt.lms}
        models = sorted({asked[name].model if name in asked else model or "" for name in prompt.state})
        prices = {table.of(m) for m in models}
        if None in prices:
            raise ConfigurationError(
                f"There is no price for the LM of prompt {index}, {models}: usd_per_million has "
                f"{sorted(table.to_dict())}. Name it, configure the LM, or give one pair (input, output) for all."
            )
        if len(prices) > 1:
            raise ConfigurationError(
                f"Prompt {index} asks several LMs of different prices, {models}, and the evidence has their tokens in "
                "one sum. Compile again with Cost(usd_per_million=...)."
            )
        found.extend(p for p in prices if p is not None)
    return found


def at_prices(observations: Observations, cost: Cost, prices: Sequence[Price]) -> Observations:
    """Return observations as they would have been at these prices: the same tokens, other dollars and costs.

    The completions of a pull share its cost evenly.

    Args:
        observations: The observations, with the resources that pulls took.
        cost: The unit of costs.
        prices: Of each prompt's LM [P].

    Raises:
        ConfigurationError: It is not known how many tokens the pulls took.
    """
    if not len(observations.pulls):
        return observations
    if observations.used is None or observations.once is None:
        raise ConfigurationError(
            "This program does not know how many tokens its completions took: it was saved by an older version. "
            "Compile it again to change prices."
        )
    prompt = observations.pulls.prompt
    dear_in = np.array([p.prompt for p in prices])[prompt]
    dear_out = np.array([p.completion for p in prices])[prompt]
    used, once = observations.used.copy(), observations.once.copy()
    used[:, _USD] = dear_in * used[:, _PROMPT] + dear_out * used[:, _TOKENS]
    once[:, _USD] = dear_in * once[:, _PROMPT] + dear_out * once[:, _TOKENS]
    weights = np.zeros(len(RESOURCES))
    weights[[_TOKENS, _PROMPT, _USD, _SECONDS]] = cost.completion_tokens, cost.prompt_tokens, cost.usd, cost.seconds
    overhead = once @ weights
    each = ((used - once) @ weights) / observations.pulls.size
    return replace(observations, used=used, once=once, overhead=overhead, cost=np.repeat(each, observations.pulls.size))
