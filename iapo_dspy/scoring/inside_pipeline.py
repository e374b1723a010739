"""Scores of a module inside of a pipeline: the vote is the module's, the metric the pipeline's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dspy

from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.scoring.objectives.opponents import beside
from iapo_dspy.scoring.scores import Metric, Scored, as_score
from iapo_dspy.scoring.strategies.port import Strategy, bounds_of
from iapo_dspy.scoring.user_functions import name_of


def score_inside(
    strategy: Strategy,
    example: dspy.Example,
    *,
    inputs: Mapping[str, Any],
    said: dspy.Prediction,
    outcome: dspy.Prediction | None,
    metric: Metric | None,
    around: Any = None,
    failure: str | None = None,
    error: bool = False,
) -> Scored:
    """Score one completion of an inner module as a deployed pipeline would see it.

    The strategy reads the inner module's inputs and its prediction, from which a deployed call chooses. Where it asks
    the metric, the metric is shown the example and the pipeline's result with that prediction.

    Args:
        strategy: How completions become one.
        example: The training example, with the pipeline's inputs and labels.
        inputs: The inner module's inputs.
        said: Its prediction.
        outcome: The pipeline's prediction; None where a later step failed. The completion still votes then, as it would
            at deployment, and is worth the metric's lowest value.
        metric: The pipeline's metric.
        around: The pipeline, which a metric that compares has as its opponent.
        failure: Why there is no outcome.
        error: Whether an exception was the cause.
    """

    def judge(example_: Any, prediction: Any, trace: Any = None) -> Any:
        assert metric is not None  # a strategy without a metric asks none
        if outcome is None:
            return bounds_of(strategy)[0]
        with beside(around):
            return metric(example, outcome)

    shown = dspy.Example(**inputs).with_inputs(*inputs)
    scored = strategy.score(shown, said, judge if metric is not None else None)
    if outcome is None and scored.scores is not None:
        return replace(scored, failure=failure, error=error)
    return scored


def probe_metric(strategy: Strategy, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
    """Try a pipeline's metric as strategies try theirs, without objectives: these see inputs that no example has."""
    if metric is not None:
        with contained():
            value = metric(example, prediction)
        as_score(value, what=name_of(metric), bounds=bounds_of(strategy))
