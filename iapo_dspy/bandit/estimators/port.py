"""The port between algorithms and estimators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from iapo_dspy.types import Contexts, FloatArray, IntArray, Observations

__all__ = ["ArmEvidence", "ComparingEstimator", "Estimates", "Estimator"]


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """What a set of observations says about every arm.

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
        """Return what is known by now."""


@runtime_checkable
class ArmEvidence(Protocol):
    """What is known of every arm, such that arms can be compared on the queries that they share."""

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
        """Return what is known by now; asked for only after the first update."""
