"""Completions written down by hand or drawn from a known law, and slow, obvious ways to count them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import Contexts, FloatArray, IntArray, Observations, Pulls


def observe(
    pulls: Sequence[tuple[int, int, int]],
    score: ArrayLike,
    label: ArrayLike | None = None,
    cost: ArrayLike | None = None,
    overhead: ArrayLike | None = None,
) -> Observations:
    """Observations of pulls [(prompt, query, size)]; scores [S] or [S, K]."""
    prompt, query, size = np.array(pulls, dtype=np.int64).reshape(-1, 3).T
    scores = np.array(score, dtype=float)
    scores = scores[:, None] if scores.ndim == 1 else scores
    return Observations(
        pulls=Pulls(prompt, query, size),
        label=np.zeros(len(scores), int) if label is None else np.array(label),
        score=scores,
        cost=np.ones(len(scores)) if cost is None else np.array(cost, dtype=float),
        overhead=None if overhead is None else np.array(overhead, dtype=float),  # type: ignore[arg-type]
    )


def problem_of(
    aggregator: Aggregator,
    *,
    n_prompts: int,
    n_queries: int = 50,
    max_n: int = 4,
    weights: FloatArray | None = None,
    price: Sequence[float] | None = None,
    cost_scale: float | None = 1.0,
) -> Problem:
    """A problem; by default one objective, one context and free completions."""
    rows = np.ones((1, 1)) if weights is None else weights
    return Problem(
        n_prompts=n_prompts,
        n_queries=n_queries,
        max_n=max_n,
        contexts=Contexts(rows, np.zeros(len(rows)) if price is None else np.array(price, dtype=float)),
        aggregator=aggregator,
        cost_scale=cost_scale,
    )


def small_problem(**changes: Any) -> Problem:
    """A problem of two prompts, three queries and scales up to three, with free and with dear completions."""
    settings: dict[str, Any] = {
        "n_prompts": 2,
        "n_queries": 3,
        "max_n": 3,
        "contexts": Contexts(np.ones((2, 1)), np.array([0.0, 1.0])),
        "aggregator": BestOfNAggregator(),
        "cost_scale": 1.0,
    }
    return Problem(**(settings | changes))


def over_all_subsets(
    aggregator: Aggregator, label: IntArray, score: FloatArray, weights: FloatArray, max_n: int
) -> FloatArray:
    """The mean reward of all k-subsets of one cell's completions, one subset at a time [W, min(m, N)]."""
    out = []
    for k in range(1, min(len(label), max_n) + 1):
        chosen = np.array(list(combinations(range(len(label)), k)))
        out.append(aggregator.reward(label[chosen], score[chosen], weights).mean(axis=1))
    return np.stack(out, axis=1)


class Coins:
    """Each completion is right (label 0) with the probability of its prompt and query; a wrong one is label 1.

    Args:
        theta: Probabilities [P, X].
        cost: Cost of a completion [P] or one for all.
        overhead: Cost of a pull [P] or one for all.
        budget: Completions that it can pay for; `None`: any number.
        broken: Prompts whose completions all fail.
    """

    def __init__(
        self,
        theta: FloatArray | Sequence[Sequence[float]],
        *,
        cost: object = 1.0,
        overhead: object = 0.0,
        seed: int = 0,
        budget: int | None = None,
        broken: Sequence[int] = (),
    ) -> None:
        self.theta = np.asarray(theta, dtype=float)
        self.n_prompts, self.n_queries = self.theta.shape
        self.cost = np.broadcast_to(np.asarray(cost, dtype=float), self.n_prompts)
        self.overhead = np.broadcast_to(np.asarray(overhead, dtype=float), self.n_prompts)
        self.rng = np.random.default_rng(seed)
        self.left = budget
        self.broken = np.isin(np.arange(self.n_prompts), broken)
        self.asked: list[Pulls] = []

    def pull(self, pulls: Pulls) -> Observations:
        """Draw every completion independently, as long as there is budget."""
        self.asked.append(pulls)
        exhausted = False
        if self.left is not None:
            affordable = np.cumsum(pulls.size) <= self.left
            pulls = pulls.take(np.flatnonzero(affordable))
            self.left -= pulls.completions
            exhausted = not affordable.all()
        prompt, query = np.repeat(pulls.prompt, pulls.size), np.repeat(pulls.query, pulls.size)
        right = self.rng.random(len(prompt)) < self.theta[prompt, query]
        failed = self.broken[prompt]
        return Observations(
            pulls=pulls,
            label=np.where(failed, -1, 1 - right),
            score=np.where(failed, np.nan, right)[:, None],
            cost=self.cost[prompt],
            overhead=self.overhead[pulls.prompt],
            exhausted=exhausted,
        )
