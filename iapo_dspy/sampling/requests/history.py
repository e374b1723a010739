"""Writes the requests of a deployed program to DSPy's history and usage tracker."""

from __future__ import annotations

import contextvars
import datetime
import uuid
from collections.abc import Callable

import dspy

from iapo_dspy.sampling.requests.port import Exchange


def recorder(lm: dspy.BaseLM) -> Callable[[Exchange], None]:
    """Return a function that writes requests as DSPy writes its own LM calls."""
    # The tracker and the calling modules belong to the context of the caller, not to that of the loop.
    context = contextvars.copy_context()
    return lambda exchange: context.run(_write, lm, exchange)


def _write(lm: dspy.BaseLM, exchange: Exchange) -> None:
    usage = dict(getattr(exchange.response, "usage", None) or {})
    if exchange.usage.recounted:
        usage |= {
            "prompt_tokens": exchange.usage.prompt_tokens,
            "completion_tokens": exchange.usage.completion_tokens,
            "total_tokens": exchange.usage.tokens,
        }
    if dspy.settings.usage_tracker is not None:
        dspy.settings.usage_tracker.add_usage(lm.model, usage)
    lm.update_history(
        {
            "prompt": None,
            "messages": list(exchange.messages),
            "kwargs": {k: v for k, v in exchange.params.items() if not k.startswith("api_")},
            "response": exchange.response,
            "outputs": list(exchange.outputs),
            "usage": usage,
            "cost": exchange.usage.usd,
            "timestamp": datetime.datetime.now().isoformat(),
            "uuid": str(uuid.uuid4()),
            "model": lm.model,
            "response_model": getattr(exchange.response, "model", None),
            "model_type": lm.model_type,
        }
    )
