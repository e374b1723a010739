"""Strategies by a short name, as `IAPO(strategy="majority")` takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from iapo_dspy.errors import ConfigurationError, nearest
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.strategies.best_of_n import BestOfN
from iapo_dspy.scoring.strategies.port import Strategy
from iapo_dspy.scoring.strategies.vote import MajorityVote

_OBJECTS = {
    "weighted": "WeightedVote(weight=...), because the name does not say what a vote weighs",
    "mixed": "Mixed(MajorityVote(), objectives=[...]), because the name does not say what chooses among the winners",
    "mean": "Mean('field', range=(lowest, highest)), because a loss is bounded only where the values are",
    "median": "Median('field', range=(lowest, highest)), because a loss is bounded only where the values are",
}


def strategy_of(given: Any, metric: Metric | None) -> Strategy:
    """Return a strategy that is given as an object or by its name.

    Args:
        given: A strategy; "majority" for a vote over the student's only output field; or "best_of_n", which selects by
            the metric itself, when deployed too.
        metric: The run's metric.

    Raises:
        LabelRequired: "best_of_n" with a metric that reads a label.
        ConfigurationError: Neither a strategy nor a name of one.
    """
    if given == "majority":
        return MajorityVote()
    if given == "best_of_n":
        if metric is None:
            raise ConfigurationError(
                'strategy="best_of_n" selects by the metric: give metric(example, prediction), which needs no label, '
                "or BestOfN([Objective('name', function)])."
            )
        given = replace(metric, name="metric") if isinstance(metric, Objective) else Objective("metric", metric)
        return BestOfN([given])
    if isinstance(given, str):
        if given in _OBJECTS:
            raise ConfigurationError(f"strategy={given!r}: give {_OBJECTS[given]}.")
        raise ConfigurationError(
            f'strategy={given!r}: the names are "majority" and "best_of_n"; give an object for any other strategy.'
            f"{nearest(given, ['majority', 'best_of_n'])}"
        )
    if isinstance(given, type) or not isinstance(given, Strategy):
        raise ConfigurationError(
            f"strategy={given!r}: give \"majority\", MajorityVote('answer'), BestOfN([...]) or another Strategy."
        )
    return given
