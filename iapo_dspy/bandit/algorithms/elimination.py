"""What is known and which arms survive: the part of a trimming run that needs no pulls.

PSST and its replay share this class, so a replay with the run's own contexts ends with the run's own policy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.algorithms.trimming import best_arms, keep_best, trim
from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.outcome import EstimatorFactory, Outcome, Round
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import FloatArray, Observations, Pulls

__all__ = ["CostScale", "Elimination", "no_observations"]

_AVERAGE_CALL = 0.01  # utility that the average call for a single completion is worth at cost weight 1


class CostScale:
    """The utility of one raw cost unit: given, or learnt from the first observations that cover every prompt.

    It is learnt such that the average call for a single completion costs 0.01: the mean over prompts of each prompt's
    mean overhead per pull plus its mean cost per completion.

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
        """Learn the scale and freeze it once every prompt has been pulled; afterwards nothing changes."""
        if self._fixed is not None:
            return
        pulls, n_prompts = observations.pulls, len(self._cost)
        # What failed before it cost anything, such as a refused request, says nothing of a completion's price.
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
        """The scale; before it is frozen, what the prompts pulled so far say. 0 where nothing costs anything."""
        if self._fixed is not None:
            return self._fixed
        pulled = self._completions > 0
        calls = self._overhead[pulled] / self._pulls[pulled] + self._cost[pulled] / self._completions[pulled]
        mean = float(calls.mean()) if pulled.any() else 0.0
        return _AVERAGE_CALL / mean if mean > 0 else 0.0


class Elimination:
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
        self.active: NDArray[np.bool_] = np.ones(problem.shape, dtype=bool)
        self._problem = problem
        self._new_estimator = estimator
        self._stockpile = stockpile
        self._prefer_cheaper = prefer_cheaper
        self._estimator = estimator(problem)
        self._estimates = self._estimator.estimates()
        self._screened: Estimates | None = None
        self._scale = CostScale(problem)
        self._charges = Charges(problem.contexts, problem.n_prompts, problem.max_n)
        self._answered = np.zeros(problem.n_prompts, dtype=bool)
        self._rounds: list[Round] = []
        self._observations: list[Observations] = []

    @property
    def spent(self) -> int:
        """Completions drawn so far."""
        return sum(r.completions for r in self._rounds)

    def observe(self, observations: Observations) -> None:
        """Take in what one round brought (line 17); the arms that are alive now are noted as that round's."""
        pulls = observations.pulls
        self._rounds.append(Round(active=self.active.copy(), pulls=len(pulls), completions=pulls.completions))
        self._observations.append(observations)
        if not len(pulls):
            return
        self._charges.update(observations)
        self._scale.observe(observations)
        self._answered[np.repeat(pulls.prompt, pulls.size)[~observations.failed]] = True
        if self._stockpile:
            self._estimator.update(observations)
            self._estimates = self._estimator.estimates()
        else:
            latest = self._new_estimator(self._problem)
            latest.update(observations)
            self._estimates = latest.estimates().or_else(self._estimates)

    def trim(self) -> None:
        """Drop the worse half of each context's arms (lines 18 to 22)."""
        self.active = trim(self._q(), self._price(self._estimates.cost), self.active)

    def restrict_to_single(self) -> None:
        """Leave only the arms of scale 1 alive: the arms that screening compares."""
        self.active = np.zeros(self._problem.shape, dtype=bool)
        self.active[:, :, 0] = True

    def screen(self, k: int) -> None:
        """Keep each context's k best prompts at every scale, and forget the observations made so far.

        They stay in reserve for a context that never gets others.
        """
        keep = np.full(self._problem.n_contexts, k)
        kept = keep_best(self._q(), self._price(self._estimates.cost), self.active, keep)[:, :, :1]
        self.active = np.repeat(kept, self._problem.max_n, axis=2)
        self._screened = self._estimates
        self._estimator = self._new_estimator(self._problem)
        self._estimates = self._estimator.estimates()

    def outcome(self, *, complete: bool) -> Outcome:
        """Choose the best living arm of each context and report the run."""
        q = self._q()
        choice, cost = q, self._estimates.cost
        if self._screened is not None:
            seen = np.any(self.active & ~np.isnan(q), axis=(1, 2), keepdims=True)
            screened = self._utility(self._screened)
            screened[:, ~self._answered] = np.nan
            choice = np.where(seen, q, screened)
            cost = np.where(np.isnan(cost), self._screened.cost, cost)
        return Outcome(
            policy=best_arms(choice, self._price(cost), self._eligible(choice)),
            q=q,
            estimates=self._estimates,
            spent=self.spent,
            rounds=tuple(self._rounds),
            observations=tuple(self._observations),
            cost_scale=self._scale.value,
            complete=complete,
            charges=self._charges,
        )

    def _eligible(self, choice: FloatArray) -> NDArray[np.bool_]:
        """Return the arms that may be chosen [C, P, N].

        These are the living ones, unless the last round showed that they break a cap: then all that keep it take part.
        """
        if self._problem.contexts.plain:
            return self.active
        keeping = self._charges.allowed() & ~np.isnan(choice)
        living = self.active & keeping
        eligible = np.where(living.any(axis=(1, 2), keepdims=True), living, keeping)
        return np.where(eligible.any(axis=(1, 2), keepdims=True), eligible, self.active)

    def _price(self, cost: FloatArray) -> FloatArray | None:
        return cost if self._prefer_cheaper else None

    def _q(self) -> FloatArray:
        """Utilities; a prompt that has never answered has none, for a cheap failure is no cheap answer."""
        q = self._utility(self._estimates)
        if self._answered.any():
            q[:, ~self._answered] = np.nan
        return q

    def _utility(self, estimates: Estimates) -> FloatArray:
        q = estimates.utility(self._problem.contexts, self._scale.value)
        if self._problem.contexts.plain:
            return q
        return np.where(self._charges.allowed(), q - self._charges.surcharge(), np.nan)


def no_observations(n_objectives: int) -> Observations:
    """Return the observations of a round without pulls."""
    nothing = np.empty(0, dtype=np.int64)
    return Observations(
        pulls=Pulls(nothing, nothing, nothing),
        label=nothing,
        score=np.empty((0, n_objectives)),
        cost=np.empty(0),
    )
