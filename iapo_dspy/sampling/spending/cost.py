"""The cost of a completion: a weighted sum of its usage, with weights that the user chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import RESOURCES, is_number
from iapo_dspy.sampling.spending.pricing import Prices, price_of
from iapo_dspy.sampling.spending.usage import Usage

_UNITS = {
    "completion_tokens": "output tokens",
    "prompt_tokens": "prompt tokens",
    "usd": "dollars",
    "seconds": "seconds",
}


def use_of(taken: Sequence[Usage]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Add up the resources that the completions of one pull took.

    Args:
        taken: The usage of each of its completions [m].

    Returns:
        All that they took of each resource, and the part of it that a query takes once [R] each; NaN for dollars where
        a price is not known, and for seconds where nothing came back.
    """
    total = sum(taken, Usage())
    longest = max((t.latency_s for t in taken if t.tokens), default=0.0) or float("nan")
    used = {
        "tokens": total.completion_tokens,
        "prompt_tokens": total.prompt_tokens,
        "usd": float("nan") if total.unpriced else total.usd or 0.0,
        "seconds": longest,
    }
    once = {
        "tokens": total.shared_completion_tokens,
        "prompt_tokens": total.shared_tokens,
        "usd": total.shared_usd,
        "seconds": longest,
    }
    return tuple(float(used[r]) for r in RESOURCES), tuple(float(once[r]) for r in RESOURCES)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a call: a weighted sum of tokens, dollars and seconds.

        Cost()                                          # output tokens, the default
        Cost(completion_tokens=1, prompt_tokens=0.25)   # four prompt tokens cost as much as one output token
        Cost(usd=1)                                     # dollars, at LiteLLM's prices
        Cost(usd_per_million=(0.15, 0.60))              # dollars, at your own prices for input and output
        Cost(usd=1, seconds=0.002)                      # a second of waiting is worth a fifth of a cent

    Only the ratios of the weights matter: costs are scaled such that the average call for one completion costs 0.01 at
    `Preference(cost=1)`. A request with n completions pays for its prompt tokens and its waiting time once;
    they are a fixed part per query, and the rest is a part per completion. Where the provider does not take n, each
    completion is a request of its own and pays for its prompt tokens.

    Args:
        completion_tokens: Weight of an output token, >= 0. It is 1 where no weight is given (or `usd` is, with prices).
        prompt_tokens: Weight of a prompt token, >= 0.
        usd: Weight of a dollar, >= 0.
        seconds: Weight of a second between sending a query and having its last completion, >= 0.
        usd_per_million: Your prices in dollars per million tokens, (input, output), for every LM of the run, or a
            mapping from model strings ("openai/gpt-4o-mini", or "gpt-4o-mini" for any provider) to such pairs. They
            take the place of LiteLLM's table, in budgets of dollars, quotes and reports too.

    Raises:
        ConfigurationError: A weight or a price is not a finite number >= 0, or all weights are 0.
    """

    completion_tokens: float = None  # type: ignore[assignment]  # `None` becomes 0, or 1 where no weight is given
    prompt_tokens: float = None  # type: ignore[assignment]
    usd: float = None  # type: ignore[assignment]
    seconds: float = None  # type: ignore[assignment]
    usd_per_million: tuple[float, float] | Mapping[str, tuple[float, float]] | Prices | None = None

    def __post_init__(self) -> None:
        prices = Prices.read(self.usd_per_million)
        object.__setattr__(self, "usd_per_million", prices)
        given: dict[str, Any] = {name: getattr(self, name) for name in _UNITS}
        if all(value is None for value in given.values()):
            given["completion_tokens" if prices is None else "usd"] = 1.0
        for name, value in given.items():
            value = 0.0 if value is None else value
            if not is_number(value) or value < 0:
                raise ConfigurationError(f"Cost({name}={value!r}): give a finite number >= 0.")
            object.__setattr__(self, name, float(value))
        if not any(getattr(self, name) for name in _UNITS):
            raise ConfigurationError(
                "Cost: every weight is 0. Leave them out to count output tokens; a preference that does not mind the "
                "cost is Preference(cost=0)."
            )

    @property
    def prices(self) -> Prices | None:
        """The user's own prices, if any."""
        prices = self.usd_per_million
        assert prices is None or isinstance(prices, Prices)  # `__post_init__` has read them
        return prices

    @property
    def unit(self) -> str:
        """The unit in words: "output tokens", "dollars", or the sum that the cost is."""
        parts = [(getattr(self, name), unit) for name, unit in _UNITS.items() if getattr(self, name)]
        if len(parts) == 1 and parts[0][0] == 1:
            return parts[0][1]
        return " + ".join(f"{weight:g} {unit}" for weight, unit in parts)

    def split(self, taken: Sequence[Usage]) -> tuple[float, tuple[float, ...]]:
        """Cost the completions of one pull or call.

        Args:
            taken: The usage of each of its completions [m]. A price that is not known counts as 0; `check` has refused
                it before.

        Returns:
            The part that is paid once for all of them, and the part of each [m]. They add up to the cost of the pull.
        """
        total = sum(taken, Usage())
        once = self.prompt_tokens * total.shared_tokens + self.completion_tokens * total.shared_completion_tokens
        once += self.usd * total.shared_usd + self.seconds * total.latency_s
        return once, tuple(
            self.completion_tokens * max(t.completion_tokens - t.shared_completion_tokens, 0.0)
            + self.prompt_tokens * max(t.prompt_tokens - t.shared_tokens, 0.0)
            + self.usd * max((t.usd or 0.0) - t.shared_usd, 0.0)
            for t in taken
        )

    def repriced(self, usd_per_million: tuple[float, float] | Mapping[str, tuple[float, float]] | Prices) -> Cost:
        """Return the same cost at other prices.

        Raises:
            ConfigurationError: The prices are not pairs of finite numbers >= 0.
        """
        if usd_per_million is None:
            raise ConfigurationError(
                "usd_per_million=None: give dollars per million (input, output) tokens, such as (0.15, 0.60)."
            )
        return replace(self, usd_per_million=usd_per_million)

    def check(self, lm: dspy.BaseLM) -> None:
        """Refuse an LM whose completions have no known cost, before anything is sent.

        Raises:
            ConfigurationError: Dollars count, and the LM's price is not known.
        """
        if self.usd and price_of(lm, self.prices) is None:
            raise ConfigurationError(
                f"The cost counts dollars, and LiteLLM knows no price of {lm.model!r}. Give yours, in dollars per "
                f"million input and output tokens: Cost(usd_per_million={{{lm.model!r}: (0.15, 0.60)}}), or count "
                "tokens: Cost(completion_tokens=1)."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back."""
        weights = {name: getattr(self, name) for name in _UNITS if getattr(self, name)}
        return {**weights, **({"usd_per_million": self.prices.to_dict()} if self.prices else {})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cost:
        """Read the data of `to_dict`.

        Raises:
            ConfigurationError: It has a name that is not a field of a cost.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ConfigurationError(f"A saved cost has {unknown}, which this version does not know; it knows {known}.")
        return cls(**data)
