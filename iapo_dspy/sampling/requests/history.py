"""Writes the requests of a deployed program to DSPy's history and usage tracker."""

from __future__ import annotations

import contextvars
import datetime
import uuid

import dspy

from iapo_dspy.sampling.requests.port import Exchange

__all__ = ["Recorder"]


class Recorder:
    """Writes a request to DSPy's history and usage tracker, as DSPy writes its own LM calls."""

    def __init__(self, lm: dspy.BaseLM) -> None:
        self._lm = lm
        # The tracker and the calling modules belong to the context of the caller, not to that of the loop.
        self._context = contextvars.copy_context()

    def __call__(self, exchange: Exchange) -> None:
        """Write one request."""
        self._context.run(self._write, exchange)

    def _write(self, exchange: Exchange) -> None:
        usage = dict(getattr(exchange.response, "usage", None) or {})
        if exchange.usage.recounted:
            usage |= {
                "prompt_tokens": exchange.usage.prompt_tokens,
                "completion_tokens": exchange.usage.completion_tokens,
                "total_tokens": exchange.usage.tokens,
            }
        if dspy.settings.usage_tracker is not None:
            dspy.settings.usage_tracker.add_usage(self._lm.model, usage)
        self._lm.update_history(
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
                "model": self._lm.model,
                "response_model": getattr(exchange.response, "model", None),
                "model_type": self._lm.model_type,
            }
        )
