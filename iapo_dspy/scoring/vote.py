"""Majority vote (eq. 2): the answer that most completions give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.bandit.aggregators import Aggregator, MajorityVoteAggregator
from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.scoring.answers import Normalize, answer_key, is_hashable_type, normalize_answer
from iapo_dspy.scoring.callables import misfit, name_of
from iapo_dspy.scoring.port import Selection
from iapo_dspy.scoring.scores import Metric, Scored, as_score, check_bounds, function_digest
from iapo_dspy.types import FloatArray

__all__ = ["MajorityVote"]


class MajorityVote:
    """Majority vote over one output field (eq. 2 of the paper).

    The answer with most votes wins, ties with probability 1/t each: the tied answer that was drawn first is
    returned, which is the same in law because completions are exchangeable.

    Args:
        field: Output field that is voted on.
        normalize: Field value -> hashable form in which answers are compared. Default: `normalize_answer`.
        bounds: Lowest and highest value of the metric.
        strict: Whether `field` must be declared by one of the student's predictors. Set it to False for a module
            that builds its own Prediction with another field.

    Raises:
        ConfigurationError: `field` is no name, `normalize` is not callable, or the bounds are wrong.
    """

    def __init__(
        self,
        field: str,
        *,
        normalize: Normalize | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        strict: bool = True,
    ) -> None:
        if not isinstance(field, str) or not field.isidentifier():
            raise ConfigurationError(f"MajorityVote({field!r}): give the name of the output field to vote on.")
        if normalize is not None and not callable(normalize):
            raise ConfigurationError(f"MajorityVote: normalize must be callable, got {normalize!r}.")
        self.field = field
        self.normalize: Normalize = normalize or normalize_answer
        self.bounds = check_bounds(bounds, "MajorityVote")
        self.strict = strict

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metric is the only objective."""
        return ("metric",)

    def aggregator(self) -> Aggregator:
        """Return eq. 2 in vectorised form."""
        return MajorityVoteAggregator(floor=self.bounds[0])

    def check(self, *, metric: Metric | None) -> None:
        """Raise ConfigurationError without a callable metric."""
        if metric is None or not callable(metric):
            raise ConfigurationError(
                f"MajorityVote needs a metric to know which answers are right, got metric={metric!r}. Pass "
                "metric(example, prediction, trace=None) -> bool or a number."
            )
        found = misfit(metric)
        if found is not None:
            raise ConfigurationError(
                f"metric {name_of(metric)}{found}: it must be callable as metric(example, prediction, trace=None)."
            )

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise ConfigurationError if the student lacks the field, or its type cannot be counted."""
        if self.field not in outputs:
            if not self.strict:
                return
            raise ConfigurationError(
                f"MajorityVote({self.field!r}): the student's output fields are {sorted(outputs)}. Name one of them; "
                "for a module that builds its own Prediction, pass strict=False."
            )
        annotation = outputs[self.field]
        if self.normalize is normalize_answer and not is_hashable_type(annotation):
            raise ConfigurationError(
                f"MajorityVote({self.field!r}): values of type {annotation} are not hashable, so they cannot be "
                "counted. Pass normalize=, a function that returns a string, a number or a tuple."
            )

    def key(self, prediction: dspy.Prediction) -> str | None:
        """Return the key under which this prediction votes; None for no vote."""
        # Not getattr: a field may be called `labels` or `items`, as methods of a Prediction are.
        return answer_key(prediction[self.field], self.normalize)

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion with the metric."""
        try:
            return self._score(example, prediction, metric)
        except Exception as exc:  # noqa: BLE001  # user code: its failure is this completion's, kept with its cause
            return Scored(failure=one_line(exc), error=True)

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score a stand-in prediction; raises what `score` would hide."""
        if metric is not None and self.field in prediction:
            as_score(metric(example, prediction), what=name_of(metric), bounds=self.bounds)

    def _score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        if metric is None:
            raise ConfigurationError("MajorityVote needs a metric.")
        read = self._answer(prediction)
        if read.failure is not None:
            return read
        value = metric(example, prediction)
        return Scored(answer=read.answer, scores=(as_score(value, what=name_of(metric), bounds=self.bounds),))

    def read(self, inputs: Mapping[str, Any], prediction: dspy.Prediction) -> Scored:
        """Return the answer that this prediction votes for."""
        try:
            return self._answer(prediction)
        except Exception as exc:  # noqa: BLE001  # the user's normalize
            return Scored(failure=one_line(exc), error=True)

    def _answer(self, prediction: dspy.Prediction) -> Scored:
        if self.field not in prediction:
            return Scored(failure=f"the prediction has no field {self.field!r}")
        answer = self.key(prediction)
        if answer is None:
            return Scored(failure=f"field {self.field!r} is empty")
        return Scored(answer=answer)

    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        """Choose the first completion of the answer with most votes."""
        votes, first = _count(read)
        if not votes:
            return None
        ranked = dict(sorted(votes.items(), key=lambda item: (-item[1], first[item[0]])))
        failures = {i: s.failure for i, s in enumerate(read) if s.failure is not None}
        return Selection(index=first[next(iter(ranked))], votes=ranked, failures=failures)

    def settled(self, read: Sequence[Scored], weights: FloatArray, remaining: int) -> bool:
        """Tell whether the leader wins whoever gets the remaining votes.

        An answer that is not there yet can get `remaining` votes, and loses a tie, for it comes later.
        """
        votes, first = _count(read)
        if not votes:
            return remaining == 0
        leader = max(votes, key=lambda a: (votes[a], -first[a]))
        rivals = [(votes[a] + remaining, -first[a]) for a in votes if a != leader]
        return max([*rivals, (remaining, -len(read))]) < (votes[leader], -first[leader])

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the metric's and the normalisation's code."""
        return function_digest(metric, self.normalize, self.bounds)

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies this strategy as JSON data."""
        custom = None if self.normalize is normalize_answer else name_of(self.normalize)
        return {"kind": "majority_vote", "field": self.field, "normalize": custom, "bounds": list(self.bounds)}


def _count(read: Sequence[Scored]) -> tuple[dict[str, int], dict[str, int]]:
    """Return each answer's votes and the position of its first vote."""
    votes: dict[str, int] = {}
    first: dict[str, int] = {}
    for i, scored in enumerate(read):
        if scored.answer is not None and scored.failure is None:
            votes[scored.answer] = votes.get(scored.answer, 0) + 1
            first.setdefault(scored.answer, i)
    return votes, first
