"""Usage of the judges of a deployed call: LMs and embedding models that objectives ask while it selects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.usage_tracker import UsageTracker

from iapo_dspy.sampling.spending.pricing import Price, Prices, price_of, price_of_model
from iapo_dspy.sampling.spending.usage import Usage


class JudgeUsage(UsageTracker):  # type: ignore[misc]  # dspy ships no types
    """A usage tracker that adds up tokens and dollars, and passes everything on to the one around it. Thread-safe.

    Args:
        outer: The tracker around it, such as that of `dspy.track_usage()`; None where there is none.
        prices: The user's own prices.

    Attributes:
        prices: The user's own prices.
        usage: What the judges took by now; the dollars are None as soon as a price is not known.
        watcher: A DSPy callback that looks at the LMs that are called, for they may have prices of their own.
    """

    def __init__(self, outer: UsageTracker | None, prices: Prices | None) -> None:
        super().__init__()
        self.prices = prices
        self.watcher = LMWatcher(self._price_of)
        self._outer = outer
        self._lock = threading.Lock()
        self._price: dict[str, Price | None] = {}
        self.usage = Usage(usd=0.0)

    def __deepcopy__(self, memo: dict[int, Any]) -> JudgeUsage:
        """Return itself: `dspy.Parallel` copies trackers for its threads, and the counts of copies would be lost."""
        return self

    def _price_of(self, lm: Any) -> None:
        if isinstance(lm, dspy.BaseLM):
            self.know(str(lm.model), price_of(lm, self.prices))

    def know(self, model: str, price: Price | None) -> None:
        """Set the price of a model, unless it is set."""
        with self._lock:
            self._price.setdefault(model, price)

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Count one call; DSPy's LMs report theirs here, cache hits excepted."""
        if self._outer is not None:
            self._outer.add_usage(lm, usage_entry)
        super().add_usage(lm, usage_entry)
        prompt = _count(usage_entry, "prompt_tokens", "input_tokens")
        completion = _count(usage_entry, "completion_tokens", "output_tokens")
        with self._lock:
            if lm not in self._price:
                self._price[lm] = price_of_model(lm, {}, self.prices)
            price = self._price[lm]
            usd = price.of(prompt, completion) if price is not None else None
            self.usage += Usage(prompt_tokens=prompt, completion_tokens=completion, usd=usd)


def _count(entry: Mapping[str, Any], *names: str) -> int:
    return next((int(entry[n]) for n in names if isinstance(entry.get(n), (int, float))), 0)


class LMWatcher(BaseCallback):  # type: ignore[misc]  # dspy ships no types
    """A DSPy callback that shows every LM to a function before it is called."""

    def __init__(self, see: Callable[[Any], None]) -> None:
        self._see = see

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Called by DSPy before every call of an LM."""
        self._see(instance)
