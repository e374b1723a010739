"""The one port between algorithms and the world: pulls in, observations out."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol, TypeVar, runtime_checkable

from iapo_dspy.types import Observations, Pulls

__all__ = ["Environment", "drive"]

OutcomeT = TypeVar("OutcomeT")


@runtime_checkable
class Environment(Protocol):
    """Where completions come from: a live LM, a recording or a synthetic law."""

    @property
    def n_prompts(self) -> int:
        """P."""

    @property
    def n_queries(self) -> int:
        """X."""

    def pull(self, pulls: Pulls) -> Observations:
        """Make these pulls, all at once.

        Returns:
            One entry per completion, in the order of the pulls. An environment that cannot pay for all of them
            makes what it can, says so in `Observations.exhausted`, and returns the pulls it made.
        """


def drive(algorithm: Generator[Pulls, Observations, OutcomeT], environment: Environment) -> OutcomeT:
    """Run an algorithm to its end: answer each batch of pulls that it yields from the environment."""
    try:
        pulls = next(algorithm)
        while True:
            pulls = algorithm.send(environment.pull(pulls))
    except StopIteration as stop:
        outcome: OutcomeT = stop.value
        return outcome
    finally:
        algorithm.close()
