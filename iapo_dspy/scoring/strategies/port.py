"""The port of strategies: how N completions become one answer, while compiling and when deployed.

A strategy is any object with the methods of `Strategy`; the built-in ones have no others. While compiling, `score`
makes numbers of every completion, and `aggregator` says what N of them are worth together. A deployed call has no
labels: `read` looks at every completion, and `choose` takes one of them. Both sides must agree, because the estimates
are of the call that is deployed; `iapo_dspy.testing.check_strategy` checks that they do.

Errors: `check`, `check_student` and `probe` run before anything is spent and raise `ConfigurationError`. `score` and
`read` never raise for one completion that they cannot use. They return `Scored(failure=..., error=...)`, where `error`
says that an exception was the cause; the completion is paid for and takes no part. A completion that `read` can use and
the metric cannot score takes part when deployed, so `score` returns it with the metric's lowest value as its score, and
the failure beside it. `choose` returns None if no completion can take part. A strategy is asked by several threads at
once and is never changed.

The protocols below `Strategy` are optional: a strategy that has their methods is asked for more.

Example:
    >>> from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
    >>> class Longest:
    ...     objectives = ("length",)
    ...     def aggregator(self):
    ...         return BestOfNAggregator(floors=(0.0,))
    ...     def check(self, *, metric):
    ...         pass
    ...     def check_student(self, inputs, outputs):
    ...         pass
    ...     def probe(self, example, prediction, metric):
    ...         pass
    ...     def score(self, example, prediction, metric):
    ...         return self.read({}, prediction)
    ...     def read(self, inputs, prediction):
    ...         if "answer" not in prediction:
    ...             return Scored(failure="the prediction has no field 'answer'")
    ...         return Scored(scores=(min(len(prediction.answer), 100) / 100,))
    ...     def choose(self, read, weights):
    ...         scores = {i: s.scores for i, s in enumerate(read) if s.scores is not None}
    ...         failures = {i: s.failure for i, s in enumerate(read) if s.failure is not None}
    ...         return Selection(index=max(scores, key=scores.get), failures=failures) if scores else None
    ...     def digest(self, metric):
    ...         return "longest, version 1"
    ...     def to_dict(self):
    ...         return {"kind": "longest"}
    >>> from iapo_dspy.testing import check_strategy
    >>> examples = [dspy.Example(question="Why?").with_inputs("question")]
    >>> predictions = [dspy.Prediction(answer="So."), dspy.Prediction(answer="Because."), dspy.Prediction(idea="none")]
    >>> check_strategy(Longest(), examples, predictions, other_process=False)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import dspy
import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.scoring.scores import Metric, Scored
from iapo_dspy.types import FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the completions of one deployed call is returned, and why.

    Attributes:
        index: Position of the winner among the predictions.
        votes: Answer -> number of votes, or the sum of their weights, most first (votes).
        utilities: Weighted objective of each prediction, None where scoring it failed (best-of-n).
        failures: Position -> why a prediction that was there could not take part.
        replaced: Output field -> the value that the winner is returned with instead of its own (means and medians).
    """

    index: int
    votes: Mapping[str, float] | None = None
    utilities: tuple[float | None, ...] | None = None
    failures: Mapping[int, str]
    replaced: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Strategy(Protocol):
    """How N completions become one answer; see the module."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names that preferences weigh, the K axis. A strategy with more columns of scores has `columns` too."""

    def aggregator(self) -> Aggregator:
        """Return the vectorised form that estimates expected rewards."""

    def check(self, *, metric: Metric | None) -> None:
        """Raise ConfigurationError if the strategy cannot work with this metric. Called when the optimizer is built."""

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise ConfigurationError if the student's fields (outputs: name -> annotation) do not fit."""

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion of a training query; exceptions of user code become failures."""

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score once before anything is spent; problems raise instead of becoming failures."""

    def read(self, inputs: Mapping[str, Any], prediction: dspy.Prediction) -> Scored:
        """Read one completion of a deployed call, without labels; exceptions of user code become failures.

        Returns:
            The answer that it votes for and its label-free scores, as far as the strategy has them: a failure, if any,
            says why the completion cannot take part.
        """

    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        """Choose among the completions of a deployed call.

        Args:
            read: The completions in the order in which they were drawn, as `read` has them.
            weights: The preference's weights of the objectives [K].

        Returns:
            The choice; None if no completion can take part.
        """

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the code that scores; stored scores of other code are not used again."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that identifies the strategy; callables by name only."""


