"""Disjoint optimization: the prompt first, on single completions, then its scale."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.algorithms.psst import draw_pulls
from iapo_dspy.bandit.baselines.triple import Triple
from iapo_dspy.bandit.baselines.uniform import Baseline
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Run
from iapo_dspy.bandit.problem import Problem


@dataclass(frozen=True)
class Disjoint(Baseline):
    """Spend half of the budget on TRIPLE at N = 1, the rest on the chosen prompts at their largest scale.

    Each context then takes the best scale of its prompt. The single completions of the first half count in the
    estimates too.
    """

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`.

        One half pays for one completion of each prompt, the other for one pull of as many prompts as there are
        contexts.
        """
        chosen = min(problem.n_prompts, problem.n_contexts)
        return max(2 * problem.n_prompts, 2 * chosen * problem.max_n - 1)

    def run(self, problem: Problem, budget: int, seed: int) -> Run:
        """Implement `Baseline.run`."""
        first = yield from Triple().start(problem, budget=budget // 2, seed=seed)
        state = Elimination(problem, estimator=BlockEstimator)
        state.active[:] = False
        for context, arm in enumerate(first.policy.arms):
            state.active[context, arm.prompt] = True
        for observations in first.observations:
            state.observe(observations)
        if not first.complete:
            return state.outcome(complete=False)
        scales = np.where(state.active.any(axis=(0, 2)), problem.max_n, 0)
        times = int((budget - state.spent) // scales.sum())
        pulls = draw_pulls(problem, scales, times, seed, 1 + len(first.rounds))
        observations = yield replace(pulls, interim=state.interim(rounds_left=1))
        state.observe(observations)
        return state.outcome(complete=observations.pulls.completions == pulls.completions)
