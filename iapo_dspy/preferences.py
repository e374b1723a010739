"""Preferences of users: weights of the objectives, exchange rates for resources that calls take, and hard caps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.errors import ConfigurationError

RESOURCES = ("tokens", "prompt_tokens", "usd", "seconds")
"""Resources of a call, the R axis: output tokens, prompt tokens, dollars, and seconds until its last completion."""

CAPS = {"max_tokens": "tokens", "max_usd": "usd", "max_latency_s": "seconds"}
"""Hard cap -> the resource that it caps."""

UNITS = {"tokens": "output tokens", "prompt_tokens": "prompt tokens", "usd": "dollars", "seconds": "seconds"}
"""Resource -> its unit in words."""

_HUNDREDTH = 0.01
_MOST_POINTS = 10_000


@dataclass(frozen=True)
class Preference:
    """The wishes of a user (the paper's context): weights of the objectives, a weight of the cost, and hard caps.

        Preference("quality")                                    # the best there is, whatever it costs
        Preference("thrifty", cost=1.0)                          # a hundred of the student's completions = one point
        Preference.worth("careful", usd=0.001)                   # a tenth of a cent for one hundredth, per query
        Preference("snappy", max_latency_s=2)                    # the best arm that answers within two seconds
        Preference("free tier", cost=0.2, max_usd=0.0005)        # any of them with a cap
        Preference("safe", min_confidence=0.9)                   # nine of ten answers are right; else no answer

    Args:
        name: How it is called at deployment; may be left out for an ad hoc preference.
        cost: Weight of the cost, >= 0, relative to the student as it is: its average call for a single completion (in
            the run's unit: output tokens by default) costs 0.01, so `cost=1` says that a hundred of them are worth one
            whole point of the objective, whichever candidates there are.
        weights: Objective name -> weight >= 0, for strategies with several objectives. Objectives left out weigh 0.
            `None` means equal weights that sum to 1 (majority vote: the metric weighs 1).
        rates: Absolute prices: resource ("tokens", "prompt_tokens", "usd", "seconds") -> utility that one unit of it
            takes, >= 0. `Preference.worth` says the same in a user's words. They add to `cost`.
        max_tokens: Output tokens of one call at most, all N completions together, >= 1. Always kept: an arm is chosen
            whose completions fit, and each is sent with a limit of a N-th of the cap.
        max_usd: Dollars of one call at most, > 0.
        max_latency_s: Seconds from sending a call to its last completion at most, > 0, as measured while compiling.
        min_confidence: Among the calls that answer, at least this share is right, in (0, 1): calls that are not sure
            enough go on with further stages where that helps, and give no answer in the end. With Best-of-N, "right" is
            a score that more draws would hardly raise.

    Raises:
        ConfigurationError: A name that is empty, a weight or a rate that is negative or not a finite number, a resource
            that does not exist, a cap that nothing can keep, or a `min_confidence` outside of (0, 1).
    """

    name: str | None = None
    cost: float = field(default=0.0, kw_only=True)
    weights: Mapping[str, float] | None = field(default=None, kw_only=True)
    rates: Mapping[str, float] | None = field(default=None, kw_only=True)
    max_tokens: int | None = field(default=None, kw_only=True)
    max_usd: float | None = field(default=None, kw_only=True)
    max_latency_s: float | None = field(default=None, kw_only=True)
    min_confidence: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.name is not None and (not isinstance(self.name, str) or not self.name.strip()):
            raise ConfigurationError(f"Preference name {self.name!r}: give a non-empty string, or leave it out.")
        label = f"Preference({self.name!r})"
        object.__setattr__(self, "cost", _weight(self.cost, f"{label}: cost"))
        if self.weights is not None:
            if not isinstance(self.weights, Mapping) or not self.weights:
                raise ConfigurationError(f"{label}: weights must map objective names to numbers, got {self.weights!r}.")
            weights = {str(k): _weight(v, f"{label}: weight of {k!r}") for k, v in self.weights.items()}
            if not any(weights.values()):
                raise ConfigurationError(f"{label}: every objective weighs 0; give at least one of them a weight > 0.")
            object.__setattr__(self, "weights", dict(sorted(weights.items())))
        if self.rates is not None:
            if not isinstance(self.rates, Mapping) or not set(self.rates) <= set(RESOURCES):
                raise ConfigurationError(f"{label}: rates must map some of {RESOURCES} to numbers, got {self.rates!r}.")
            rates = {k: _weight(v, f"{label}: rate of {k}") for k, v in self.rates.items()}
            rates = {k: v for k, v in sorted(rates.items()) if v}
            object.__setattr__(self, "rates", rates or None)
        for name in CAPS:
            value = getattr(self, name)
            whole = name != "max_tokens" or (isinstance(value, (int, np.integer)) and value >= 1)
            if value is not None and not (is_number(value) and value > 0 and whole):
                kind = "a whole number >= 1" if name == "max_tokens" else "a finite number > 0"
                raise ConfigurationError(f"{label}: {name} is {value!r}; it must be {kind}, or left out.")
            if value is not None:  # plain numbers, which JSON can hold
                object.__setattr__(self, name, int(value) if name == "max_tokens" else float(value))
        if self.min_confidence is not None:
            if not is_number(self.min_confidence) or not 0 < self.min_confidence < 1:
                raise ConfigurationError(
                    f"{label}: min_confidence is {self.min_confidence!r}; it must be a number in (0, 1), such as 0.9, "
                    "or left out."
                )
            object.__setattr__(self, "min_confidence", float(self.min_confidence))

    @classmethod
    def worth(
        cls,
        name: str | None = None,
        *,
        usd: float | None = None,
        tokens: float | None = None,
        seconds: float | None = None,
        weights: Mapping[str, float] | None = None,
        max_tokens: int | None = None,
        max_usd: float | None = None,
        max_latency_s: float | None = None,
        min_confidence: float | None = None,
    ) -> Preference:
        """Return a preference by willingness to pay: the price of one hundredth of the objective per query.

            Preference.worth("careful", usd=0.001)           # 0.01 of the objective = a tenth of a cent
            Preference.worth("patient", usd=0.001, seconds=10)  # ... and = ten seconds of waiting

        The utility of a call is its weighted objective - 0.01 * (dollars / usd + output tokens / tokens + seconds /
        `seconds`), over those that are given.

        Args:
            name: As for `Preference`.
            usd: Dollars, > 0.
            tokens: Output tokens, > 0.
            seconds: Seconds of waiting, > 0.
            weights: As for `Preference`.
            max_tokens: As for `Preference`.
            max_usd: As for `Preference`.
            max_latency_s: As for `Preference`.
            min_confidence: As for `Preference`.

        Raises:
            ConfigurationError: Nothing is given, or a number that is not finite or not > 0.
        """
        given = {k: v for k, v in {"usd": usd, "tokens": tokens, "seconds": seconds}.items() if v is not None}
        for unit, value in given.items():
            if not is_number(value) or value <= 0:
                raise ConfigurationError(f"Preference.worth({unit}={value!r}): give a finite number > 0.")
        if not given:
            raise ConfigurationError(
                "Preference.worth(): say how much one hundredth of the objective is worth per query, such as "
                "usd=0.001, tokens=500 or seconds=2. Use Preference(name) where the cost does not matter."
            )
        rates = {unit: _HUNDREDTH / value for unit, value in given.items()}
        return cls(
            name,
            weights=weights,
            rates=rates,
            max_tokens=max_tokens,
            max_usd=max_usd,
            max_latency_s=max_latency_s,
            min_confidence=min_confidence,
        )

    def __hash__(self) -> int:
        """Hash by value, so that preferences can be dictionary keys."""
        return hash((self.name, self.wishes))

    @property
    def wishes(self) -> tuple[Any, ...]:
        """Everything but the name: preferences that wish the same get the same arm."""
        values = [getattr(self, f.name) for f in fields(self) if f.name != "name"]
        return tuple(tuple(v.items()) if isinstance(v, Mapping) else v for v in values)

    @property
    def caps(self) -> dict[str, float]:
        """Resource -> most that a call may take of it."""
        return {unit: float(getattr(self, name)) for name, unit in CAPS.items() if getattr(self, name) is not None}

    @property
    def resources(self) -> frozenset[str]:
        """The resources that it prices or caps by themselves, beside the run's cost."""
        return frozenset([*(self.rates or ()), *self.caps])

    def vector(self, objectives: Sequence[str]) -> NDArray[np.float64]:
        """Return the weights [K] in the order of `objectives`.

        Raises:
            ConfigurationError: A weight names an objective that does not exist.
        """
        if self.weights is None:
            return np.full(len(objectives), 1.0 / len(objectives))
        unknown = [k for k in self.weights if k not in objectives]
        if unknown:
            raise ConfigurationError(
                f"Preference({self.name!r}) weighs {unknown}, but the objectives are {list(objectives)}."
            )
        return np.array([self.weights.get(k, 0.0) for k in objectives])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back."""
        extra = {f.name: getattr(self, f.name) for f in fields(self)[3:] if getattr(self, f.name) is not None}
        if self.rates:
            extra["rates"] = dict(self.rates)
        return {"name": self.name, "cost": self.cost, "weights": dict(self.weights) if self.weights else None, **extra}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preference:
        """Read data that `to_dict` wrote; other keys are ignored."""
        known = {f.name for f in fields(cls)} - {"name"}
        return cls(data["name"], **{k: v for k, v in data.items() if k in known})

    def __str__(self) -> str:
        """Return it in words."""
        said = [f"weights {', '.join(f'{k}={v:g}' for k, v in self.weights.items())}"] if self.weights else []
        said += [f"cost weight {self.cost:g}"] if self.cost or not self.rates else []
        said += [f"0.01 worth {_HUNDREDTH / v:.4g} {UNITS[k]}" for k, v in (self.rates or {}).items()]
        said += [f"at most {v:.6g} {UNITS[k]}" for k, v in self.caps.items()]
        said += [f"at least {self.min_confidence:g} of the answers right"] if self.min_confidence is not None else []
        return f"{self.name or 'unnamed'} ({', '.join(said)})"


def preference_grid(
    *objectives: str,
    costs: Sequence[float] = (0.0, 0.2, 1.0),
    steps: int = 10,
    edges: bool = False,
) -> tuple[Preference, ...]:
    """Return a grid of preferences: weights of the objectives that sum to 1, times cost weights.

        preference_grid("helpful", "harmless")      # the paper's 27 contexts: (w, 1 - w), w = .1 .. .9, costs 0, .2, 1
        preference_grid(costs=(0, 0.2, 1))          # one objective: three preferences

    Args:
        *objectives: Names of the objectives; none, or a single one, gives no weights.
        costs: Cost weights, each >= 0.
        steps: Weights are multiples of 1 / steps, >= 1.
        edges: Whether an objective may weigh 0.

    Returns:
        Named preferences, such as "helpful=0.3 harmless=0.7 cost=0.2", weights first, then costs.

    Raises:
        ConfigurationError: Names that are not different strings, no or repeated costs, or steps that leave no weights.
    """
    if len(set(objectives)) < len(objectives) or not all(isinstance(o, str) and o.strip() for o in objectives):
        raise ConfigurationError(f"preference_grid{objectives!r}: give different names of objectives.")
    prices = [_weight(c, "preference_grid: cost") for c in costs] if isinstance(costs, Iterable) else []
    if not prices or len({_short(c) for c in prices}) < len(prices):
        raise ConfigurationError(f"preference_grid(costs={costs!r}): give at least one cost weight, each once.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigurationError(f"preference_grid(steps={steps!r}): give a whole number >= 1.")
    if len(objectives) < 2:
        return tuple(Preference(f"cost={_short(c)}", cost=c) for c in prices)
    least, free = (0 if edges else 1), len(objectives) - 1
    if (steps - least * len(objectives)) < 0 or math.comb(steps + free, free) * len(prices) > _MOST_POINTS:
        raise ConfigurationError(
            f"preference_grid: {len(objectives)} objectives at steps of 1/{steps} give no weights, or more than "
            f"{_MOST_POINTS:,} preferences; choose another `steps`."
        )
    # Stars and bars: bars among the free steps cut them into one part per objective, in lexicographic order.
    loose = steps - least * len(objectives)
    ends = ((-1, *bars, loose + free) for bars in itertools.combinations(range(loose + free), free))
    points = [tuple(b - a - 1 + least for a, b in itertools.pairwise(end)) for end in ends]
    return tuple(
        Preference(
            " ".join([*(f"{o}={k / steps:.4g}" for o, k in zip(objectives, point, strict=True)), f"cost={_short(c)}"]),
            weights={o: k / steps for o, k in zip(objectives, point, strict=True)},
            cost=c,
        )
        for point in points
        for c in prices
    )


def _short(number: float) -> str:
    return f"{number:.12g}"


def _weight(value: Any, what: str) -> float:
    if not is_number(value) or value < 0:
        raise ConfigurationError(f"{what} is {value!r}; it must be a finite number >= 0.")
    return float(value)


def is_number(value: Any) -> bool:
    """Tell whether this is a finite number, and not a bool."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and math.isfinite(value)
