"""Elimination of arms by their estimates: the part of a trimming run that needs no pulls.

PSST and its replay share this class, so a replay with the run's own contexts ends with the run's own policy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.algorithms.standing import Standing
from iapo_dspy.bandit.algorithms.trimming import best_arms, keep_best, trim
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.outcome import EstimatorFactory, Outcome, interim
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import FloatArray, Interim, Observations, Policy


class Elimination(Standing):
    """Estimates and surviving arms of one run.

    Args:
        problem: The problem.
        estimator: Makes an empty estimator.
        stockpile: Whether estimates use the observations of all rounds, or those of the last round only and older ones
            just for arms that it did not reach.
        prefer_cheaper: Whether ties go to the cheaper arm, or to the one that comes first.

    Attributes:
        active: Which arms are alive [C, P, N].
    """

    def __init__(
        self, problem: Problem, *, estimator: EstimatorFactory, stockpile: bool = True, prefer_cheaper: bool = True
    ) -> None:
        super().__init__(problem)
        self.active: NDArray[np.bool_] = np.ones(problem.shape, dtype=bool)
        self._new_estimator = estimator
        self._stockpile = stockpile
        self._prefer_cheaper = prefer_cheaper
        self._estimator = estimator(problem)
        self._estimates = self._estimator.estimates()
        self._screened: Estimates | None = None

    def observe(self, observations: Observations) -> None:
        """Take in one round (line 17); the arms that are alive now are noted as that round's."""
        if not self.note(observations, self.active.copy()):
            return
        if self._stockpile:
            self._estimator.update(observations)
            self._estimates = self._estimator.estimates()
        else:
            latest = self._new_estimator(self.problem)
            latest.update(observations)
            self._estimates = latest.estimates().or_else(self._estimates)

    def trim(self) -> None:
        """Drop the worse half of each context's arms (lines 18 to 22)."""
        self.active = trim(self._q(), self._price(self._estimates.cost), self.active)

    def restrict_to_single(self) -> None:
        """Leave only the arms of scale 1 alive: the arms that screening compares."""
        self.active = np.zeros(self.problem.shape, dtype=bool)
        self.active[:, :, 0] = True

    def screen(self, k: int) -> None:
        """Keep each context's k best prompts at every scale, and forget the observations made so far.

        They stay in reserve for a context that never gets others.
        """
        keep = np.full(self.problem.n_contexts, k)
        kept = keep_best(self._q(), self._price(self._estimates.cost), self.active, keep)[:, :, :1]
        self.active = np.repeat(kept, self.problem.max_n, axis=2)
        self._screened = self._estimates
        self._estimator = self._new_estimator(self.problem)
        self._estimates = self._estimator.estimates()

    def interim(self, *, rounds_left: int) -> Interim | None:
        """Return what is known now; None before the first draw."""
        return interim(*self._chosen(), None, rounds_left=rounds_left) if self.spent else None

    def outcome(self, *, complete: bool) -> Outcome:
        """Choose the best living arm of each context and report the run."""
        policy, q = self._chosen()
        return self.report(policy, q, self._estimates, complete=complete)

    def _chosen(self) -> tuple[Policy, FloatArray]:
        """Return the best living arm of each context, and the utility of every arm [C, P, N]."""
        q = self._q()
        choice, cost = q, self._estimates.cost
        if self._screened is not None:
            seen = np.any(self.active & ~np.isnan(q), axis=(1, 2), keepdims=True)
            screened = self.utility(self._screened.reward, self._screened.cost)
            screened[:, ~self.charges.answered] = np.nan
            choice = np.where(seen, q, screened)
            cost = np.where(np.isnan(cost), self._screened.cost, cost)
        return best_arms(choice, self._price(cost), self._eligible(choice)), q

    def _eligible(self, choice: FloatArray) -> NDArray[np.bool_]:
        """Return the arms that may be chosen [C, P, N].

        These are the living ones, unless the last round showed that they break a cap: then all that keep it take part.
        """
        if self.problem.contexts.plain:
            return self.active
        keeping = self.charges.allowed() & ~np.isnan(choice)
        living = self.active & keeping
        eligible = np.where(living.any(axis=(1, 2), keepdims=True), living, keeping)
        return np.where(eligible.any(axis=(1, 2), keepdims=True), eligible, self.active)

    def _q(self) -> FloatArray:
        return self.utility(self._estimates.reward, self._estimates.cost)

    def _price(self, cost: FloatArray) -> FloatArray | None:
        return cost if self._prefer_cheaper else None
