"""Metrics that need labels: for majority vote while compiling, and for `dspy.Evaluate`.

Best-of-N refuses them as objectives, because it selects where there are no labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.evaluate import metrics as dspy_metrics

from iapo_dspy.errors import ScoreError
from iapo_dspy.scoring.answers.text import stream_safe
from iapo_dspy.scoring.fields import check_name, field_of, text_of

__all__ = ["LabelMetric", "exact_match", "f1"]


@dataclass(frozen=True, kw_only=True)
class LabelMetric:
    """A metric that compares an output field with a label of the example.

    Attributes:
        name: Name of the measure.
        field: Output field.
        label: Field of the example: one right answer, or a list of them, of which the best fit counts.
    """

    name: str
    field: str
    label: str

    @property
    def labels_read(self) -> tuple[str, ...]:
        """The labels without which it cannot score."""
        return (self.label,)

    @property
    def __name__(self) -> str:
        """Its name in DSPy's tables."""
        return self.name

    def __call__(
        self, example: dspy.Example, prediction: dspy.Prediction, trace: Any = None, *_: Any, **__: Any
    ) -> float:
        """Return a score in [0, 1]; GEPA and the like pass more than anybody needs here.

        Raises:
            ScoreError: A field is missing, or there is no right answer.
        """
        gold = field_of(example, self.label, "example")
        several = isinstance(gold, (list, tuple, set, frozenset))
        golds = [stream_safe(text_of(g)) for g in (gold if several else [gold])]
        if not golds:
            raise ScoreError(f"The example's label {self.label!r} is an empty list: there is no right answer.")
        return float(_FUNCTIONS[self.name](stream_safe(text_of(field_of(prediction, self.field))), golds))


_FUNCTIONS: dict[str, Callable[[str, list[str]], Any]] = {"exact_match": dspy_metrics.EM, "f1": dspy_metrics.F1}


def exact_match(field: str, label: str | None = None) -> LabelMetric:
    """Return DSPy's exact match as a metric: 1 where the field equals the label, else 0.

    Both are compared as `dspy.evaluate` does it: in lower case, without punctuation, without English articles. So
    "-5" equals "5" and "3.14" equals "314"; for numbers write a metric of your own.

    Args:
        field: Output field.
        label: Field of the example with the right answer, or with a list of right answers. Default: of the same name.

    Raises:
        ConfigurationError: One of them is not a name.
    """
    return _metric("exact_match", field, label)


def f1(field: str, label: str | None = None) -> LabelMetric:
    """Return DSPy's token F1 as a metric in [0, 1]; compared as in `exact_match`.

    Args:
        field: See `exact_match`.
        label: See `exact_match`.

    Raises:
        ConfigurationError: One of them is not a name.
    """
    return _metric("f1", field, label)


def _metric(name: str, field: str, label: str | None) -> LabelMetric:
    field = check_name(field, f"{name}(field)")
    return LabelMetric(name=name, field=field, label=field if label is None else check_name(label, f"{name}(label)"))
