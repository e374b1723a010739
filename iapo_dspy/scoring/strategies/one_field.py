"""The parts that votes, means and medians share: they read one output field of every completion."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy

from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.scoring.scores import Metric, Scored, as_score, check_bounds
from iapo_dspy.scoring.user_functions import misfit, name_of

if TYPE_CHECKING:
    from typing_extensions import Self


class OneField:
    """A strategy that reads one output field.

    Args:
        field: The field. None, for votes, stands for the student's only output field beside `reasoning`.
        bounds: Lowest and highest value of the metric.
        strict: Whether one of the student's predictors must declare the field.

    Raises:
        ConfigurationError: `field` is not a name, or the bounds are not two ascending numbers.
    """

    def __init__(self, field: str | None, *, bounds: tuple[float, float], strict: bool) -> None:
        self._field = field
        if field is not None and (not isinstance(field, str) or not field.isidentifier()):
            raise ConfigurationError(f"{self._what}: give the name of an output field.")
        self.bounds = check_bounds(bounds, self._what)
        self.strict = strict

    @property
    def _what(self) -> str:
        return f"{type(self).__name__}({'' if self._field is None else repr(self._field)})"

    @property
    def field(self) -> str:
        """The field.

        Raises:
            ConfigurationError: It is the student's only output field, and there is no student yet.
        """
        if self._field is None:
            raise ConfigurationError(f"{self._what} has not found its field yet: that takes the student.")
        return self._field

    def _with_field(self, outputs: Mapping[str, Any]) -> Self:
        """Return this strategy with the field that it reads of a student with these output fields."""
        twin = copy.copy(self)
        if self._field is None:
            found = [name for name in outputs if name != "reasoning"] or list(outputs)
            if len(found) != 1:
                kind = type(self).__name__
                ways = " or ".join(f"{kind}({name!r})" for name in found) or f"{kind}('answer')"
                raise ConfigurationError(
                    f"{self._what}: the student has the output fields {found}. Name the one that your metric compares: "
                    f"{ways}."
                )
            twin._field = found[0]
        return twin

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metric is the only objective."""
        return ("metric",)

    @property
    def columns(self) -> tuple[str, ...]:
        """The metric's score, and anything that the strategy keeps behind it."""
        return self.objectives

    def check(self, *, metric: Metric | None) -> None:
        """Raise ConfigurationError without a metric that can be called as it will be."""
        if metric is None or not callable(metric):
            raise ConfigurationError(
                f"{self._what} needs a metric to know which answers are right, got metric={metric!r}. Pass "
                "metric(example, prediction, trace=None) -> bool or a number."
            )
        found = misfit(metric)
        if found is not None:
            raise ConfigurationError(
                f"metric {name_of(metric)}{found}: it must be callable as metric(example, prediction, trace=None)."
            )

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise ConfigurationError if the student lacks the field."""
        if self.field not in outputs and self.strict:
            raise ConfigurationError(
                f"{self._what}: the student's output fields are {sorted(outputs)}. Name one of them; for a module that "
                "builds its own Prediction, pass strict=False."
            )

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion of a training query. What the metric cannot score is worth its lowest value."""
        read = self._read(prediction)
        if read.failure is not None:
            return read
        try:
            return self._scored(read, example, prediction, metric)
        except Exception as exc:  # noqa: BLE001  # user code: its failure is this completion's, kept with its cause
            return self._unscored(read, one_line(exc))

    def read(self, inputs: Mapping[str, Any], prediction: dspy.Prediction) -> Scored:
        """Read the field of one completion of a deployed call."""
        return self._read(prediction)

    def _read(self, prediction: dspy.Prediction) -> Scored:
        if self.field not in prediction:
            return Scored(failure=f"the prediction has no field {self.field!r}")
        try:
            with contained():
                return self._read_value(prediction)
        except Exception as exc:  # noqa: BLE001  # the user's normalize, or a field of the user's own type
            return Scored(failure=one_line(exc), error=True)

    def _read_value(self, prediction: dspy.Prediction) -> Scored:
        raise NotImplementedError

    def _scored(
        self, read: Scored, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None
    ) -> Scored:
        raise NotImplementedError

    def _unscored(self, read: Scored, failure: str) -> Scored:
        # No metric is asked when deployed, so that this completion takes part there.
        return replace(read, scores=(self.bounds[0],), failure=failure, error=True)

    def _by_metric(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> float:
        if metric is None:
            raise ConfigurationError(f"{self._what} needs a metric.")
        with contained():
            value = metric(example, prediction)
        return as_score(value, what=name_of(metric), bounds=self.bounds)
