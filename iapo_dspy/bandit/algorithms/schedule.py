"""How many queries and completions each round of the default algorithm takes."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.aggregators.port import ClosedForm, Modelled
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import IntArray, Pulls

_FIRST_QUERIES = 4  # per prompt that a budget must pay for before its first pulls have several completions
_ROUNDS_OF_NEWCOMERS = 3
_FIRST_PULLS = 2  # per prompt in the first round; smaller budgets have fewer rounds


class Schedule:
    """Says which prompts are drawn next, how often and on which queries.

    Attributes:
        size: Completions of each prompt's next pulls [P].
    """

    def __init__(
        self, problem: Problem, budget: int, seed: int, rounds: int, first_pull: int, growth: int, shared: bool
    ) -> None:
        aggregator = problem.aggregator
        reach = aggregator.reach if isinstance(aggregator, ClosedForm) else None
        self._largest = problem.max_n if reach is None else min(reach, problem.max_n)
        self._first = max(1, min(first_pull, self._largest, budget // (problem.n_prompts * _FIRST_QUERIES)))
        self.size = np.full(problem.n_prompts, self._first)
        first = _FIRST_PULLS if isinstance(aggregator, Modelled) else _FIRST_QUERIES
        self.rounds = max(1, min(rounds, budget // (problem.n_prompts * self._first * first)))
        self.least_pull = 1
        self._most = problem.max_n
        self._growth = growth if isinstance(aggregator, Modelled) else None
        orders = 1 if shared else problem.n_prompts
        order = [np.random.default_rng([seed, i]).permutation(problem.n_queries) for i in range(orders)]
        self._order = np.broadcast_to(order, (problem.n_prompts, problem.n_queries))
        if problem.known is not None:
            self._order = _after(self._order, problem.known.pulls)
        self._next = np.zeros(problem.n_prompts, dtype=np.int64)

    def pulls(self, alive: IntArray, completions: int) -> Pulls:
        """Give every living prompt equally many completions, on the queries that are next in its order."""
        x, each = self._order.shape[1], completions // len(alive)
        size = np.clip(np.maximum(self.size[alive], min(self.least_pull, self._most)), 1, max(each, 1))
        while (often := (each // size > x) & (size < self._largest)).any():
            size[often] = np.minimum(2 * size[often], self._largest)  # each query once before any query twice
        times = each // size
        prompt, turn = np.repeat(alive, times), np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        query = self._order[prompt, (self._next[prompt] + turn) % x]
        self._next[alive] += times
        return Pulls(prompt, query, np.repeat(size, times))

    def skip(self, share: float, newcomers: IntArray) -> int:
        """Return how many rounds a share of the budget, which is known already, has made; newcomers need a few."""
        left = _ROUNDS_OF_NEWCOMERS if len(newcomers) else 1
        done = max(min(int(self.rounds * share), self.rounds - left), 0)
        for r in range(1, done):  # `grow` follows the last of them
            self.grow(r)
        return done

    @property
    def looked(self) -> bool:
        """Whether a run may end early: not while larger pulls may bring what no model foresees."""
        return self._growth is not None or bool((self.size == self._largest).all())

    def grow(self, done: int) -> None:
        """Make the pulls larger, after so many rounds."""
        if self._growth is None:
            share = done / (self.rounds - 1)
            self.size[:] = round(self._first * (self._largest / self._first) ** share)
        elif done % 2 == 0:
            self.enlarge()

    def enlarge(self) -> None:
        """Make the pulls larger by the factor by which they grow."""
        self.size = np.minimum(self.size * (self._growth or 2), self._largest)


def _after(order: IntArray, known: Pulls) -> IntArray:
    """Return each prompt's order of queries [P, X] after some pulls: new ones first, those that most others know."""
    answered = np.zeros(order.shape, dtype=bool)
    answered[known.prompt, known.query] = True
    number = answered.sum(axis=0)
    rank = np.argsort(order, axis=1)  # of each query
    return np.lexsort((rank, np.broadcast_to(-number, order.shape), answered), axis=1)