@runtime_checkable
class Settles(Protocol):
    """A strategy that knows when the completions that are left cannot change its choice; they need not be drawn."""

    def settled(self, read: Sequence[Scored], weights: FloatArray, remaining: int) -> bool:
        """Tell whether `choose` returns the same completion whatever the remaining ones are.

        Args:
            read: The completions drawn so far, in order.
            weights: The preference's weights of the objectives [K].
            remaining: How many are left at most, >= 0.
        """


@runtime_checkable
class Typed(Protocol):
    """A strategy that reads a field according to its type."""

    def fitted(self, outputs: Mapping[str, Any]) -> Strategy:
        """Return this strategy for a student with these output fields (name -> annotation)."""


@runtime_checkable
class Pretends(Protocol):
    """A strategy that can make up completions, for a quote; others get scores between 0 and 1."""

    def pretend(self, quality: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Make up completions.

        Args:
            quality: How good each of them is, in (0, 1) [S]: the probability that it is right, say.
            rng: Where chance comes from.

        Returns:
            Labels [S] and scores [S, K], as the strategy's aggregator reads them.
        """
        ...


def columns_of(strategy: Strategy) -> tuple[str, ...]:
    """Return the names of a strategy's score columns: its objectives, and after them those that nobody weighs."""
    columns: tuple[str, ...] = tuple(getattr(strategy, "columns", strategy.objectives))
    return columns


def bounds_of(strategy: Strategy) -> tuple[float, float]:
    """Return the lowest and the highest value of the metric, which a strategy with a metric has as `bounds`."""
    low, high = getattr(strategy, "bounds", None) or (0.0, 1.0)
    return float(low), float(high)


def highest_of(strategy: Strategy) -> tuple[float, ...]:
    """Return the highest score of each objective [K]: `highest`, where a strategy has it, or that of its metric."""
    found: Any = getattr(strategy, "highest", None)
    return tuple(found) if found is not None else (bounds_of(strategy)[1],) * len(strategy.objectives)


def lowest_of(strategy: Strategy) -> tuple[float, ...]:
    """Return the lowest score of each objective [K]: `lowest`, where a strategy has it, or that of its metric."""
    found: Any = getattr(strategy, "lowest", None)
    return tuple(found) if found is not None else (bounds_of(strategy)[0],) * len(strategy.objectives)


def fitted(strategy: Strategy, outputs: Mapping[str, Any]) -> Strategy:
    """Return a strategy as it reads a student with these output fields (name -> annotation)."""
    return strategy.fitted(outputs) if isinstance(strategy, Typed) else strategy


@runtime_checkable
class Calibrates(Protocol):
    """A strategy whose scores are put on a scale that a run learns from its first completions.

    `score` and `read` return raw scores, and the ledger keeps those; `choose` and `settled` apply the scale. A strategy
    is never changed: learning returns another one.
    """

    @property
    def calibrated(self) -> bool:
        """Whether nothing needs to be learnt any more."""

    def calibrate(self, scores: Iterable[Sequence[float]]) -> Strategy:
        """Return the strategy with its scales learnt from the raw scores [S, K] of a run's first batch."""

    def place(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Return raw scores [K] on the scales that preferences weigh [K]; raises StateError before they are learnt."""

    def restore(self, calibration: Mapping[str, Any]) -> Strategy:
        """Return the strategy with the scales that its `to_dict` wrote under "calibration"."""
