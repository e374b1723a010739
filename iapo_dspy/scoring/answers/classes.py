"""Answer classes: which completions of a query, or of a call, count as one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import dspy

from iapo_dspy.errors import one_line
from iapo_dspy.scoring.answers.equality import KeyedAnswer, Pairs
from iapo_dspy.scoring.scores import Scored


class Classes:
    """Leader clustering in order of drawing.

    The first answer founds a class and leads it. Every later answer joins the first class, in order of foundation,
    whose leader it equals, or founds one. Equal keys are equal answers. So the classes are defined, and always the
    same for the same order, also where equality is not transitive.

    Args:
        pairs: How answers with different keys are compared; None: they are different.
    """

    def __init__(self, pairs: Pairs | None = None) -> None:
        self._pairs = pairs
        self._leaders: list[KeyedAnswer] = []
        self._label: dict[str, int] = {}

    def place(self, scored: Scored) -> int | None:
        """Return the class of a completion's answer, None where it has no vote.

        Raises:
            Exception: The user's equality raised it.
        """
        if not scored.usable or scored.answer is None:
            return None
        known = self._label.get(scored.answer)
        if known is not None:
            return known
        answer = KeyedAnswer(scored.answer, scored.value)
        label = len(self._leaders)
        if self._pairs is not None:
            label = next((i for i, leader in enumerate(self._leaders) if self._pairs(leader, answer)), label)
        if label == len(self._leaders):
            self._leaders.append(answer)
        self._label[scored.answer] = label
        return label

    def name(self, label: int) -> str:
        """Return the key of the answer that leads a class."""
        return self._leaders[label].key


@runtime_checkable
class Equates(Protocol):
    """A strategy that does not tell equal answers by their keys alone."""

    def classes(self) -> Classes:
        """Return empty classes for one query or one call."""
        ...

    def value(self, prediction: dspy.Prediction) -> Any:
        """Return the value of a completion's answer, `Scored.value`: a stored score has the key only."""


def classes_of(strategy: object) -> Classes:
    """Return empty classes for one query or one call of a strategy."""
    return strategy.classes() if isinstance(strategy, Equates) else Classes()


def grouped(read: Sequence[Scored], classes: Classes) -> tuple[list[int | None], dict[int, str]]:
    """Return the class of every completion, None where it has no vote, and why some of them failed.

    Args:
        read: Completions in order of drawing.
        classes: Empty classes.
    """
    labels: list[int | None] = []
    failures = {i: s.failure for i, s in enumerate(read) if s.failure is not None and not s.usable}
    for i, scored in enumerate(read):
        try:
            labels.append(classes.place(scored))
        except Exception as exc:  # noqa: BLE001  # the user's equality: this completion has no vote
            labels.append(None)
            failures[i] = one_line(exc)
    return labels, failures
