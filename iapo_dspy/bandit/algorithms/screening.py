"""Top-K screening: a short look at every prompt at scale 1 before PSST."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.problem import Problem
from iapo_dspy.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Settings of Top-K screening: PSST+K1, +K4 and +K8 of the paper.

    A share `rho` of the budget draws single completions of every prompt alike; each context keeps its `k` best prompts;
    the samples are discarded, and PSST runs on the kept prompts with the rest of the budget.

    Args:
        k: Prompts that each context keeps, >= 1. More than P keeps all.
        rho: Share of the budget, in (0, 1); the paper's is 0.2.

    Raises:
        ConfigurationError: A value outside its range.
    """

    k: int
    rho: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, (int, np.integer)) or self.k < 1:
            raise ConfigurationError(f"Screening: k is {self.k!r}; give a whole number >= 1.")
        if not 0 < self.rho < 1:
            raise ConfigurationError(f"Screening: rho is {self.rho!r}; give a number between 0 and 1.")

    def budget(self, total: int) -> int:
        """Return T_0 = floor(rho * T)."""
        return math.floor(self.rho * total)

    def least(self, problem: Problem) -> int:
        """Return the smallest T with one look at every prompt and then one pull of each prompt that may be kept.

        Contexts may keep different prompts, so up to C * k of them.
        """
        after = min(problem.n_prompts, problem.n_contexts * self.k) * problem.max_n

        def enough(total: int) -> bool:
            first = self.budget(total)
            return first >= problem.n_prompts and total - first >= after

        # Both conditions hold for every larger total once they hold.
        return bisect.bisect_left(range(2**62), True, key=enough)
