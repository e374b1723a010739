"""Uniform exploration, and the base of the baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.algorithms.psst import draw_pulls
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Outcome, Run
from iapo_dspy.bandit.problem import Problem, check_all_present, check_budget
from iapo_dspy.types import Observations


class Baseline(ABC):
    """Base of algorithms that keep every arm alive to the end."""

    @abstractmethod
    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`."""

    @abstractmethod
    def run(self, problem: Problem, budget: int, seed: int) -> Run:
        """Make a run with a budget that has been checked."""

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`."""
        check_all_present(problem, type(self).__name__)
        check_budget(budget, seed, least=self.least(problem), what=type(self).__name__)
        return self.run(problem, budget, seed)

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Implement `Algorithm.solve`: the best arm by the block estimates of everything that was drawn."""
        state = Elimination(problem, estimator=BlockEstimator)
        for observations in rounds:
            state.observe(observations)
        return state.outcome(complete=True)


@dataclass(frozen=True)
class Uniform(Baseline):
    """Pull every prompt at its largest scale alike, floor(T / (P * N_max)) times, and take the best estimates.

    Smaller scales are estimated by block reuse.
    """

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`: one pull of each prompt at its largest scale."""
        return problem.n_prompts * problem.max_n

    def run(self, problem: Problem, budget: int, seed: int) -> Run:
        """Implement `Baseline.run`."""
        times = budget // self.least(problem)
        return pull_all(problem, Elimination(problem, estimator=BlockEstimator), times, seed)


def pull_all(problem: Problem, state: Elimination, times: int, seed: int) -> Run:
    """Pull every prompt `times` times at its largest scale, in one round, and take the best arms."""
    pulls = draw_pulls(problem, np.full(problem.n_prompts, problem.max_n), times, seed, 1)
    observations = yield pulls
    state.observe(observations)
    return state.outcome(complete=observations.pulls.completions == pulls.completions)
