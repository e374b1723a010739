r"""The metric of tasks with one right answer, and where rows have it: in \boxed{}, after ####."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.scoring.answers.equality import Equality, number_of
from iapo_dspy.scoring.answers.normalize import answer_key, normalize_answer
from iapo_dspy.scoring.fields import field_of


@dataclass(frozen=True, kw_only=True)
class RightAnswer:
    """A metric: 1 where an output field says the right answer, else 0.

    Numbers are compared by value, other answers as `MajorityVote` compares them.

    Attributes:
        field: Output field.
        label: Field of the example with the right answer.
        equal: When two answers are one, as `MajorityVote(equal=...)` takes it. None: when they are the same.
    """

    field: str
    label: str
    equal: Equality | None = None

    @property
    def labels_read(self) -> tuple[str, ...]:
        """The labels without which it cannot score."""
        return (self.label,)

    @property
    def __name__(self) -> str:
        """Its name in DSPy's tables."""
        return "right_answer"

    def __call__(
        self, example: dspy.Example, prediction: dspy.Prediction, trace: Any = None, *_: Any, **__: Any
    ) -> float:
        """Return 0 or 1; GEPA and the like pass more than is needed here.

        Raises:
            ScoreError: A field is missing.
        """
        right, given = field_of(example, self.label, "example"), field_of(prediction, self.field)
        if given is None:
            return 0.0
        if isinstance(right, (int, float)) and not isinstance(right, bool):
            return float(number_of(given) == float(right))
        if self.equal is not None:
            normal = getattr(self.equal, "normalize", normalize_answer)
            return float(bool(self.equal(normal(right), normal(given))))
        return float(answer_key(right, normalize_answer) == answer_key(given, normalize_answer))


def boxed(solution: str) -> str | None:
    r"""Return what the last \boxed{} of a solution holds, or None; \boxed 5 holds the 5."""
    start = max(solution.rfind(r"\boxed"), solution.rfind(r"\fbox"))
    if start < 0:
        return None
    rest = solution[start:].partition("x")[2].removeprefix("ed").lstrip()
    if not rest.startswith("{"):
        return rest.split("$")[0].strip() or None
    depth = 0
    for i, sign in enumerate(rest):
        escaped = i > 0 and rest[i - 1] == "\\"
        depth += 0 if escaped else (sign == "{") - (sign == "}")
        if depth == 0:
            return rest[1:i].strip() or None
    return None


def after_hashes(answer: str) -> int | float | None:
    """Return the number after #### in a worked answer, or None."""
    _, marked, said = answer.rpartition("####")
    number = number_of(said.strip().replace(",", "")) if marked else None
    return int(number) if number is not None and number == int(number) else number
