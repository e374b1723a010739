"""The port of algorithms: best-arm identification over (prompt, scale), within a budget of completions.

An algorithm is an object that its constructor configures; it holds settings and nothing of a run, so one object serves
any number of problems at once. `start` returns a generator, the run: it yields pulls, is sent their observations, and
returns an `Outcome`. It never draws more than the budget. Where an environment is exhausted, it answers with fewer
completions than asked for, and the run ends with what it knows, as `Outcome.complete` says.

What cannot work raises before the first pull: the constructor raises `ConfigurationError` for a setting out of range,
and `start` raises `BudgetTooSmall` for a budget below `least`. The same problem, budget, seed and observations give the
same pulls and the same outcome. Short names of the algorithms that come with the package are in `bandit.named`.

A run tells its rounds by `Pulls.interim`: the first batch of each later round brings what is known before it, and
`Outcome.interim` is what was known in the end. An algorithm without them has one round.

Example:
    >>> from iapo_dspy.bandit.algorithms.psst import PSST
    >>> from iapo_dspy.environments.port import drive
    >>> from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
    >>> recording = synthetic_bernoulli(0, n_prompts=3, n_queries=20)
    >>> problem = recording.problem(max_n=4)
    >>> algorithm = PSST()
    >>> isinstance(algorithm, Algorithm), algorithm.least(problem)
    (True, 12)
    >>> outcome = drive(algorithm.start(problem, budget=600, seed=0), recording.environment(0))
    >>> outcome.spent <= 600, algorithm.solve(problem, outcome.observations).policy == outcome.policy
    (True, True)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from iapo_dspy.bandit.outcome import Outcome, Run
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import Observations


@runtime_checkable
class Algorithm(Protocol):
    """Finds an arm for every context within a budget."""

    def least(self, problem: Problem) -> int:
        """Return the smallest budget T that this algorithm accepts for a problem, in completions."""
        ...

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Start a run.

        Args:
            problem: The problem.
            budget: T, completions; never exceeded.
            seed: Root of the run's random streams, >= 0.

        Raises:
            BudgetTooSmall: The budget is below `least`.
            ConfigurationError: Budget or seed is not a usable number, or the algorithm cannot serve the problem.
        """
        ...

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Choose arms from the observations of a run of this algorithm, without pulls.

        Args:
            problem: The problem of the run, with the contexts to solve.
            rounds: `Outcome.observations` of the run.

        Returns:
            The outcome; the run's own policy for the run's own contexts.
        """
        ...
