"""The port between algorithms and the world: pulls go in, observations come out.

An algorithm is a generator that yields pulls and receives observations. It never asks where the completions come from:
a language model (`live`), a recording (`recorded`), or an environment of yours. An environment needs the three members
of `Environment`:

    >>> import numpy as np
    >>> from iapo_dspy.types import Observations, Pulls
    >>> class Coin:
    ...     '''One prompt that is right on every second query.'''
    ...     n_prompts, n_queries = 1, 10
    ...     def pull(self, pulls):
    ...         query = np.repeat(pulls.query, pulls.size)
    ...         right = (query % 2 == 0).astype(float)
    ...         nothing = np.zeros(len(query))
    ...         return Observations(
    ...             pulls=pulls, label=query, score=right[:, None], cost=nothing, overhead=np.zeros(len(pulls))
    ...         )
    >>> isinstance(Coin(), Environment)
    True
    >>> def mean_score(size):
    ...     queries = np.arange(10)
    ...     seen = yield Pulls(np.zeros(10, dtype=int), queries, np.full(10, size))
    ...     return float(seen.score.mean())
    >>> drive(mean_score(size=3), Coin())
    0.5

Arrivals. Prompts may join while a run goes on: `Problem.present` says how many can be drawn at the start, and
`Observations.present` how many after each batch, always those with the lowest indices. Both are None where all prompts
are there, as they are in most runs; `wrappers.Arrivals` makes such an environment of any other.

Errors. A completion that fails is not an exception: it is an entry with the label -1 and NaN scores, and it is counted
and paid like any other. An environment that cannot pay for all pulls makes those that it can pay for, and says so in
`Observations.exhausted`. It raises only where no further pull can succeed: a wrong key, a setting that cannot work, a
run in which nothing works. `drive` passes such an error on, after it has closed the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar, runtime_checkable

from iapo_dspy.bandit.outcome import Wish
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Observations, Pulls

OutcomeT = TypeVar("OutcomeT")


@runtime_checkable
class Environment(Protocol):
    """A source of completions: a live LM, a recording or a synthetic law."""

    @property
    def n_prompts(self) -> int:
        """P."""

    @property
    def n_queries(self) -> int:
        """X."""

    def pull(self, pulls: Pulls) -> Observations:
        """Make these pulls, all at once.

        Args:
            pulls: Prompts below P, queries below X, and the number of completions of each pull, >= 1.

        Returns:
            One entry per completion, in the order of the pulls, and the pulls that were made. These are fewer than
            asked for only where `exhausted` is set.

        Raises:
            IAPOError: No further pull can succeed.
        """


def drive(
    algorithm: Generator[Pulls, Observations, OutcomeT] | Generator[Pulls | Wish, Observations | Problem, OutcomeT],
    environment: Environment,
    more: Callable[[Wish], Problem] | None = None,
) -> OutcomeT:
    """Run an algorithm to its end: answer each batch of pulls that it yields from the environment.

    Args:
        algorithm: A run, or a search.
        environment: Answers pulls. It holds all prompts that it is asked for, also those that come by a wish.
        more: Answers the wishes of a search: with the problem with more prompts behind the others, or with the same
            problem where none came.

    Raises:
        ConfigurationError: The algorithm wishes for more prompts, and nothing answers it.
        Exception: The algorithm, the environment or `more` raised it.
    """
    run: Generator[Pulls | Wish, Any, OutcomeT] = algorithm
    try:
        asked = next(run)
        while True:
            if not isinstance(asked, Wish):
                asked = run.send(environment.pull(asked))
            elif more is not None:
                asked = run.send(more(asked))
            else:
                raise ConfigurationError(
                    "The algorithm wishes for more prompts: give `drive` a function `more` that answers."
                )
    except StopIteration as stop:
        outcome: OutcomeT = stop.value
        return outcome
    finally:
        run.close()
