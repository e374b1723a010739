"""Mean and median of a number: the answer is made of all completions' values."""

from __future__ import annotations

import logging
import math
import reprlib
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import dspy
import numpy as np

from iapo_dspy.bandit.aggregators.centre import (
    AffineAggregator,
    Centre,
    Loss,
    SquaredMeanAggregator,
    ValueAggregator,
    loss_of,
)
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.errors import ConfigurationError, ScoreError
from iapo_dspy.scoring.answers.equality import number_of
from iapo_dspy.scoring.answers.normalize import answer_key
from iapo_dspy.scoring.scores import Metric, Scored, check_bounds, function_digest
from iapo_dspy.scoring.strategies.one_field import OneField
from iapo_dspy.scoring.strategies.port import Selection
from iapo_dspy.scoring.user_functions import name_of
from iapo_dspy.types import FloatArray, IntArray

logger = logging.getLogger(__name__)

_STEP = 1.0  # distance from a label at which a metric that is said to be affine is tried


class _Centre(OneField):
    """The parts that means and medians share; see `Mean` and `Median`."""

    centre: ClassVar[Centre]
    usual_loss: ClassVar[Loss]

    def __init__(
        self,
        field: str,
        *,
        range: tuple[float, float] | None = None,
        label: str | None = None,
        loss: Loss | None = None,
        scale: float | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__(field, bounds=(0.0, 1.0), strict=strict)
        loss = loss or self.usual_loss
        if label is not None and (not isinstance(label, str) or not label.isidentifier()):
            raise ConfigurationError(f"{self._what}: label is {label!r}; give the name of a field.")
        self.label = label or field
        self.affine = False
        if range is None:
            raise ConfigurationError(
                f"{self._what}: give range=(lowest, highest), the values that the field can have: a loss is bounded "
                "only where the values are."
            )
        self.range = check_bounds(range, f"{self._what}: range")
        if loss not in ("squared", "absolute"):
            raise ConfigurationError(f'{self._what}: loss is {loss!r}; give "squared" or "absolute".')
        self.loss: Loss = loss
        width = self.range[1] - self.range[0]
        self.worst = width**2 if loss == "squared" else width
        self.scale = float(self.worst if scale is None else scale)
        if isinstance(scale, bool) or not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigurationError(f"{self._what}: scale is {scale!r}; give a number > 0: the loss that scores 0.")

    @property
    def columns(self) -> tuple[str, ...]:
        """The score of the completion's own value, that value, and the right one."""
        return self.objectives if self.affine else ("metric", "value", "gold")

    def aggregator(self) -> Aggregator:
        """Return the vectorised form: in closed form where the reward is affine."""
        if self.affine:
            return AffineAggregator(floor=self.bounds[0])
        floor = 1.0 - self.worst / self.scale
        if (self.centre, self.loss) == ("mean", "squared"):
            return SquaredMeanAggregator(scale=self.scale, floor=floor)
        return ValueAggregator(centre=self.centre, loss=self.loss, scale=self.scale, floor=floor)

    def check(self, *, metric: Metric | None) -> None:
        """Warn that a metric is not used, unless the score is affine."""
        if self.affine:
            super().check(metric=metric)
        elif metric is not None:
            logger.warning(
                "%s scores by its loss from the label, so metric=%s is not used. A metric that is affine in the value "
                "is: Mean(field, affine=True).", self._what, name_of(metric),
            )  # fmt: skip

    def _scored(
        self, read: Scored, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None
    ) -> Scored:
        """Score one completion on its own; the algorithm aggregates the values in the other columns."""
        assert read.scores is not None  # it was read
        if self.affine:
            return replace(read, scores=(self._by_metric(example, prediction, metric),))
        (value,), gold = read.scores, self._gold(example)
        loss = float(loss_of(np.asarray(value), np.asarray(gold), self.loss))
        return replace(read, scores=(1.0 - loss / self.scale, value, gold))

    def _unscored(self, read: Scored, failure: str) -> Scored:
        if self.affine:
            return super()._unscored(read, failure)
        # There is no right value, so that all completions of this query fail alike, whatever the prompt.
        return Scored(failure=failure, error=True)

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Look for the label, or try the metric; raise the errors that `score` would hide."""
        if not self.affine:
            self._gold(example)
        elif metric is not None and self.field in prediction:
            self._check_affine(example, prediction, metric)

    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        """Choose the completion whose value is nearest to the centre of all; it is returned with that centre."""
        values = {i: s.scores[0] for i, s in enumerate(read) if s.failure is None and s.scores is not None}
        if not values:
            return None
        middle = statistics.fmean if self.centre == "mean" else statistics.median
        centre = float(middle(values.values()))
        nearest = min(values, key=lambda i: (abs(values[i] - centre), i))
        failures = {i: s.failure for i, s in enumerate(read) if s.failure is not None}
        return Selection(index=nearest, failures=failures, replaced={self.field: centre})

    def settled(self, read: Sequence[Scored], weights: FloatArray, remaining: int) -> bool:
        """Tell whether nothing is left to draw: every value moves the centre."""
        return remaining == 0

    def pretend(self, quality: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Make up values that are nearer to the right one the better they are."""
        label = np.zeros(len(quality), dtype=np.int64)
        if self.affine:
            low, high = self.bounds
            share = np.clip(quality + rng.normal(0.0, 0.2, len(quality)), 0.0, 1.0)
            return label, (low + share * (high - low))[:, None]
        low, high = self.range
        gold = np.full(len(quality), (low + high) / 2)
        value = np.clip(gold + rng.normal(0.0, (1.0 - quality) * (high - low) / 2), low, high)
        return label, np.stack([1.0 - loss_of(value, gold, self.loss) / self.scale, value, gold], axis=1)

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the scoring code: the metric where the score is affine, else the loss."""
        if self.affine:
            return function_digest(metric, number_of, self.field, self.bounds)
        return function_digest(number_of, self.field, self.label, self.range, self.loss, self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Return this strategy's identity as JSON data."""
        kind = {"kind": self.centre, "field": self.field}
        if self.affine:
            return {**kind, "affine": True, "bounds": list(self.bounds)}
        return {**kind, "label": self.label, "range": list(self.range), "loss": self.loss, "scale": self.scale}

    def _read_value(self, prediction: dspy.Prediction) -> Scored:
        value = number_of(prediction[self.field])
        if value is None or not math.isfinite(value):
            return Scored(failure=f"field {self.field!r} is not a number: {reprlib.repr(prediction[self.field])}")
        if not self.affine:
            value = min(max(value, self.range[0]), self.range[1])
        return Scored(answer=answer_key(value), scores=(value,))

    def _gold(self, example: dspy.Example) -> float:
        if self.label not in example:
            raise ScoreError(
                f"{self._what}: the example has no label {self.label!r}; it has {sorted(example.keys())}. Name the "
                "field that holds the right value: label='name'."
            )
        gold = number_of(example[self.label])
        low, high = self.range
        if gold is None or not low <= gold <= high:
            raise ScoreError(
                f"{self._what}: the label {self.label!r} is {example[self.label]!r}; it must be a number in the range "
                f"[{low:g}, {high:g}]."
            )
        return gold

    def _check_affine(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric) -> None:
        """Try the metric at a value and as far below it as above it: an affine one has its mean in the middle."""
        middle = self._by_metric(example, prediction, metric)
        value = number_of(prediction[self.field])
        if value is None:
            return
        moved = [dspy.Prediction(**{**prediction, self.field: value + step}) for step in (-_STEP, _STEP)]
        try:
            around = [self._by_metric(example, each, metric) for each in moved]
        except Exception:  # noqa: BLE001  # the metric cannot score a value so far away: nothing is learnt here
            return
        if abs(around[0] + around[1] - 2.0 * middle) > 1e-6 * max(1.0, *map(abs, around)):
            raise ConfigurationError(
                f"{self._what}: affine=True, but the metric scores {self.field}={value - _STEP:g}, {value:g} and "
                f"{value + _STEP:g} with {around[0]:g}, {middle:g} and {around[1]:g}, which are not on a "
                "straight line. Leave affine out, and say range= and loss= instead."
            )


class Mean(_Centre):
    """The mean of all completions' values of a numeric field.

    The call returns the completion nearest to the mean, with the mean (a float) in its field. The score of an answer v
    where g is right is 1 - loss(v, g) / scale; labels are needed only while compiling, and no metric. Where the reward
    is affine (proposition 2 of the paper) no simulation of N is spent:

    - `loss="squared"`: E (mean of N - g)^2 = bias^2 + variance / N. Two completions of a query tell it for every N.
    - `affine=True`: your metric is affine in the value, as a rating is. Its mean then does not depend on N, and pulls
      of one completion are enough; it is tried at three points before anything is spent.

    Args:
        field: Output field; a number, or text that is one.
        range: Lowest and highest value of the field. A value outside is taken for the nearer of the two.
        label: Example field with the right value. Default: `field`.
        loss: "squared", the default, or "absolute".
        scale: The loss that scores 0. Default: the largest that the range allows, so that scores lie in [0, 1]. A
            smaller one makes preferences weigh differences more, and scores may be negative.
        affine: Whether the metric is affine in the value. Then it is used, and there is no loss.
        bounds: Lowest and highest value of an affine metric.
        strict: Whether `field` must be declared by one of the student's predictors.

    Raises:
        ConfigurationError: An argument that cannot be used.
    """

    centre: ClassVar[Centre] = "mean"
    usual_loss: ClassVar[Loss] = "squared"

    def __init__(
        self,
        field: str,
        *,
        range: tuple[float, float] | None = None,
        label: str | None = None,
        loss: Loss | None = None,
        scale: float | None = None,
        affine: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        strict: bool = True,
    ) -> None:
        if affine and (range, label, scale, loss) != (None, None, None, None):
            raise ConfigurationError(
                f"Mean({field!r}): with affine=True the metric scores, and there is no range, label, loss or scale."
            )
        super().__init__(
            field, range=(0.0, 1.0) if affine else range, label=label, loss=loss, scale=scale, strict=strict
        )
        self.affine = bool(affine)
        self.bounds = check_bounds(bounds, self._what)


class Median(_Centre):
    """The median of all completions' values of a numeric field; of an even number, the mean of the two in the middle.

    As `Mean`, but robust against outliers; every N is estimated from completions that were drawn.

    Args:
        field: See `Mean`.
        range: See `Mean`.
        label: See `Mean`.
        loss: See `Mean`; "absolute" by default.
        scale: See `Mean`.
        strict: See `Mean`.

    Raises:
        ConfigurationError: An argument that cannot be used.
    """

    centre: ClassVar[Centre] = "median"
    usual_loss: ClassVar[Loss] = "absolute"
