"""The port of objectives: one bounded score of a completion that needs no label (the paper's O_k).

An objective wraps a function `(example, prediction) -> bool or number`. Best-of-N chooses by objectives when deployed,
where no label exists; so the example shows its inputs only, while compiling too. The function is called by several
threads at once, must not change its arguments, and may ask LMs (`metered` counts those that it holds itself).

Errors: a function that reads a label raises `LabelRequired` when the objective is built, or at the first call at the
latest. An exception of the function, and a value that is not a number within the bounds (`ScoreError`), is a failure of
that completion. `iapo_dspy.testing.check_objective` checks all of this.

Example:
    >>> def brief(example, prediction):
    ...     return len(prediction.answer) <= 20
    >>> objective = Objective("brief", brief)
    >>> objective(dspy.Example(question="Why?").with_inputs("question"), dspy.Prediction(answer="Because."))
    1.0
    >>> Objective("right", lambda example, prediction: example.answer == prediction.answer)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    iapo_dspy.errors.LabelRequired: Objective 'right' reads `answer` of the example, which is not an input: ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError, LabelRequired
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.scoring.calibration import KINDS, Kind
from iapo_dspy.scoring.no_labels import check_reads_no_label
from iapo_dspy.scoring.scores import as_score, check_bounds
from iapo_dspy.scoring.user_functions import misfit


@dataclass(frozen=True)
class Objective:
    """One bounded, label-free score of a completion (the paper's O_k).

    Attributes:
        name: How preferences weigh it.
        score: `(example, prediction) -> bool or number`; the example shows its inputs only, here and when deployed.
        bounds: Lowest and highest score, both allowed; higher is better. Default: 0 and 1.
        inputs: Input fields of the student that the function reads from the example and, under the same name, from the
            prediction. Otherwise a field that is read from both is taken for a label.
        calibrate: For scores without bounds, such as logits of a reward model: any finite number is a score, and what
            it is worth in [0, 1] is learnt from the first batch of a run and saved with the program. "minmax" puts
            the lowest score that was seen at 0 and the highest at 1; "rank" takes the share of scores below it. See
            `calibration`. Give no bounds then.
    """

    name: str
    score: Callable[[dspy.Example, dspy.Prediction], Any]
    bounds: tuple[float, float] = None  # type: ignore[assignment]  # `None` becomes (0, 1)
    inputs: Sequence[str] = ()
    calibrate: Kind | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigurationError(f"Objective name {self.name!r}: give a non-empty string.")
        if not callable(self.score):
            raise ConfigurationError(f"Objective {self.name!r}: score must be callable, got {self.score!r}.")
        given: Any = self.bounds
        bounds = check_bounds((0.0, 1.0) if given is None else given, f"Objective {self.name!r}")
        object.__setattr__(self, "bounds", bounds)
        if self.calibrate is not None and (self.calibrate not in KINDS or bounds != (0.0, 1.0)):
            raise ConfigurationError(
                f"Objective {self.name!r}: calibrate={self.calibrate!r} with bounds={given!r}. Give one of "
                f"{list(KINDS)} without bounds (calibrated scores lie in [0, 1]), or bounds alone."
            )
        found = misfit(self.score)
        if found is not None:
            raise LabelRequired(
                f"Objective {self.name!r}: score{found} must be callable as score(example, prediction). When the "
                "program is deployed there is nothing else to give it, no label and no gold answer."
            )
        check_reads_no_label(self.name, self.score, declared=self.inputs)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        """Score one completion; where scores are calibrated, return the raw one.

        Raises:
            ScoreError: The function returned something that is not a score within the bounds or, where scores are
                calibrated, not a finite number.
            CodeExited: It raised `SystemExit` or the like.
        """
        bounds = self.bounds if self.calibrate is None else None
        with contained():
            value = self.score(example, prediction)
        return as_score(value, what=f"Objective {self.name!r}", bounds=bounds)
