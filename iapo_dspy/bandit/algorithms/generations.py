"""The default algorithm where new prompts can be had: generations of them and draws take turns by expected gain.

A search draws like `auto` does. Between its rounds it compares two things to expect, each the mean over contexts:

- of further draws, the largest expected gain of a prompt at hand (`Ranking.gains`);
- of a generation of k new prompts, the gain of the best of them,

      E max(0, max over k of U - best),    U ~ N(parent + m, s^2),

  where parents are drawn by how often they are the best on a question (`front`), as GEPA draws them from its Pareto
  front (Agrawal et al. 2025). m and s are what earlier children were against their parents, context by context,
  shrunk towards 0 and the spread of the prompts at hand. Newcomers are told apart by a few draws only: s^2 counts as
  far as these will show it (the variance of posterior means, Raiffa and Schlaifer 1961).

It wishes for a generation where that is worth more, and what is left pays for comparing it. Newcomers answer first what
the others have answered. In three short rounds, while further generations may come, or in the last rounds, their number
falls geometrically to the few with the largest expected gains. So a generation of bad prompts costs one short round.

Where a newcomer is the best prompt of a context, the last two rounds also draw the best one that was given, unless it
is surely behind. Otherwise it may be known from a few queries only, too few for `confirmation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from iapo_dspy.bandit.algorithms.auto import Auto, Ranking, resize, settled, spread_out, survivors
from iapo_dspy.bandit.algorithms.standing import joined
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.outcome import Outcome, SearchRun, Wish
from iapo_dspy.bandit.problem import Problem, check_all_present, check_budget
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray, Observations, Pulls

_LOOK = 8  # completions of a newcomer that the budget must pay for, twice: to compare it, and to choose after that
_TRIMMING = 3  # rounds of a generation that others may follow
_LAST = 5  # rounds of the last one, at most
_CONFIRMING, _SURE = 2, 2.0  # last rounds that draw a given prompt, unless it is so many standard errors behind
_ROUND = 4  # completions of a prompt in a round, at least; a small budget has fewer rounds
_KEPT = 2  # prompts that are drawn beside newcomers, at least
_PRIOR_MEAN, _PRIOR = 1.0, 4.0  # earlier children that the priors of mean and variance count as
_NOISE = 0.25  # variance of a completion's reward at most, as a share of the squared range
_TIE = 1e-9  # of the rewards
_LEAST_SPREAD = 0.02  # of children around their parents before any is known, as a share of the range of utilities


@dataclass(frozen=True, kw_only=True)
class Generations:
    """The default algorithm with generations of new prompts.

    Args:
        search: Draws and estimates.
        most: Wishes for new prompts at most, >= 1, also those that are not fulfilled.
        size: New prompts of a generation, >= 1; fewer where the budget does not pay for comparing so many. With fewer
            prompts than that at the start, the first wish comes before the first draw.

    Raises:
        ConfigurationError: A setting is not a usable number.
    """

    search: Auto = field(default_factory=Auto)
    most: int = 2
    size: int = 8

    def __post_init__(self) -> None:
        for name in ("most", "size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigurationError(f"Generations: {name} is {value!r}; give a whole number >= 1.")

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`: that of the search."""
        return self.search.least(problem)

    def start(self, problem: Problem, *, budget: int, seed: int) -> SearchRun:
        """Start a search.

        It yields pulls, and is sent their observations; it yields a `Wish`, and is sent the problem with more prompts
        behind the others, or with the same ones where none came. Of that problem `known` does not count. The outcome
        has the numbering of the last problem.

        Args:
            problem: The problem with the prompts at hand.
            budget: T, completions, those of `Problem.known` included; never exceeded.
            seed: Root of the run's random streams, >= 0.

        Raises:
            BudgetTooSmall: The budget is below `least`.
            ConfigurationError: Budget or seed is not a usable number, or prompts join otherwise (`Problem.present`).
        """
        check_all_present(problem, "Generations")
        what = f"looking at each of {problem.n_prompts} prompts once"
        check_budget(budget, seed, least=self.least(problem), what=what)
        return _Search(self, problem, int(budget), seed).run()

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Implement `Algorithm.solve`: that of the search."""
        return self.search.solve(problem, rounds)


class _Search:
    """One run. A stage has the rounds from one generation to the next."""

    def __init__(self, settings: Generations, problem: Problem, budget: int, seed: int) -> None:
        self._settings, self._total, self._seed = settings, budget, seed
        self._given = problem.n_prompts
        self._problem = replace(problem, known=None)
        self._state = Ranking(replace(self._problem, contexts=spread_out(problem)), estimator=settings.search.estimator)
        self._wishes = self._done = 0
        self._alive = self._newcomers = _NOBODY
        self._asked = False  # and nothing was drawn since
        self._refitted = False
        if problem.known is not None:
            self._state.observe(problem.known, np.unique(problem.known.pulls.prompt))
        self._begin(keep=math.ceil(self._problem.n_prompts ** (1.0 - self._state.spent / budget)))

    def run(self) -> SearchRun:
        """Take turns, until neither is worth its price or the budget ends."""
        while True:
            wish = self._wish()
            if wish is not None:
                self._grow((yield wish))
            pulls = self._pulls()
            if pulls is None:
                return self._outcome(complete=True)
            observations = yield pulls
            assert isinstance(observations, Observations)
            self._state.observe(observations, self._alive)
            self._done, self._asked, self._newcomers = self._done + 1, False, _NOBODY
            short = observations.pulls.completions < pulls.completions
            if short or (observations.exhausted and self._rounds_left):
                return self._outcome(complete=False)

    @property
    def _left(self) -> int:
        """Completions that are left."""
        return self._budget - self._state.spent

    @property
    def _to_come(self) -> int:
        """How many generations may still come."""
        return min(int(self._settings.most) - self._wishes, self._left // (2 * _LOOK * int(self._settings.size)))

    @property
    def _rounds_left(self) -> int:
        """Rounds that are planned for what is left."""
        if self._left < 1:
            return 0
        planned = _LAST - self._done
        if self._to_come:
            planned = max(_TRIMMING - self._done, 1) + _TRIMMING * (self._to_come - 1) + _LAST
        return min(planned, max(self._left // (_ROUND * len(self._alive)), 1))

    def _begin(self, keep: int) -> None:
        """Begin a stage with the prompts that were never drawn, and so many others."""
        state, everyone = self._state, np.arange(self._problem.n_prompts)
        known = joined(state.observations) if state.observations else None
        self._budget, self._schedule = self._settings.search.schedule(
            replace(self._problem, known=known), self._total, self._seed
        )
        drawn = np.unique(known.pulls.prompt) if known is not None else _NOBODY
        self._newcomers = np.setdiff1d(everyone, drawn)
        if known is not None:
            gain = state.gains(traits=True)[drawn]
            drawn = drawn[survivors(gain, np.searchsorted(drawn, state.chosen_prompts()), keep)]
        self._alive = np.append(drawn, self._newcomers)
        self._done, self._at_start, self._open = 0, len(self._alive), self._to_come > 0

    def _pulls(self) -> Pulls | None:
        """Return the pulls of the next round; None where they are not worth their price, or the budget has ended."""
        if self._open and not self._to_come:  # no other generation comes after all
            self._done, self._at_start, self._open = 0, len(self._alive), False
        rounds, state, schedule = self._rounds_left, self._state, self._schedule
        if not rounds:
            return None
        if state.evidence is not None:
            gain, seen = state.gains(traits=True), state.gains()
            if self._done:
                last = (_TRIMMING if self._open else _LAST) - 1
                keep = math.ceil(self._at_start ** max(1.0 - self._done / last, 0.0))
                self._alive = survivors(gain, state.chosen_prompts(), keep)
                if not self._open and rounds <= _CONFIRMING:
                    self._alive = np.union1d(self._alive, self._rivals())
            schedule.rounds = len(state.rounds) + rounds
            old, each = np.setdiff1d(self._alive, self._newcomers), self._left // rounds // len(self._alive)
            resize(state, schedule, old, self._newcomers, seen, each, len(state.rounds))
            price = self._price * self._left
            if not len(self._newcomers) and settled(state, schedule, gain, seen, price, self._settings.search.calls):
                return None
        self._alive = self._alive[-self._left :]  # newcomers are the last ones
        pulls = schedule.pulls(self._alive, max(self._left // rounds, len(self._alive)))
        return replace(pulls, interim=state.interim(self._problem, rounds_left=rounds))

    def _rivals(self) -> IntArray:
        """Return the best given prompt of each context that has chosen another one, unless it is surely behind."""
        state, q = self._state, self._state.q()
        utility = best_utility(state)[:, : self._given]
        found = []
        for context, arm in enumerate(state.policy().arms):
            if arm.prompt >= self._given and not np.isnan(utility[context]).all():
                behind, error = state.behind(context, arm, q[context], traits=True)
                best = int(np.nanargmax(utility[context]))
                if behind[best] > -_SURE * error[best]:
                    found.append(best)
        return np.array(found, dtype=np.int64)

    @property
    def _price(self) -> float:
        """Utility that a completion costs at a cost weight of 1."""
        return self._state.price(self._alive, self._schedule.size[self._alive])

    def _wish(self) -> Wish | None:
        """Return the wish for a generation; None where it is not worth more than further draws."""
        n = min(self._settings.size, self._left // (2 * _LOOK))
        unseen = len(self._newcomers) > 0 and self._state.evidence is not None
        if self._wishes == self._settings.most or self._asked or unseen or n < 1:
            return None
        state, gain = self._state, math.inf
        if state.evidence is not None:
            gain = self._gain(n)
            calls = self._settings.search.calls
            if gain <= state.gains(traits=True).max() or gain * calls <= self._price * n * _LOOK:
                return None
        elif self._problem.n_prompts >= self._settings.size:
            return None
        every = state.on(self._problem)
        return Wish(outcome=every.outcome(complete=True), front=front(every), n=n, generation=self._wishes, gain=gain)

    def _grow(self, answer: Observations | Problem) -> None:
        """Take in the answer to a wish."""
        self._wishes, self._asked, before = self._wishes + 1, True, self._problem
        fits = isinstance(answer, Problem) and (len(answer.contexts), answer.n_queries, answer.max_n) == (
            len(before.contexts), before.n_queries, before.max_n,
        )  # fmt: skip
        if not isinstance(answer, Problem) or not fits or answer.n_prompts < before.n_prompts:
            raise ConfigurationError(
                "A wish was not answered by the problem with more prompts: send the problem of before with n_prompts, "
                "parts and parent grown, or as it was where no prompt came."
            )
        check_all_present(answer, "Generations")
        if answer.n_prompts == before.n_prompts:
            return
        self._problem = replace(answer, known=None)
        self._refitted = self._state.evidence is not None
        self._state = self._state.on(replace(self._problem, contexts=spread_out(self._problem)))
        self._begin(keep=_KEPT)

    def _gain(self, n: int) -> float:
        """Return the expected gain of the best of n new prompts, mean over contexts."""
        state, evidence = self._state, self._state.evidence
        assert evidence is not None
        q, utility, arms = state.q(), best_utility(state), state.policy().arms
        weights = front(state)
        weights = (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)).mean(axis=0)  # of parents
        parent = self._problem.parent if self._problem.parent is not None else np.full(len(weights), -1)
        each, total = self._left / 2.0 / (n + _KEPT), 0.0
        for context, (u, arm) in enumerate(zip(utility, arms, strict=True)):
            known = np.flatnonzero(~np.isnan(u))
            if not len(known):
                continue
            _, error = state.behind(context, arm, q[context], traits=True)
            prior = math.hypot(float(u[known].std()), float(np.sqrt((error[known] ** 2).mean())))
            mean, spread = offspring(u, error, parent, max(prior, _LEAST_SPREAD * state.spread))
            parents = (
                weights[known] / weights[known].sum() if weights[known].sum() else np.full(len(known), 1 / len(known))
            )
            level = float((parents * u[known]).sum())
            variance = spread**2 + float((parents * (u[known] - level) ** 2).sum())
            noise = _NOISE * state.width(context) ** 2 / each
            shown = variance / math.sqrt(variance + noise)  # standard deviation of what the draws will show
            total += expected_best(level + mean - float(u[arm.prompt]), shown, n)
        return total / len(utility)

    def _outcome(self, *, complete: bool) -> Outcome:
        """Report the run; after a generation everything is fitted once more, as `solve` does."""
        state = self._state.on(self._problem)
        outcome = state.outcome(complete=complete)
        if not self._refitted or state is not self._state:
            return outcome
        solved = self._settings.search.solve(self._problem, state.observations)
        return replace(solved, rounds=outcome.rounds, complete=complete)


_NOBODY: IntArray = np.empty(0, dtype=np.int64)


def best_utility(state: Ranking) -> FloatArray:
    """Return the utility of each prompt's best arm in each context [C, P]; NaN where there is no evidence."""
    q = state.q()
    return np.where(np.isnan(q).all(axis=2), np.nan, np.where(np.isnan(q), -np.inf, q).max(axis=2))


