"""The budget rule of the authors' published code, to compare with their figures. For simulations only.

There every round gets T / R completions and makes max(1, floor(n_r / M)) pulls of each surviving prompt: completions
that a round does not spend are lost, and a round whose share is below one pull overspends. At T = 1,000 on 25 prompts
and scales up to 32, a run really spends about 2,600. `bandit.algorithms.psst` never does that. Ties go to the arm that
comes first, not to the cheaper one, which matters where an arm has seen one query only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.algorithms.psst import PSST, Share, allocate, screened_rounds, trimming_rounds
from iapo_dspy.bandit.baselines.triple import Triple
from iapo_dspy.bandit.baselines.uniform import Uniform, pull_all
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Run
from iapo_dspy.bandit.problem import Problem, check_all_present, check_budget
from iapo_dspy.types import IntArray


@dataclass(frozen=True, kw_only=True)
class OverspendingPSST(PSST):
    """PSST, with or without Top-K screening, under the overspending rule."""

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`: more is spent than a small budget says."""
        return 1

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`."""
        check_all_present(problem, "PSST")
        check_budget(budget, seed, least=1, what="PSST")
        state = Elimination(problem, estimator=BlockEstimator, prefer_cheaper=False)
        if self.screening is None:
            return trimming_rounds(problem, state, seed, _share(budget))
        rest = budget - self.screening.budget(budget)
        first = max(self.screening.budget(budget), problem.n_prompts)
        return screened_rounds(problem, state, seed, _share(rest), self.screening.k, first)


class OverspendingTriple(Triple):
    """TRIPLE-SH (N = 1) under the overspending rule."""

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`."""
        return OverspendingPSST().start(replace(problem, max_n=1), budget=budget, seed=seed)


class OverspendingUniform(Uniform):
    """Uniform exploration with at least one pull of each prompt, whatever the budget."""

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`."""
        return 1

    def run(self, problem: Problem, budget: int, seed: int) -> Run:
        """Implement `Baseline.run`."""
        state = Elimination(problem, estimator=BlockEstimator, prefer_cheaper=False)
        return pull_all(problem, state, max(1, budget // (problem.n_prompts * problem.max_n)), seed)


def overspending(algorithm: Algorithm) -> Algorithm:
    """Return the algorithm under the overspending rule, where its published figures were made with it."""
    if isinstance(algorithm, PSST) and algorithm == PSST(screening=algorithm.screening):
        return OverspendingPSST(screening=algorithm.screening)
    if isinstance(algorithm, Triple):
        return OverspendingTriple()
    return OverspendingUniform() if isinstance(algorithm, Uniform) else algorithm


def _share(budget: int) -> Share:
    def share(r: int, rounds: int, spent: int, scales: IntArray) -> int:
        return max(1, allocate(scales, budget // rounds))

    return share
