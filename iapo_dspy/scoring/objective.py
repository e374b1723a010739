"""One bounded, label-free score of a completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError, LabelRequired
from iapo_dspy.scoring.callables import misfit
from iapo_dspy.scoring.labels import check_reads_no_label
from iapo_dspy.scoring.scores import as_score, check_bounds

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """One bounded, label-free score of a completion (the paper's O_k).

    Attributes:
        name: How preferences weigh it.
        score: `(example, prediction) -> bool or number`; the example shows its inputs only, here and when deployed.
        bounds: Lowest and highest score, both allowed; higher is better.
        inputs: Input fields of the student that the function reads from the example and, under the same name, from the
            prediction. Otherwise a field that is read from both is taken for a label.
    """

    name: str
    score: Callable[[dspy.Example, dspy.Prediction], Any]
    bounds: tuple[float, float] = (0.0, 1.0)
    inputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigurationError(f"Objective name {self.name!r}: give a non-empty string.")
        if not callable(self.score):
            raise ConfigurationError(f"Objective {self.name!r}: score must be callable, got {self.score!r}.")
        object.__setattr__(self, "bounds", check_bounds(self.bounds, f"Objective {self.name!r}"))
        found = misfit(self.score)
        if found is not None:
            raise LabelRequired(
                f"Objective {self.name!r}: score{found} must be callable as score(example, prediction). When the "
                "program is deployed there is nothing else to give it, no label and no gold answer."
            )
        check_reads_no_label(self.name, self.score, declared=self.inputs)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        """Score one completion.

        Raises:
            ScoreError: The function returned something that is no score within the bounds.
        """
        return as_score(self.score(example, prediction), what=f"Objective {self.name!r}", bounds=self.bounds)
