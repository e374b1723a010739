"""What predictions are made of, kept for who predicts more: when calls stop."""

from __future__ import annotations

from dataclasses import dataclass

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.traits import Traits
from iapo_dspy.types import FloatArray

__all__ = ["BestOfModel", "VoteModel"]


@dataclass(frozen=True, kw_only=True, eq=False)
class VoteModel:
    """What predictions of votes are made of.

    Attributes:
        cells: Everything that was drawn.
        traits: The fitted model of right answers, one event.
        top_share: Share that the strongest wrong answer has of what the best one leaves over [P, V].
        worth: What the best answer of each query is worth [V].
        rest: What a completion without it is worth on average [V].
    """

    cells: Cells
    traits: Traits
    top_share: FloatArray
    worth: FloatArray
    rest: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class BestOfModel:
    """What predictions of Best-of-N are made of, one entry per row of objective weights [W].

    Attributes:
        cells: Everything that was drawn.
        values: Weighted score of each completion, NaN for failed ones, each [S].
        floors: Value where all completions failed.
        levels: Values between which scores are cut, ascending, each [J + 1].
        traits: The fitted model of a score above each cut, J events; None where there is one level only.
    """

    cells: Cells
    values: tuple[FloatArray, ...]
    floors: tuple[float, ...]
    levels: tuple[FloatArray, ...]
    traits: tuple[Traits | None, ...]
