"""Comparisons of completions with opponents: their verdicts, and how often the place decides instead of the answer."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import dspy
import numpy as np

from iapo_dspy.bandit.measurement import Bounds

_HEARD = "iapo_comparisons"  # the DSPy setting under which a comparison finds the completion that it is for
_MOST = 65_536  # comparisons that one objective remembers
_QUERY = 8  # letters of a comparison's key that name its query


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The verdicts of a judge on one completion and one opponent, each as the worth of the first place in [0, 1].

    Attributes:
        key: Names the query, by its first eight letters, and what was compared.
        ahead: The verdict with the completion in the first place; None where that order was not asked.
        behind: The verdict with the opponent in the first place, likewise.
    """

    key: str
    ahead: float | None
    behind: float | None

    @property
    def score(self) -> float:
        """The worth of the completion: 1 where it wins in both orders, 0.5 where they contradict each other."""
        found = [self.ahead, None if self.behind is None else 1.0 - self.behind]
        given = [v for v in found if v is not None]
        return sum(given) / len(given)

    def to_json(self) -> list[Any]:
        """Return plain data that `from_json` reads."""
        return [self.key, self.ahead, self.behind]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Comparison:
        """Read what `to_json` wrote."""
        key, ahead, behind = data
        return cls(key=str(key), ahead=ahead, behind=behind)


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """How often a judge's verdict hangs on the place of an answer. Each different comparison counts once.

    Attributes:
        compared: Comparisons that were asked in both orders.
        contradicted: Those of them in which both orders named a winner, and not the same one.
        first: Contradictions in which the first place won both times; in the others, the second one did.
        interval: 95 % interval of `share`, by query; None where contradictions are of fewer than two queries.
    """

    compared: int
    contradicted: int
    first: int
    interval: tuple[float, float] | None = None

    @property
    def share(self) -> float:
        """Share of contradictions that the first place won; 0.5 says that no place is preferred. NaN without any."""
        return self.first / self.contradicted if self.contradicted else math.nan

    @classmethod
    def of(cls, comparisons: Iterable[Comparison]) -> PositionBias:
        """Count comparisons."""
        both = [(c.key[:_QUERY], c.ahead, c.behind) for c in comparisons if c.ahead is not None is not c.behind]
        by_query: dict[str, list[int]] = {}
        for query, ahead, behind in both:
            assert ahead is not None and behind is not None
            if (ahead - 0.5) * (behind - 0.5) > 0:  # one place has won twice
                counts = by_query.setdefault(query, [0, 0])
                counts[0] += 1
                counts[1] += ahead > 0.5
        counts_of = np.array(list(by_query.values()), dtype=np.int64).reshape(-1, 2)
        contradicted, first = (int(n) for n in counts_of.sum(axis=0))
        found = cls(compared=len(both), contradicted=contradicted, first=first)
        queries = len(counts_of)
        if queries < 2:
            return found
        apart = counts_of[:, 1] - found.share * counts_of[:, 0]  # a ratio of sums, its variance by query
        variance = float((apart**2).sum()) * queries / (queries - 1) / contradicted**2
        interval = Bounds(low=0.0, high=1.0).interval(found.share, variance, queries - 1.0, queries)
        return cls(compared=found.compared, contradicted=contradicted, first=first, interval=interval)

    def __str__(self) -> str:
        if not self.compared:
            return "no comparison was asked in both orders"
        shown = f"{self.contradicted} of {self.compared} comparisons contradict each other when the places change"
        if not self.contradicted:
            return shown
        between = "" if self.interval is None else f" ({self.interval[0]:.0%} to {self.interval[1]:.0%})"
        return f"{shown}; the first place wins {self.share:.0%}{between} of these"


class Comparisons:
    """The different comparisons that were made. Thread-safe; beyond many thousands, the oldest are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Comparison] = {}

    def add(self, comparison: Comparison) -> None:
        """Count a comparison; one that is there already counts once."""
        with self._lock:
            self._found[comparison.key] = comparison
            while len(self._found) > _MOST:
                del self._found[next(iter(self._found))]

    @property
    def bias(self) -> PositionBias:
        """The bias over all of them."""
        with self._lock:
            found = list(self._found.values())
        return PositionBias.of(found)


@runtime_checkable
class Compares(Protocol):
    """An objective, or a metric, that compares completions with opponents."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def tally(self) -> Comparisons:
        """The comparisons that it has made."""

    @property
    def duels(self) -> bool:
        """Whether the student of the run is an opponent."""

    def check_queries(self, examples: Sequence[dspy.Example]) -> None:
        """Raise ConfigurationError where an opponent has nothing to say on one of these."""


def comparing(strategy: Any, metric: Any) -> dict[str, Compares]:
    """Return the objectives that compare by the column of scores that is theirs; the metric's is the first column."""
    best = getattr(strategy, "best", strategy)
    parts = {o.name: o.score for o in getattr(best, "parts", ()) if isinstance(o.score, Compares)}
    if best is not strategy or not hasattr(best, "parts"):
        first = tuple(strategy.objectives)[:1]
        parts |= {name: metric for name in first if isinstance(metric, Compares)}
    return parts


@contextlib.contextmanager
def hearing() -> Iterator[dict[str, list[Any]]]:
    """Collect the comparisons that are made within, in the threads of DSPy too: name of the objective -> plain data."""
    heard: dict[str, list[Any]] = {}
    with dspy.context(**{_HEARD: heard}):
        yield heard


def tell(name: str, comparison: Comparison) -> None:
    """Say that a comparison was made."""
    heard = dspy.settings.get(_HEARD)
    if heard is not None:
        heard.setdefault(name, []).append(comparison.to_json())
