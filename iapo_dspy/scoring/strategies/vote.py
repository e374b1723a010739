"""Majority vote (eq. 2): the answer that most completions give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
import numpy as np

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.answers.classes import Classes, grouped
from iapo_dspy.scoring.answers.equality import Equality, Pairs, describe_equality, equality_of
from iapo_dspy.scoring.answers.normalize import Normalize, answer_key, is_countable_type, normalize_answer, parsed
from iapo_dspy.scoring.scores import Metric, Scored, function_digest
from iapo_dspy.scoring.strategies.one_field import OneField
from iapo_dspy.scoring.strategies.port import Selection
from iapo_dspy.scoring.user_functions import name_of
from iapo_dspy.types import FloatArray, IntArray

_RIVALS = 4  # wrong answers that a made-up vote has


class MajorityVote(OneField):
    """Majority vote over one output field (eq. 2 of the paper).

    The answer with most votes wins, ties with probability 1/t each: the tied answer that was drawn first is
    returned, which is the same in law because completions are exchangeable.

    Fields of any type that shows its content are counted: strings, numbers, bools, Literal, enums, lists, tuples,
    sets, dictionaries and pydantic models, nested and optional ones too. A typed field that is left as text is read
    as its type where it can be.

    Args:
        field: Output field that is voted on. Default: the student's only output field beside `reasoning`.
        normalize: Field value -> form in which answers are compared. Default: `normalize_answer`.
        equal: `close(...)`, `math_equal()` or a function (a, b) -> bool of two normalised answers: answers that it
            holds equal are one. It need not be transitive: in the order of drawing, each answer joins the first one
            that it equals (see `Classes`).
        tolerance: Short for `equal=close(absolute=tolerance)`.
        bounds: Lowest and highest value of the metric.
        strict: Whether `field` must be declared by one of the student's predictors. Set it to False for a module
            that builds its own Prediction with another field.

    Raises:
        ConfigurationError: `field` is not a name, `normalize` or `equal` cannot be called, or a number is out of range.
    """

    def __init__(
        self,
        field: str | None = None,
        *,
        normalize: Normalize | None = None,
        equal: Equality | None = None,
        tolerance: float | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        strict: bool = True,
    ) -> None:
        super().__init__(field, bounds=bounds, strict=strict)
        if normalize is not None and not callable(normalize):
            raise ConfigurationError(f"{self._what}: normalize must be callable, got {normalize!r}.")
        self.equal = equality_of(self._what, equal, tolerance)
        self._custom = normalize
        self.normalize: Normalize = normalize or getattr(self.equal, "normalize", None) or normalize_answer
        self._pairs = Pairs(self.equal) if self.equal is not None else None
        self._annotation: Any = None

    def aggregator(self) -> Aggregator:
        """Return eq. 2 in vectorised form."""
        return MajorityVoteAggregator(floor=self.bounds[0])

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise ConfigurationError if the student lacks the field, or its type cannot be counted."""
        if self._field is None:
            self.fitted(outputs).check_student(inputs, outputs)
            return
        super().check_student(inputs, outputs)
        annotation = outputs.get(self.field)
        if self._custom is None and not is_countable_type(annotation):
            raise ConfigurationError(
                f"{self._what}: nothing but their addresses tells values of type {annotation} apart, so they cannot be "
                "counted. Pass normalize=, a function that returns a string, a number or a list."
            )

    def fitted(self, outputs: Mapping[str, Any]) -> MajorityVote:
        """Return this vote for a student with these output fields: it knows its field, and that field's type."""
        twin = self._with_field(outputs)
        twin._annotation = outputs.get(twin.field)
        return twin

    def classes(self) -> Classes:
        """Return empty answer classes for one query or one call."""
        return Classes(self._pairs)

    def value(self, prediction: dspy.Prediction) -> Any:
        """Return the normalised answer."""
        # Not getattr: a field may be called `labels` or `items`, as methods of a Prediction are.
        value = prediction[self.field]
        if self._custom is None:
            value = parsed(value, self._annotation)
        return None if value is None else self.normalize(value)

    def key(self, prediction: dspy.Prediction) -> str | None:
        """Return the key under which this prediction votes; None for no vote."""
        return answer_key(self.value(prediction), lambda value: value)

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score a stand-in prediction; raise the errors that `score` would hide."""
        if metric is not None and self.field in prediction:
            self._by_metric(example, prediction, metric)

    def _scored(
        self, read: Scored, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None
    ) -> Scored:
        return replace(read, scores=(self._by_metric(example, prediction, metric),))

    def _read_value(self, prediction: dspy.Prediction) -> Scored:
        value = self.value(prediction)
        answer = answer_key(value, lambda value: value)
        if answer is None:
            return Scored(failure=f"field {self.field!r} is empty")
        return Scored(answer=answer, value=value if self.equal is not None else None)

    def tally(self, read: Sequence[Scored]) -> Tally:
        """Count the votes of completions in order of drawing, as `read` returned them."""
        return Tally.of(read, self.classes())

    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        """Choose the first completion of the answer with most votes."""
        tally = self.tally(read)
        if not tally.votes:
            return None
        return Selection(index=tally.first[tally.ranked()[0]], votes=tally.shown(), failures=tally.failures)

    def settled(self, read: Sequence[Scored], weights: FloatArray, remaining: int) -> bool:
        """Tell whether the leader wins even if every remaining vote has full weight and goes to one other answer.

        An answer that nobody has given yet can get `remaining` votes. It loses a tie because it comes later.
        """
        return self.tally(read).settled(remaining)

    def pretend(self, quality: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Make up votes for the right answer or one of a few wrong ones; columns of a subclass are in [0, 1]."""
        label, worth = pretended_votes(quality, self.bounds, rng)
        more = quality[:, None] + rng.normal(0.0, 0.2, (len(label), len(self.columns) - 1))
        return label, np.concatenate([worth[:, None], np.clip(more, 0.0, 1.0)], axis=1)

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the metric's and the normalisation's code."""
        return function_digest(metric, self.normalize, self.bounds, answer_key)

    def to_dict(self) -> dict[str, Any]:
        """Return this strategy's identity as JSON data."""
        custom = None if self._custom is None else name_of(self._custom)
        equal = {"equal": describe_equality(self.equal)} if self.equal is not None else {}
        return {
            "kind": "majority_vote",
            "field": self._field,
            "normalize": custom,
            **equal,
            "bounds": list(self.bounds),
        }