def front(state: Ranking) -> FloatArray:
    """Return on how many visited queries each prompt is the best one by the estimates [C, P]; ties are shared.

    Prompts compete with their best arm in the context, on the queries that they have answered. Where evidence does not
    go query by query, the prompt of the policy is the best one everywhere.
    """
    evidence, problem = state.evidence, state.problem
    found = np.zeros((problem.n_contexts, problem.n_prompts))
    if evidence is None:
        return found
    if not isinstance(evidence, Evidence):
        found[np.arange(len(found)), [arm.prompt for arm in state.policy().arms]] = evidence.n_visited
        return found
    pulls = joined(state.observations).pulls
    answered = np.zeros((problem.n_prompts, problem.n_queries), dtype=bool)
    answered[pulls.prompt, pulls.query] = True
    answered = answered[:, answered.any(axis=0)]
    prompts, reward = np.arange(problem.n_prompts), evidence.reward()
    for context, q in enumerate(np.where(np.isnan(state.q()), -np.inf, state.q())):
        scale = q.argmax(axis=1)
        price = reward[context, prompts, scale] - q[prompts, scale]  # infinite where there is no arm
        values = evidence.factor[context] * evidence.values[evidence.row[context]].at(prompts, scale + 1)
        values = np.where(answered, values - price[:, None], -np.inf)
        best = values.max(axis=0)
        wins = (values >= best - _TIE) & np.isfinite(best)
        found[context] = (wins / np.maximum(wins.sum(axis=0), 1)).sum(axis=1)
    return found


