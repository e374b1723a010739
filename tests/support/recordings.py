"""Small recordings, and environments made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from iapo_dspy.bandit.outcome import Outcome, Run
from iapo_dspy.environments.port import Environment, drive
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.types import Observations, Pulls


def voting(total: float = 1.0, **changes: Any) -> VotingRecording:
    settings: dict[str, Any] = {
        "probs": np.random.default_rng(1).dirichlet(np.ones(4), size=(3, 10)) * total,
        "answers": np.arange(10) % 4,
        "cost": np.array([0.01, 0.02, 0.03]),
        "cost_weights": np.array([0.0, 1.0]),
    }
    return VotingRecording(**(settings | changes))


def best_of(total: float = 1.0, **changes: Any) -> BestOfRecording:
    settings: dict[str, Any] = {
        "outcomes": np.random.default_rng(2).random((3, 10, 5, 2)),
        "probs": np.random.default_rng(3).dirichlet(np.ones(5), size=(3, 10)) * total,
        "cost": np.array([0.01, 0.02, 0.03]),
        "weights": np.array([[0.3, 0.7, 0.0], [0.3, 0.7, 1.0], [0.9, 0.1, 0.2]]),
    }
    return BestOfRecording(**(settings | changes))


def everywhere(recording: Recording, size: int) -> Pulls:
    """One pull of `size` for each (prompt, query)."""
    p, x = recording.n_prompts, recording.n_queries
    return Pulls(np.repeat(np.arange(p), x), np.tile(np.arange(x), p), np.full(p * x, size))


class Dry:
    """An environment that gives out after some pulls."""

    def __init__(self, inner: Environment, pulls: int) -> None:
        self.inner, self.left = inner, pulls
        self.n_prompts, self.n_queries = inner.n_prompts, inner.n_queries

    def pull(self, pulls: Pulls) -> Observations:
        made = pulls.take(np.arange(min(len(pulls), self.left)))
        self.left -= len(made)
        seen = self.inner.pull(made)
        return Observations(pulls=made, label=seen.label, score=seen.score, cost=seen.cost, exhausted=self.left == 0)


def coins(theta: ArrayLike, cost_weights: Sequence[float] = (0.0,), cost: ArrayLike = 0.01) -> VotingRecording:
    """Return a recording of answers that are right (class 0) with the probabilities theta [P, X]."""
    theta = np.asarray(theta, dtype=float)
    return VotingRecording(
        probs=np.stack([theta, 1 - theta], axis=2),
        answers=np.zeros(theta.shape[1], dtype=int),
        cost=np.broadcast_to(cost, theta.shape[0]),
        cost_weights=np.array(cost_weights),
    )


# Prompt 0: best at N = 1 and stuck at one half; prompt 1: .62 on every query; prompt 2: poor.
PAPER = coins([[0.40, 0.90], [0.62, 0.62], [0.30, 0.30]], (0.0, 10.0))


def spy(algorithm: Run, environment: Environment) -> tuple[Outcome, list[Pulls]]:
    """Drive an algorithm, and return its pulls too."""
    asked: list[Pulls] = []

    class Spy:
        def pull(self, pulls: Pulls) -> Observations:
            asked.append(pulls)
            return environment.pull(pulls)

    return drive(algorithm, Spy()), asked  # type: ignore[arg-type]
