"""Best-of-N (eq. 1): the completion with the highest weighted objective."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy
import numpy as np

from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.errors import ConfigurationError, LabelRequired, one_line
from iapo_dspy.scoring.calibration import Scaled, Scales
from iapo_dspy.scoring.no_labels import InputsOnly, check_reads_no_label, label_message
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.scores import Metric, Scored, function_digest
from iapo_dspy.scoring.strategies.port import Selection
from iapo_dspy.scoring.user_functions import name_of
from iapo_dspy.types import FloatArray

logger = logging.getLogger(__name__)


class BestOfN(Scaled):
    """Best-of-N over weighted, label-free objectives (eq. 1 of the paper).

    Args:
        objectives: At least one; names are unique.

    Attributes:
        parts: The objectives themselves.

    Raises:
        ConfigurationError: No objective, or two of one name.
        LabelRequired: An objective reads a label of the example.
    """

    def __init__(self, objectives: Iterable[Objective]) -> None:
        if isinstance(objectives, (str, Mapping)) or not isinstance(objectives, Iterable):
            raise ConfigurationError(f"BestOfN({objectives!r}): give a list of Objective('name', function).")
        self.parts = tuple(objectives)
        if not self.parts:
            raise ConfigurationError("BestOfN: give at least one Objective(name, score, bounds).")
        for objective in self.parts:
            if labels := getattr(objective, "labels_read", ()):
                raise LabelRequired(label_message(str(getattr(objective, "name", objective)), labels))
            if not isinstance(objective, Objective):
                raise ConfigurationError(
                    f"BestOfN: {objective!r} is not an Objective; wrap it: Objective('name', function)."
                )
        names = self.objectives
        if len(set(names)) < len(names):
            raise ConfigurationError(f"BestOfN: objective names must differ, got {list(names)}.")
        self._scales = Scales(names, tuple(o.calibrate for o in self.parts))

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names on the K axis."""
        return tuple(o.name for o in self.parts)

    @property
    def lowest(self) -> tuple[float, ...]:
        """Lowest score of each objective."""
        return tuple(o.bounds[0] for o in self.parts)

    @property
    def highest(self) -> tuple[float, ...]:
        """Highest score of each objective."""
        return tuple(o.bounds[1] for o in self.parts)

    def aggregator(self) -> Aggregator:
        """Return eq. 1 in vectorised form."""
        return BestOfNAggregator(floors=self.lowest)

    def check(self, *, metric: Metric | None) -> None:
        """Warn that a metric is not used: Best-of-N selects by its objectives, also when deployed."""
        if metric is not None:
            logger.warning(
                "BestOfN selects by its objectives alone, so metric=%s is not used. Make it an Objective if it needs "
                "no label, or evaluate the compiled program with it.",
                name_of(metric),
            )

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise LabelRequired if an objective reads an example field that is not an input of the student."""
        for objective in self.parts:
            check_reads_no_label(objective.name, objective.score, inputs)

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion under every objective."""
        try:
            return Scored(scores=self._scores(example, prediction))
        except LabelRequired:
            raise  # no completion of this run can be scored: the objective itself is wrong
        except Exception as exc:  # noqa: BLE001  # user code: its failure is this completion's, kept with its cause
            return Scored(failure=one_line(exc), error=True)

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score a stand-in prediction under every objective; raise the errors that `score` would hide."""
        problems: list[Exception] = []
        for objective in self.parts:
            try:
                _score(objective, example, prediction)
            except Exception as exc:  # noqa: BLE001  # raised below: a judge must not hide the objectives after it
                problems.append(exc)
        for problem in sorted(problems, key=lambda p: not isinstance(p, ConfigurationError)):
            raise problem

    def _scores(self, example: dspy.Example, prediction: dspy.Prediction) -> tuple[float, ...]:
        return tuple(_score(o, example, prediction) for o in self.parts)

    def read(self, inputs: Mapping[str, Any], prediction: dspy.Prediction) -> Scored:
        """Score one completion under every objective."""
        try:
            return Scored(scores=self._scores(dspy.Example(**inputs).with_inputs(*inputs), prediction))
        except Exception as exc:  # noqa: BLE001  # user code: this completion is never the best
            return Scored(failure=one_line(exc), error=True)

    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        """Choose the completion of the highest weighted objective; the earliest of equals.

        Raises:
            StateError: A calibration was not learnt yet.
        """
        utilities = [self._utility(s, weights) for s in read]
        failures = {i: s.failure for i, s in enumerate(read) if s.failure is not None}
        scored = [(u, -i) for i, u in enumerate(utilities) if u is not None]
        if not scored:
            return None
        return Selection(index=-max(scored)[1], utilities=tuple(utilities), failures=failures)

    def settled(self, read: Sequence[Scored], weights: FloatArray, remaining: int) -> bool:
        """Tell whether a completion has the highest possible score: no later one can be better."""
        if remaining == 0:
            return True
        tops = zip(self.parts, self._scales.learnt, strict=True)
        highest = float(np.dot(weights, [o.bounds[1] if c is None else c.highest for o, c in tops]))
        utilities = [self._utility(s, weights) for s in read]
        return any(u is not None and u >= highest for u in utilities)

    def _utility(self, scored: Scored, weights: FloatArray) -> float | None:
        return None if scored.scores is None else float(np.dot(weights, self.place(scored.scores)))

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the objectives' code; learnt scales have no part in it, because they change no raw score."""
        parts = [(o.score, o.bounds, *([o.calibrate] if o.calibrate else [])) for o in self.parts]
        return function_digest(*(part for objective in parts for part in objective))

    def to_dict(self) -> dict[str, Any]:
        """Return this strategy's identity as JSON data, with the scales that it has learnt."""
        calibration = self._scales.to_dict()
        return {
            "kind": "best_of_n",
            "objectives": [
                {
                    "name": o.name,
                    "score": name_of(o.score),
                    "bounds": list(o.bounds),
                    **({"calibrate": o.calibrate} if o.calibrate else {}),
                }
                for o in self.parts
            ],
            **({"calibration": calibration} if calibration else {}),
        }


def _score(objective: Objective, example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Score under one objective, which is shown the example's inputs only."""
    shown = InputsOnly(example, objective=objective.name)
    score = objective(shown, prediction)
    if shown.label_read is not None:  # the objective caught the error that reading a label raised
        raise LabelRequired(label_message(objective.name, [shown.label_read]))
    return score
