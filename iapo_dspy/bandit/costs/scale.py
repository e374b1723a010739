"""The utility of a raw unit of cost."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import Observations

_AVERAGE_CALL = 0.01  # utility that a call for a single completion of the student is worth at cost weight 1


class CostScale:
    """The utility of one raw cost unit: given, or learnt from the first observations and then frozen.

    The student's average call for a single completion costs 0.01, where the environment measures it
    (`Observations.unit`). Elsewhere, as in the paper's recordings, the average over all prompts takes its place: the
    mean over prompts of each prompt's mean overhead per pull plus its mean cost per completion, from the first
    observations that cover every prompt.

    Args:
        problem: `problem.cost_scale` is used as it is, unless it is `None`.
    """

    def __init__(self, problem: Problem) -> None:
        self._fixed = problem.cost_scale
        self._cost = np.zeros(problem.n_prompts)
        self._completions = np.zeros(problem.n_prompts)
        self._overhead = np.zeros(problem.n_prompts)
        self._pulls = np.zeros(problem.n_prompts)
        self._pulled = np.zeros(problem.n_prompts, dtype=bool)

    def observe(self, observations: Observations) -> None:
        """Learn the scale and freeze it once it is known; afterwards nothing changes."""
        if self._fixed is None and observations.unit is not None:
            self._fixed = _AVERAGE_CALL / observations.unit
        if self._fixed is not None:
            return
        pulls, n_prompts = observations.pulls, len(self._cost)
        # A completion that failed before it cost anything, such as a refused request, does not show the price.
        pull = np.repeat(np.arange(len(pulls)), pulls.size)
        free = (observations.cost == 0) & (observations.overhead[pull] == 0)
        counts = ~(observations.failed & free)
        prompt = pulls.prompt[pull[counts]]
        self._cost += np.bincount(prompt, weights=observations.cost[counts], minlength=n_prompts)
        self._completions += np.bincount(prompt, minlength=n_prompts)
        paid = np.unique(pull[counts])
        self._overhead += np.bincount(pulls.prompt[paid], weights=observations.overhead[paid], minlength=n_prompts)
        self._pulls += np.bincount(pulls.prompt[paid], minlength=n_prompts)
        self._pulled[pulls.prompt] = True
        if self._pulled.all() and self._completions.any():
            self._fixed = self.value

    @property
    def value(self) -> float:
        """The scale; before it is frozen, by the prompts pulled so far. 0 where all is free."""
        if self._fixed is not None:
            return self._fixed
        pulled = self._completions > 0
        calls = self._overhead[pulled] / self._pulls[pulled] + self._cost[pulled] / self._completions[pulled]
        mean = float(calls.mean()) if pulled.any() else 0.0
        return _AVERAGE_CALL / mean if mean > 0 else 0.0