def offspring(utility: FloatArray, error: FloatArray, parent: IntArray, prior: float) -> tuple[float, float]:
    """Return mean and standard deviation of what children have beyond their parents, shrunk to 0 and to the prior.

    Utilities are taken as posterior means, so that the variance of children is that of their means and of their errors.

    Args:
        utility: Of each prompt [P]; NaN where it is not known.
        error: Standard errors [P].
        parent: The prompt that each was written from, -1 for those that were given [P].
        prior: Standard deviation before any child is known, > 0.
    """
    child = np.flatnonzero((parent >= 0) & ~np.isnan(utility) & ~np.isnan(utility[parent]))
    beyond, unknown = utility[child] - utility[parent[child]], error[child] ** 2
    mean = float(beyond.sum()) / (_PRIOR_MEAN + len(child))
    around = (beyond - beyond.mean()) ** 2 if len(child) else beyond
    return mean, math.sqrt((_PRIOR * prior**2 + float((around + unknown).sum())) / (_PRIOR + len(child)))


def expected_best(mean: float, spread: float, n: int) -> float:
    """Return E max(0, largest of n draws from N(mean, spread^2)); `spread` > 0."""
    at, above = _largest_of(n)
    z = -mean / spread
    return spread * (float(np.interp(z, at, above)) + max(float(at[0]) - z, 0.0))


@cache
def _largest_of(n: int) -> tuple[FloatArray, FloatArray]:
    """Return points z, and there E max(0, M - z) for M the largest of n standard normal draws."""
    at = np.linspace(-8.0, 8.0, 3201)
    over = 1.0 - np.array([0.5 * math.erfc(-t / math.sqrt(2.0)) for t in at.tolist()]) ** n
    steps = (over[1:] + over[:-1]) / 2.0 * np.diff(at)
    return at, np.append(np.cumsum(steps[::-1])[::-1], 0.0)
