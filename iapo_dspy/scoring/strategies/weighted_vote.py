"""Weighted vote: each completion's vote counts as much as a label-free score says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.aggregators.tally import UNITS, TallyAggregator, vote_units
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.answers.equality import Equality
from iapo_dspy.scoring.answers.normalize import Normalize
from iapo_dspy.scoring.calibration import Scaled, Scales
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.scores import Metric, Scored, function_digest
from iapo_dspy.scoring.strategies.best_of_n import BestOfN
from iapo_dspy.scoring.strategies.vote import MajorityVote, Tally, pretended_votes
from iapo_dspy.types import FloatArray, IntArray


class WeightedVote(Scaled, MajorityVote):
    """A vote in which each completion counts its label-free score; the answer with the largest sum wins.

    Weights are counted in millionths of the largest one, so that sums are exact. A tie goes to the answer that was
    drawn first; the winner's first completion is returned. Where all weights are 0, every answer is tied.

    Args:
        field: Output field that is voted on. Default: the student's only output field beside `reasoning`.
        weight: An `Objective`, or a function (example, prediction) -> number in [0, 1]: how much a vote counts. It must
            not need labels, because it is asked when deployed too. Its lowest bound must be >= 0.
        normalize: See `MajorityVote`.
        equal: See `MajorityVote`.
        tolerance: See `MajorityVote`.
        bounds: Lowest and highest value of the metric, which scores answers while compiling.
        strict: See `MajorityVote`.

    Raises:
        ConfigurationError: An argument that cannot be used.
        LabelRequired: The weight reads a label of the example.
    """

    def __init__(
        self,
        field: str | None = None,
        *,
        weight: Objective | Callable[[dspy.Example, dspy.Prediction], Any],
        normalize: Normalize | None = None,
        equal: Equality | None = None,
        tolerance: float | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        strict: bool = True,
    ) -> None:
        super().__init__(field, normalize=normalize, equal=equal, tolerance=tolerance, bounds=bounds, strict=strict)
        objective = weight if isinstance(weight, Objective) else Objective("weight", weight)
        if objective.bounds[0] < 0:
            raise ConfigurationError(
                f"{self._what}: the weight's bounds are {objective.bounds}; a vote cannot count less than 0."
            )
        self.weight = objective
        self._weigher = BestOfN([objective])
        self._scales = Scales(("metric", objective.name), (None, objective.calibrate))

    @property
    def columns(self) -> tuple[str, ...]:
        """The metric's score, and the weight of the vote."""
        return ("metric", "weight")

    def aggregator(self) -> Aggregator:
        """Return the vectorised form."""
        return TallyAggregator(floors=(self.bounds[0], 0.0), weight=1, upper=self.weight.bounds[1])

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise if the student lacks the field, its type cannot be counted, or the weight reads a label."""
        super().check_student(inputs, outputs)
        self._weigher.check_student(inputs, outputs)

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion with the metric, and weigh its vote."""
        scored = super().score(example, prediction, metric)
        return scored if scored.scores is None else joined(scored, self._weigher.score(example, prediction, None))

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score a stand-in prediction; raise the errors that `score` would hide."""
        super().probe(example, prediction, metric)
        self._weigher.probe(example, prediction, None)

    def read(self, inputs: Mapping[str, Any], prediction: dspy.Prediction) -> Scored:
        """Return the answer that this prediction votes for, and the weight of its vote."""
        scored = super().read(inputs, prediction)
        return scored if scored.failure is not None else joined(scored, self._weigher.read(inputs, prediction))

    def tally(self, read: Sequence[Scored]) -> Tally:
        """Count the votes of completions that `read` returned, in millionths of the largest weight."""
        upper = self.weight.bounds[1]
        weights = np.array([0.0 if s.scores is None else self.place((0.0, s.scores[-1]))[1] for s in read])
        return Tally.of(read, self.classes(), vote_units(weights, upper).tolist(), most=UNITS, worth=upper)

    def pretend(self, quality: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Make up votes; wrong answers weigh a little less."""
        label, worth = pretended_votes(quality, self.bounds, rng)
        low, high = self.weight.bounds
        share = np.clip(0.5 + 0.2 * (label == 0) + rng.normal(0.0, 0.2, len(label)), 0.0, 1.0)
        return label, np.stack([worth, low + share * (high - low)], axis=1)

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the code of the metric, the normalisation and the weight."""
        return function_digest(super().digest(metric), self._weigher.digest(None))

    def to_dict(self) -> dict[str, Any]:
        """Return this strategy's identity as JSON data."""
        learnt = self._scales.to_dict()
        return {
            **super().to_dict(),
            "kind": "weighted_vote",
            "weight": self._weigher.to_dict()["objectives"],
            **({"calibration": learnt} if learnt else {}),
        }


def joined(vote: Scored, free: Scored, behind: int = 0) -> Scored:
    """Return a vote with label-free scores as well; it fails where they do.

    Args:
        vote: The vote with its own scores.
        free: The label-free scores.
        behind: How many of the vote's own scores stay behind the new ones.
    """
    if free.failure is not None or free.scores is None:
        return free
    own = vote.scores or ()
    at = len(own) - behind
    return replace(vote, scores=(*own[:at], *free.scores, *own[at:]))
