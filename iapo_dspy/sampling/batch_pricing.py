"""What a provider's batch jobs cost."""

from __future__ import annotations

import dspy

from iapo_dspy.sampling.params import import_litellm
from iapo_dspy.sampling.pricing import Price, Prices, price_of

__all__ = ["batch_price"]


def batch_price(lm: dspy.BaseLM, discount: float | None = None, prices: Prices | None = None) -> Price | None:
    """Return the price of an LM's batch jobs.

    Args:
        lm: The language model.
        discount: Share of the ordinary price that jobs are cheaper by, in [0, 1). None: LiteLLM's own batch prices of
            the model; where it has none, or the user gives prices, the price as it stands.
        prices: The user's own prices, for ordinary requests unless there is no `discount`.

    Returns:
        The price, or None where the ordinary one is not known.
    """
    price = price_of(lm, prices)
    if price is None:
        return None
    read = write = 1.0 - (discount or 0.0)
    own = lm.kwargs.get("input_cost_per_token") is not None or (prices is not None and prices.of(lm.model) is not None)
    if discount is None and not own:
        info = import_litellm().get_model_info(lm.model)
        read = _share(info.get("input_cost_per_token_batches"), price.prompt)
        write = _share(info.get("output_cost_per_token_batches"), price.completion)
    return Price(
        prompt=price.prompt * read,
        completion=price.completion * write,
        prompt_bound=price.prompt_bound * read,
        completion_bound=price.completion_bound * write,
    )


def _share(batch: float | None, ordinary: float) -> float:
    return batch / ordinary if batch is not None and ordinary > 0 else 1.0
