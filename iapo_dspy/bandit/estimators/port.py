"""The port of estimators: estimates of every arm from all draws so far.

`Estimator` gives values only, which is enough to trim arms. `ComparingEstimator` also gives the standard error of the
difference between two arms on the queries that they share, which the default algorithm ranks prompts by. Both keep
state: `update` takes in one batch, and is never given a batch twice. An arm without evidence has NaN, and a failed
completion counts as the aggregator counts it. An estimator raises nothing for a batch that is empty or failed
altogether.

Example:
    >>> import numpy as np
    >>> class Coin:
    ...     '''Say that every arm is worth one half, whatever was drawn.'''
    ...     def __init__(self, problem):
    ...         self.shape = problem.shape
    ...     def update(self, observations):
    ...         pass
    ...     def estimates(self):
    ...         return Estimates(
    ...             reward=np.full(self.shape, 0.5), cost=np.ones(self.shape[1:]), count=np.ones(self.shape[1:], int)
    ...         )
    >>> from iapo_dspy.bandit.algorithms.psst import PSST
    >>> PSST(estimator=Coin).estimator.__name__
    'Coin'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from iapo_dspy.types import Contexts, FloatArray, IntArray, Observations


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Estimates of every arm from a set of observations.

    Attributes:
        reward: Mean task reward [C, P, N], NaN where there is no evidence.
        cost: Mean raw cost of a call of an arm, overhead and n completions [P, N], NaN where there is no evidence.
        count: Evidence behind each arm [P, N]; for block estimates the number of blocks. 0: no evidence.
        standard_error: Standard error of `reward` [C, P, N]; `None` from estimators that have none.
    """

    reward: FloatArray
    cost: FloatArray
    count: IntArray
    standard_error: FloatArray | None = None

    def utility(self, contexts: Contexts, cost_scale: float) -> FloatArray:
        """Return Q [C, P, N]: task reward minus priced cost (eq. 1, eq. 2), NaN where there is no evidence."""
        return self.reward - contexts.cost[:, None, None] * (cost_scale * self.cost)

    def or_else(self, older: Estimates) -> Estimates:
        """Return these estimates, and the older ones for arms without evidence here."""
        new = self.count > 0
        return Estimates(
            reward=np.where(new, self.reward, older.reward),
            cost=np.where(new, self.cost, older.cost),
            count=np.where(new, self.count, older.count),
        )


@runtime_checkable
class Estimator(Protocol):
    """Turns observations into estimates of every arm's value (Algorithm 1, line 17)."""

    def update(self, observations: Observations) -> None:
        """Take in one more batch; earlier batches are not looked at again."""

    def estimates(self) -> Estimates:
        """Return the estimates by now."""


@runtime_checkable
class ArmEvidence(Protocol):
    """Evidence of every arm, by which arms are compared on the queries that they share."""

    @property
    def n_visited(self) -> int:
        """Queries that were drawn so far."""

    @property
    def cost(self) -> FloatArray:
        """Raw cost of a call of each arm [P, N]; NaN where there is no evidence."""

    def reward(self) -> FloatArray:
        """Return the estimated task reward [C, P, N]; NaN where there is no evidence."""

    def standard_error(self) -> FloatArray:
        """Return the standard error of each arm's reward [C, P, N], finite."""

    def against(
        self, context: int, prompts: IntArray, scales: IntArray, prompt: int, scale: int, *, model: bool = False
    ) -> FloatArray:
        """Return the standard error of the difference in reward of some arms from one [M], finite.

        Args:
            context: Which context.
            prompts: Prompts of the arms [M].
            scales: Their scales, 1-based [M].
            prompt: The arm they are compared with.
            scale: Its scale.
            model: Whether to leave out errors that do not help to rank prompts for further draws.
        """

    def estimates(self) -> Estimates:
        """Summarise the evidence."""


@runtime_checkable
class ComparingEstimator(Protocol):
    """Turns observations into evidence."""

    def update(self, observations: Observations) -> None:
        """Take in one more batch."""

    def evidence(self) -> ArmEvidence:
        """Return the evidence by now; asked for only after the first update."""
