"""Strategies: how N completions become one answer, while compiling and when deployed."""

from iapo_dspy.scoring.best_of_n import BestOfN
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.port import Selection, Settles, Strategy
from iapo_dspy.scoring.vote import MajorityVote

__all__ = ["BestOfN", "MajorityVote", "Objective", "Selection", "Settles", "Strategy"]