def pretended_votes(
    quality: FloatArray, bounds: tuple[float, float], rng: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    """Make up labels [S], 0 for the right answer, and scores [S]: the highest for right ones, the lowest for others."""
    right = rng.random(len(quality)) < quality
    label = np.where(right, 0, 1 + rng.integers(0, _RIVALS, len(quality)))
    return label, np.where(right, bounds[1], bounds[0])


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The votes of one call, answer class by answer class.

    Attributes:
        labels: Class of each completion, None where it has no vote.
        votes: Class -> its votes, or the sum of their weights in whole units.
        first: Class -> position of its first vote.
        classes: The answers that lead the classes.
        failures: Position -> why a completion has no vote.
        most: Units of a vote of full weight.
        worth: Weight, on the user's scale, of `most` units.
    """

    labels: Sequence[int | None]
    votes: Mapping[int, int]
    first: Mapping[int, int]
    classes: Classes
    failures: Mapping[int, str]
    most: int = 1
    worth: float = 1

    @classmethod
    def of(
        cls,
        read: Sequence[Scored],
        classes: Classes,
        units: Sequence[int] | None = None,
        *,
        most: int = 1,
        worth: float = 1,
    ) -> Tally:
        """Count the votes of completions in order of drawing; `units` are their weights, 1 each by default."""
        labels, failures = grouped(read, classes)
        votes: dict[int, int] = {}
        first: dict[int, int] = {}
        for i, label in enumerate(labels):
            if label is not None:
                votes[label] = votes.get(label, 0) + (1 if units is None else units[i])
                first.setdefault(label, i)
        return cls(labels=labels, votes=votes, first=first, classes=classes, failures=failures, most=most, worth=worth)

    def ranked(self) -> list[int]:
        """Return the classes, most votes first; of equals, the one that was drawn first."""
        return sorted(self.votes, key=lambda label: (-self.votes[label], self.first[label]))

    def shown(self) -> dict[str, float]:
        """Return answer -> votes, or the sum of their weights, most first."""
        votes: dict[str, float] = {self.classes.name(label): self.votes[label] for label in self.ranked()}
        return votes if self.most == 1 else {name: units * self.worth / self.most for name, units in votes.items()}

    def settled(self, remaining: int) -> bool:
        """Tell whether the leader wins even if every remaining vote goes to one other answer."""
        if remaining == 0:
            return True
        if not self.votes:
            return False
        leader, gain = self.ranked()[0], remaining * self.most
        rivals = [(self.votes[a] + gain, -self.first[a]) for a in self.votes if a != leader]
        return max([*rivals, (gain, -len(self.labels))]) < (self.votes[leader], -self.first[leader])
