"""TRIPLE-SH: prompts chosen by sequential halving at N = 1, blind to how inference scales (Shi et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.outcome import Outcome, Run
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import Arm, Observations, Policy


@dataclass(frozen=True, kw_only=True)
class Triple:
    """Trim the prompts of each context on single completions; the same trimming as PSST over the arms (p, 1).

    The arrays of its outcomes have N = 1.

    Args:
        scale: The scale of the policy: always 1, or drawn uniformly from 1 .. N_max for each context.
    """

    scale: Literal["one", "random"] = "one"

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`: one completion of each prompt."""
        return problem.n_prompts

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`."""
        single = PSST().start(replace(problem, max_n=1), budget=budget, seed=seed)
        return single if self.scale == "one" else _with_random_scales(single, problem.max_n, seed)

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Implement `Algorithm.solve`, always at scale 1."""
        return PSST().solve(replace(problem, max_n=1), rounds)


def _with_random_scales(single: Run, max_n: int, seed: int) -> Run:
    outcome = yield from single
    scales = np.random.default_rng([seed, 0]).integers(1, max_n + 1, size=len(outcome.policy)).tolist()
    arms = tuple(Arm(arm.prompt, n) for arm, n in zip(outcome.policy.arms, scales, strict=True))
    return replace(outcome, policy=Policy(arms))
