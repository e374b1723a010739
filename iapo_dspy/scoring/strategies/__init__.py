"""Strategies: how N completions become one answer, while compiling and when deployed."""

from iapo_dspy.scoring.answers.classes import Classes, Equates, classes_of
from iapo_dspy.scoring.answers.equality import close, math_equal
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.strategies.averages import Mean, Median
from iapo_dspy.scoring.strategies.best_of_n import BestOfN
from iapo_dspy.scoring.strategies.by_name import strategy_of
from iapo_dspy.scoring.strategies.mixed import Mixed
from iapo_dspy.scoring.strategies.port import (
    Calibrates,
    Pretends,
    Selection,
    Settles,
    Strategy,
    Typed,
    bounds_of,
    columns_of,
    fitted,
    highest_of,
    lowest_of,
)
from iapo_dspy.scoring.strategies.vote import MajorityVote
from iapo_dspy.scoring.strategies.weighted_vote import WeightedVote

__all__ = [
    "BestOfN",
    "Calibrates",
    "Classes",
    "Equates",
    "MajorityVote",
    "Mean",
    "Median",
    "Mixed",
    "Objective",
    "Pretends",
    "Selection",
    "Settles",
    "Strategy",
    "Typed",
    "WeightedVote",
    "bounds_of",
    "classes_of",
    "close",
    "columns_of",
    "fitted",
    "highest_of",
    "lowest_of",
    "math_equal",
    "strategy_of",
]
