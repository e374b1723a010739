"""Mixed: vote on the right answer, then choose the best of the completions that agree with it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.aggregators.tally import TallyAggregator
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.answers.classes import Classes
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.scores import Metric, Scored, function_digest
from iapo_dspy.scoring.strategies.best_of_n import BestOfN
from iapo_dspy.scoring.strategies.port import Calibrates, Selection
from iapo_dspy.scoring.strategies.vote import MajorityVote, Tally, pretended_votes
from iapo_dspy.scoring.strategies.weighted_vote import WeightedVote, joined
from iapo_dspy.types import FloatArray, IntArray


class Mixed:
    """Vote on the answer; among the completions that agree with the winner, return the one of the best style.

    Preferences weigh the vote's metric by `name` and the other objectives by their names. The reward of a call is that
    of the completion it returns: w_metric times its metric plus the weighted sum of its other objectives.

    Args:
        vote: `MajorityVote(...)` or `WeightedVote(...)`; ties as there.
        then: `BestOfN([...])`, whose objectives choose among those that agree.
        objectives: The objectives themselves, instead of `then`.
        name: Name by which preferences weigh the metric.

    Raises:
        ConfigurationError: No vote, no objective, both or neither of `then` and `objectives`, or a name twice.
    """

    def __init__(
        self,
        vote: MajorityVote,
        *,
        then: BestOfN | None = None,
        objectives: Iterable[Objective] | None = None,
        name: str = "metric",
    ) -> None:
        if not isinstance(vote, MajorityVote):
            raise ConfigurationError(f"Mixed(vote={vote!r}): give MajorityVote(...) or WeightedVote(...).")
        if (then is None) == (objectives is None):
            raise ConfigurationError("Mixed: give then=BestOfN([...]), or objectives=[...] for short; one of them.")
        if then is not None and not isinstance(then, BestOfN):
            raise ConfigurationError(f"Mixed(then={then!r}): give BestOfN([...]).")
        self.vote = vote
        self.best = then if then is not None else BestOfN(objectives or ())
        if not isinstance(name, str) or not name.strip() or name in self.best.objectives:
            raise ConfigurationError(
                f"Mixed(name={name!r}): give the metric a name of its own; the objectives are "
                f"{list(self.best.objectives)}."
            )
        self.name = name

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metric, then the objectives."""
        return (self.name, *self.best.objectives)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of the metric."""
        return self.vote.bounds

    @property
    def lowest(self) -> tuple[float, ...]:
        """Lowest score of each objective."""
        return (self.bounds[0], *self.best.lowest)

    @property
    def highest(self) -> tuple[float, ...]:
        """Highest score of each objective."""
        return (self.bounds[1], *self.best.highest)

    @property
    def columns(self) -> tuple[str, ...]:
        """The objectives, and the weight of the vote if it is weighted."""
        return (*self.objectives, *["vote weight"] * self._n_weights)

    @property
    def _n_weights(self) -> int:
        return len(self.vote.columns) - 1

    @property
    def calibrated(self) -> bool:
        """Whether nothing needs to be learnt any more."""
        return self.best.calibrated and (not isinstance(self.vote, Calibrates) or self.vote.calibrated)

    def calibrate(self, scores: Iterable[Sequence[float]]) -> Mixed:
        """Return this strategy with its scales learnt from raw scores [S, K]."""
        rows, k = list(scores), len(self.best.objectives)
        twin = copy.copy(self)
        twin.best = self.best.calibrate([row[1 : 1 + k] for row in rows])
        if isinstance(self.vote, WeightedVote):
            twin.vote = self.vote.calibrate([(row[0], *row[1 + k :]) for row in rows])
        return twin

    def place(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Return scores [K], raw ones on their scales; raises StateError before these are learnt."""
        k = len(self.best.objectives)
        own = (scores[0], *scores[1 + k :])
        metric, *weights = self.vote.place(own) if isinstance(self.vote, Calibrates) else own
        return (metric, *self.best.place(scores[1 : 1 + k]), *weights)

    def restore(self, calibration: Mapping[str, Any]) -> Mixed:
        """Return this strategy with the scales of a saved program; raises StateError where they are not its own."""
        twin = copy.copy(self)
        twin.best = self.best.restore(calibration.get("objectives", {}))
        if isinstance(self.vote, WeightedVote):
            twin.vote = self.vote.restore(calibration.get("vote", {}))
        return twin

    def aggregator(self) -> Aggregator:
        """Return the vectorised form."""
        style = tuple(range(1, len(self.objectives)))
        floors = self.lowest
        if not isinstance(self.vote, WeightedVote):
            return TallyAggregator(floors=floors, style=style)
        upper = self.vote.weight.bounds[1]
        return TallyAggregator(floors=(*floors, 0.0), style=style, weight=len(self.objectives), upper=upper)

    def check(self, *, metric: Metric | None) -> None:
        """Raise ConfigurationError without a callable metric."""
        self.vote.check(metric=metric)

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise if the student does not fit the vote or the objectives."""
        self.vote.check_student(inputs, outputs)
        self.best.check_student(inputs, outputs)

    def fitted(self, outputs: Mapping[str, Any]) -> Mixed:
        """Return this strategy for a student whose field has this type."""
        twin = copy.copy(self)
        twin.vote = self.vote.fitted(outputs)
        return twin

    def classes(self) -> Classes:
        """Return empty answer classes for one query or one call."""
        return self.vote.classes()

    def value(self, prediction: dspy.Prediction) -> Any:
        """Return the normalised answer."""
        return self.vote.value(prediction)

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion with the metric and under every objective."""
        scored = self.vote.score(example, prediction, metric)
        if scored.scores is None:
            return scored
        return joined(scored, self.best.score(example, prediction, None), self._n_weights)

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score a stand-in prediction; raise the errors that `score` would hide."""
        self.vote.probe(example, prediction, metric)
        self.best.probe(example, prediction, None)

    def read(self, inputs: Mapping[str, Any], prediction: dspy.Prediction) -> Scored:
        """Return the answer that this prediction votes for, and its scores under every objective."""
        scored = self.vote.read(inputs, prediction)
        if scored.failure is not None:
            return scored
        return joined(scored, self.best.read(inputs, prediction), self._n_weights)

    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        """Choose the best completion of the answer that wins the vote."""
        tally = self.vote.tally(read)
        if not tally.votes:
            return None
        best = self.best.choose(self._agreeing(read, tally), weights[1:])
        assert best is not None  # a completion that has a vote has scores
        return Selection(index=best.index, votes=tally.shown(), utilities=best.utilities, failures=tally.failures)

    def settled(self, read: Sequence[Scored], weights: FloatArray, remaining: int) -> bool:
        """Tell whether the vote is settled, and a completion that agrees is as good as one can be."""
        if remaining == 0:
            return True
        tally = self.vote.tally(read)
        if not tally.votes or not tally.settled(remaining):
            return False
        return self.best.settled(self._agreeing(read, tally), weights[1:], remaining)

    def _agreeing(self, read: Sequence[Scored], tally: Tally) -> list[Scored]:
        """Return the completions with the scores of the objectives; without scores where they do not agree."""
        winner, k = tally.ranked()[0], len(self.best.objectives)
        return [
            replace(s, scores=s.scores[:k]) if label == winner and s.scores is not None else replace(s, scores=None)
            for s, label in zip(read, tally.labels, strict=True)
        ]

    def pretend(self, quality: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Make up votes and objectives that are as good."""
        label, worth = pretended_votes(quality, self.vote.bounds, rng)
        low, high = np.array(self.best.lowest), np.array(self.best.highest)
        share = np.clip(quality[:, None] + rng.normal(0.0, 0.2, (len(quality), len(low))), 0.0, 1.0)
        columns = [worth[:, None], low + share * (high - low)]
        if isinstance(self.vote, WeightedVote):
            columns.append(np.full((len(label), 1), self.vote.weight.bounds[1]))
        return label, np.concatenate(columns, axis=1)

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the code of the metric, the normalisation and the objectives."""
        return function_digest(self.vote.digest(metric), self.best.digest(None))

    def to_dict(self) -> dict[str, Any]:
        """Return this strategy's identity as JSON data."""
        vote, best = self.vote.to_dict(), self.best.to_dict()
        learnt = {"objectives": best.get("calibration"), "vote": vote.pop("calibration", None)}
        learnt = {part: scales for part, scales in learnt.items() if scales}
        return {
            "kind": "mixed",
            "name": self.name,
            "vote": vote,
            "objectives": best["objectives"],
            **({"calibration": learnt} if learnt else {}),
        }
