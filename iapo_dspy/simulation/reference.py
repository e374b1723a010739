"""The budget rule of the authors' published code, to compare with their figures. For simulations only.

There every round gets T / R completions and makes max(1, floor(n_r / M)) pulls of each surviving prompt: what a round
does not spend is lost, and a round whose share is below one pull overspends. At T = 1,000 on 25 prompts and scales up
to 32, a run really spends about 2,600. `bandit.algorithms.psst` never does that. Ties go to the arm that comes first,
not to the cheaper one, which matters where an arm has seen one query only.
"""

from __future__ import annotations

from dataclasses import replace

from iapo_dspy.bandit.algorithms.allocation import allocate
from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.algorithms.psst import Share, screened_rounds, trimming_rounds
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.baselines.uniform import pull_all
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Algorithm
from iapo_dspy.bandit.problem import Problem, check_budget
from iapo_dspy.types import IntArray

__all__ = ["overspending_psst", "overspending_triple", "overspending_uniform"]


def overspending_psst(problem: Problem, *, budget: int, seed: int, screening: Screening | None = None) -> Algorithm:
    """Run PSST, with or without Top-K screening, under the overspending rule.

    Args:
        problem: The problem.
        budget: T, completions; at least P with screening. More may be spent.
        seed: Root of the random streams, >= 0.
        screening: Top-K screening before the first round.
    """
    check_budget(budget, seed, least=1, what="PSST")
    state = Elimination(problem, estimator=BlockEstimator, prefer_cheaper=False)
    if screening is None:
        return trimming_rounds(problem, state, seed, _share(budget))
    first = max(screening.budget(budget), problem.n_prompts)
    return screened_rounds(problem, state, seed, _share(budget - screening.budget(budget)), screening.k, first)


def overspending_triple(problem: Problem, *, budget: int, seed: int) -> Algorithm:
    """Run TRIPLE-SH (N = 1) under the overspending rule."""
    return overspending_psst(replace(problem, max_n=1), budget=budget, seed=seed)


def overspending_uniform(problem: Problem, *, budget: int, seed: int) -> Algorithm:
    """Explore uniformly with at least one pull of each prompt, whatever the budget."""
    check_budget(budget, seed, least=1, what="uniform exploration")
    state = Elimination(problem, estimator=BlockEstimator, prefer_cheaper=False)
    return pull_all(problem, state, max(1, budget // (problem.n_prompts * problem.max_n)), seed)


def _share(budget: int) -> Share:
    def share(r: int, rounds: int, spent: int, scales: IntArray) -> int:
        return max(1, allocate(scales, budget // rounds))

    return share
