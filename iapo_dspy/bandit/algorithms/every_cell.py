"""The law of every cell: S completions of every prompt on every query. It searches nothing, and serves recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Outcome, Run
from iapo_dspy.bandit.problem import Problem, check_budget
from iapo_dspy.types import Observations, Pulls

LARGEST = 16  # completions of a pull: servers with few places refuse more in one request


@dataclass(frozen=True, kw_only=True)
class EveryCell:
    """Draw S completions of every prompt on every query, prompt after prompt.

    The requests of one prompt follow each other, so that caches of its beginning serve them. A budget that ends early
    leaves the last prompts without completions.

    Args:
        samples: S >= 1.
        prompts: The prompts to draw, by number and in this order; `None`: all of them.
    """

    samples: int
    prompts: tuple[int, ...] | None = None

    def least(self, problem: Problem) -> int:
        """One completion: what is missing is drawn another time."""
        return 1

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Check the budget, and return the run."""
        check_budget(budget, seed, least=self.least(problem), what="a recording")
        return self._run(problem, budget)

    def _run(self, problem: Problem, budget: int) -> Run:
        state, left = _books(problem), budget
        for pulls in self.pulls(problem):
            fits = np.cumsum(pulls.size) <= left
            left -= pulls.completions
            if not fits.any():
                return state.outcome(complete=False)
            observations = yield pulls.take(np.flatnonzero(fits))
            state.observe(observations)
            if observations.exhausted or not fits.all():
                return state.outcome(complete=False)
        return state.outcome(complete=True)

    def pulls(self, problem: Problem) -> Sequence[Pulls]:
        """Return the pulls of each prompt: query after query, at most 16 completions each."""
        sizes = [min(LARGEST, self.samples - done) for done in range(0, self.samples, LARGEST)]
        query = np.repeat(np.arange(problem.n_queries), len(sizes))
        size = np.tile(np.array(sizes, dtype=np.int64), problem.n_queries)
        prompts = range(problem.n_prompts) if self.prompts is None else self.prompts
        return [Pulls(np.full(len(query), prompt), query, size) for prompt in prompts]

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Choose arms from the completions that a run has drawn."""
        state = _books(problem)
        for observations in rounds:
            state.observe(observations)
        return state.outcome(complete=True)


def _books(problem: Problem) -> Elimination:
    return Elimination(problem, estimator=BlockEstimator)
