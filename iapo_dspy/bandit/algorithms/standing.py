"""The books of a run: its rounds, their costs, and the utility of arms by their estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.bandit.costs.scale import CostScale
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.outcome import Outcome, Round
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import FloatArray, Observations, Policy, Pulls


class Standing:
    """Keeps the books of one run.

    Args:
        problem: The problem.

    Attributes:
        present: How many prompts can be drawn by now, prompts 0 to present - 1.
        rounds: The rounds so far.
        observations: Their observations.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.present = problem.n_prompts if problem.present is None else problem.present
        self.charges = Charges(problem.contexts, problem.n_prompts, problem.max_n)
        self._scale = CostScale(problem)
        self.rounds: list[Round] = []
        self.observations: list[Observations] = []

    @property
    def spent(self) -> int:
        """Completions drawn so far."""
        return sum(r.completions for r in self.rounds)

    def note(self, observations: Observations, active: NDArray[np.bool_]) -> bool:
        """Enter a round in the books; returns whether it brought anything.

        Args:
            observations: The observations of the round.
            active: Arms that were alive when the round began [C, P, N].
        """
        pulls = observations.pulls
        self.rounds.append(Round(active=active, pulls=len(pulls), completions=pulls.completions))
        self.observations.append(observations)
        if not len(pulls):
            return False
        self.present = self.problem.n_prompts if observations.present is None else observations.present
        self.charges.update(observations)
        self._scale.observe(observations)
        return True

    def utility(self, reward: FloatArray, cost: FloatArray) -> FloatArray:
        """Return Q [C, P, N]: task reward minus priced cost; NaN where there is no evidence, and for arms over a cap.

        Prompts that have never answered have none either, for a cheap failure is not a cheap answer.

        Args:
            reward: Estimated task reward [C, P, N].
            cost: Estimated raw cost of a call [P, N].
        """
        contexts = self.problem.contexts
        q = reward - contexts.cost[:, None, None] * (self._scale.value * cost)
        if not contexts.plain:
            q = np.where(self.charges.allowed(), q - self.charges.surcharge(), np.nan)
        if self.charges.answered.any():
            q[:, ~self.charges.answered] = np.nan
        return np.asarray(q)

    def report(
        self, policy: Policy, q: FloatArray, estimates: Estimates, *, complete: bool, detail: Evidence | None = None
    ) -> Outcome:
        """Report the run with this policy."""
        return Outcome(
            policy=policy,
            q=q,
            estimates=estimates,
            spent=self.spent,
            rounds=tuple(self.rounds),
            observations=tuple(self.observations),
            cost_scale=self._scale.value,
            complete=complete,
            detail=detail,
            charges=self.charges,
        )


def joined(rounds: Sequence[Observations]) -> Observations:
    """Return several rounds, at least one, as one; without resources where a round did not measure them."""
    pulls = Pulls(*(np.concatenate([getattr(o.pulls, name) for o in rounds]) for name in ("prompt", "query", "size")))
    names = ["label", "score", "cost", "overhead"]
    if all(o.used is not None for o in rounds):
        names += ["used", "once"]
    parts: dict[str, Any] = {name: np.concatenate([getattr(o, name) for o in rounds]) for name in names}
    if any(o.logprob is not None for o in rounds):
        parts["logprob"] = np.concatenate([o.logprobs for o in rounds])
    unit = next((o.unit for o in rounds if o.unit is not None), None)
    return Observations(pulls=pulls, unit=unit, **parts)


def no_observations(n_objectives: int) -> Observations:
    """Return the observations of a round without pulls."""
    nothing = np.empty(0, dtype=np.int64)
    return Observations(
        pulls=Pulls(nothing, nothing, nothing),
        label=nothing,
        score=np.empty((0, n_objectives)),
        cost=np.empty(0),
    )
