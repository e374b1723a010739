"""How many queries and completions each round of the default algorithm takes."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.aggregators.port import ClosedForm, Modelled
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import IntArray, Pulls

_FIRST_QUERIES = 4  # per prompt that a budget must pay for before its first pulls have several completions
_FIRST_PULLS = 2  # per prompt in the first round; smaller budgets have fewer rounds


class Schedule:
    """Says which prompts are drawn next, how often and on which queries."""

    def __init__(
        self, problem: Problem, budget: int, seed: int, rounds: int, first_pull: int, growth: int, shared: bool
    ) -> None:
        aggregator = problem.aggregator
        reach = aggregator.reach if isinstance(aggregator, ClosedForm) else None
        self._largest = problem.max_n if reach is None else min(reach, problem.max_n)
        self.pull = max(1, min(first_pull, self._largest, budget // (problem.n_prompts * _FIRST_QUERIES)))
        first = _FIRST_PULLS if isinstance(aggregator, Modelled) else _FIRST_QUERIES
        self.rounds = max(1, min(rounds, budget // (problem.n_prompts * self.pull * first)))
        self.least_pull = 1
        self._first = self.pull
        self._most = problem.max_n
        self._growth = growth if isinstance(aggregator, Modelled) else None
        orders = 1 if shared else problem.n_prompts
        order = [np.random.default_rng([seed, i]).permutation(problem.n_queries) for i in range(orders)]
        self._order = np.broadcast_to(order, (problem.n_prompts, problem.n_queries))
        self._next = np.zeros(problem.n_prompts, dtype=np.int64)

    def pulls(self, alive: IntArray, completions: int) -> Pulls:
        """Give every living prompt equally many completions, on the queries that are next in its order."""
        x, each = self._order.shape[1], completions // len(alive)
        size = max(1, min(max(self.pull, min(self.least_pull, self._most)), each))
        while each // size > x and size < self._largest:
            size = min(2 * size, self._largest)  # each query once before any query twice, in larger pulls
        times = each // size
        position = self._next[alive][:, None] + np.arange(times)
        self._next[alive] += times
        query = np.take_along_axis(self._order[alive], position % x, axis=1)
        return Pulls(np.repeat(alive, times), query.reshape(-1), np.full(len(alive) * times, size))

    @property
    def looked(self) -> bool:
        """Whether a run may end early: not while larger pulls may bring what no model foresees."""
        return self._growth is not None or self.pull == self._largest

    def grow(self, done: int) -> None:
        """Make the pulls larger, after so many rounds."""
        if self._growth is None:
            share = done / (self.rounds - 1)
            self.pull = round(self._first * (self._largest / self._first) ** share)
        elif done % 2 == 0:
            self.enlarge()

    def enlarge(self) -> None:
        """Make the pulls larger by the factor by which they grow."""
        self.pull = min(self.pull * (self._growth or 2), self._largest)
