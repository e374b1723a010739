"""Prompts that are combinations, one coordinate at a time: `auto` where the product is too large to look at.

A prompt of a program with several predictors is one instruction for each of them (and a decoding). With D coordinates
of k_1 .. k_D options the product has k_1 x .. x k_D prompts, of which a budget can look at few. Here one coordinate at
a time is varied while the others are held at the **incumbents**, the combinations that some context would choose now:
at first each coordinate's first option. A pass over all coordinates sees about 1 + sum (k_j - 1) new combinations.

The budget is shared out over passes x coordinates and a last stage; completions that a step does not spend move on. A
step is `auto` on a small prompt set, in a few rounds: combinations that are new answer the queries that the incumbents
have answered already (one random order serves the whole run, so that no incumbent is paid again to be compared), then
the number that stays falls geometrically by expected gain. The last stage does the same among all combinations ever
drawn.

**Evidence is stockpiled.** The draws of a combination are kept, count in every later step, and in the end every
combination that was ever drawn takes part in one estimate of all arms (`CorrectedEstimator` on all draws), for every
context. So contexts may end with different combinations, and one that lost to an incumbent of an early pass can still
be chosen for its draws. Coordinate ascent finds the best combination where effects add up, and with
interactions one that no change of a single coordinate improves.

Combinations are numbered row by row, the last coordinate fastest, so a number means the same in every process: it is
what pulls, ledgers and environments know. The product is never made: arrays have one row per combination *drawn*, in
the order of first draws, and `Outcome.prompts` says which these are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.algorithms.auto import FIRST_PULL, LEAST_QUERIES, NEGLIGIBLE, Auto, Ranking, survivors
from iapo_dspy.bandit.algorithms.schedule import Schedule
from iapo_dspy.bandit.algorithms.standing import joined
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.port import ComparingEstimator
from iapo_dspy.bandit.outcome import Outcome, Run, renumbered
from iapo_dspy.bandit.problem import Problem, check_all_present, check_budget
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray, Observations, Pulls

ROUNDS = 3  # of a step
LAST_ROUNDS = 4  # of the last stage
_FIRST_QUERIES = 4  # of a new combination, in the first round of its step; smaller budgets have fewer passes

Combination = tuple[int, ...]
"""One option per coordinate."""


@dataclass(frozen=True)
class Coordinate:
    """Searches combinations one coordinate at a time; at most `budget` completions are drawn.

    The prompts of a problem are all combinations: `n_prompts` is the product of `shape`.

    Args:
        shape: Options of each coordinate [D], >= 1 each, at least one > 1.
        passes: How often each coordinate is varied at most, >= 1; a small budget has one.
        estimator: Makes the empty estimator of a run, by which arms are estimated and compared.

    Raises:
        ConfigurationError: A setting is not a usable number.
    """

    shape: Sequence[int]
    passes: int = 2
    estimator: Callable[[Problem], ComparingEstimator] = CorrectedEstimator

    def __post_init__(self) -> None:
        sizes, passes = tuple(int(k) for k in self.shape), self.passes
        if not sizes or min(sizes) < 1 or max(sizes) < 2:
            raise ConfigurationError(
                f"shape={tuple(self.shape)!r}: give the number of options of each coordinate, at least one of them > 1."
            )
        if isinstance(passes, bool) or not isinstance(passes, (int, np.integer)) or passes < 1:
            raise ConfigurationError(f"passes is {passes!r}; give a whole number >= 1.")
        object.__setattr__(self, "shape", sizes)

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`: one completion of each combination of the first pass."""
        return first_pass(self.shape)

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`.

        The P axis of the outcome, policy and observations included, are the combinations that were drawn
        (`Outcome.prompts`); the pulls have the numbers of combinations.

        Raises:
            ConfigurationError: Also where the shape is not the problem's.
        """
        if math.prod(self.shape) != problem.n_prompts:
            raise ConfigurationError(
                f"shape={self.shape!r}: give a shape with a product of {problem.n_prompts}, the number of prompts."
            )
        check_all_present(problem, "The search by coordinates")
        least = self.least(problem)
        check_budget(budget, seed, least=least, what=f"looking at {least} combinations once, one coordinate at a time,")
        return _Search(self, problem, int(budget), seed).run()

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Implement `Algorithm.solve` for the combinations that were drawn, which are the problem's prompts here."""
        return Auto(estimator=self.estimator).solve(replace(problem, parts=None), rounds)


def first_pass(shape: Sequence[int]) -> int:
    """Return how many combinations the first pass over all coordinates sees."""
    return 1 + sum(k - 1 for k in shape)


class _Search:
    """One run. Combinations that were drawn have slots, numbered in the order of first draws."""

    def __init__(self, settings: Coordinate, problem: Problem, budget: int, seed: int) -> None:
        self._problem = replace(problem, known=None)
        self._shape = tuple(settings.shape)
        self._budget = budget
        self._estimator = settings.estimator
        new = first_pass(self._shape)
        self._passes = max(1, min(int(settings.passes), budget // (new * _FIRST_QUERIES * FIRST_PULL * ROUNDS)))
        self._slots: dict[Combination, int] = {}
        self._numbers: IntArray = np.empty(0, dtype=np.int64)  # of the combination in each slot [V]
        self._rounds: list[Observations] = []
        self._spent = 0
        self._state = self._ranking()
        # Every slot has at least one completion, so there are never more of them than completions.
        room = replace(self._problem, n_prompts=min(problem.n_prompts, budget))
        self._schedule = Schedule(room, budget, seed, rounds=1, first_pull=FIRST_PULL, growth=2, shared=True)
        self._schedule.size[:] = max(1, min(FIRST_PULL, problem.max_n, budget // (new * _FIRST_QUERIES)))

    def run(self) -> Run:
        """Go round the coordinates, then once over everything that was drawn."""
        coordinates = [d for d, k in enumerate(self._shape) if k > 1]
        steps = coordinates * self._passes
        incumbents: list[Combination] = [(0,) * len(self._shape)]
        for i, d in enumerate(steps):
            if i and i % len(coordinates) == 0:
                self._schedule.enlarge()
            left = self._budget - self._spent
            later = [self._shape[e] for e in steps[i + 1 :]]
            last = max(self._shape)  # the last stage weighs as much as the largest step
            share = left * self._shape[d] // (self._shape[d] + sum(later) + last)
            # Small budgets: the coordinates that were never varied need a completion for each of their options.
            most = left - sum(k - 1 for k in later[: max(len(coordinates) - i - 1, 0)])
            family, rounds = self._family(incumbents, d, share), (len(steps) - 1 - i) * ROUNDS + LAST_ROUNDS
            going = yield from self._step(family, min(share, most), most, ROUNDS, later=rounds)
            if not going:
                return self._outcome(complete=False)
            incumbents = self._incumbents()
        self._schedule.enlarge()
        left = self._budget - self._spent
        complete = yield from self._step(list(self._slots), left, left, LAST_ROUNDS, later=0)
        return self._outcome(complete=complete)

    def _family(self, incumbents: Sequence[Combination], d: int, share: int) -> list[Combination]:
        """Return the incumbents with every option of a coordinate; of several incumbents as many as are affordable."""
        k = self._shape[d]
        affordable = max(1, share // (k * _FIRST_QUERIES * FIRST_PULL))
        found: dict[Combination, None] = {}
        for chosen in incumbents[:affordable]:
            found.update(dict.fromkeys((*chosen[:d], option, *chosen[d + 1 :]) for option in range(k)))
        return list(found)

    def _incumbents(self) -> list[Combination]:
        """Return the combinations that contexts would choose now, those of most contexts first."""
        combinations = list(self._slots)
        wanted = Counter(arm.prompt for arm in self._state.policy().arms)
        return [combinations[slot] for slot, _ in sorted(wanted.items(), key=lambda item: (-item[1], item[0]))]

    def _step(
        self, family: Sequence[Combination], share: int, most: int, rounds: int, *, later: int
    ) -> Generator[Pulls, Observations, bool]:
        """Compare combinations in a few rounds of at most `share` completions; False where the environment ended.

        New combinations get one completion each even beyond the share, up to `most`. `later` rounds may come after
        these; the last stage has none.
        """
        last = not later
        fresh = [c for c in family if c not in self._slots][:most]
        share = max(share, len(fresh))
        self._make_room(fresh)
        slots = np.array([self._slots[c] for c in family if c in self._slots], dtype=np.int64)
        alive = np.array([self._slots[c] for c in fresh], dtype=np.int64) if fresh else slots
        end = self._spent + share
        for r in range(1, rounds + 1):
            if not fresh or r > 1:
                gains = self._state.gains(traits=True)[slots]
                if self._settled(gains):
                    break
                chosen = np.flatnonzero(np.isin(slots, self._state.chosen_prompts()))
                keep = math.ceil(len(slots) ** (1 - (r - 1) / (rounds - 1)))
                alive = slots[survivors(gains, chosen, keep)]
            alive = alive[: end - self._spent]
            if not len(alive):
                break
            pulls = self._schedule.pulls(alive, max((end - self._spent) // (rounds - r + 1), len(alive)))
            known = self._state.interim(self._problem, rounds_left=later + rounds - r + 1)
            known = renumbered(known, self._numbers) if known is not None else None
            asked = replace(pulls, prompt=self._numbers[pulls.prompt], interim=known)
            observations = yield asked
            self._observe(observations, alive)
            over = last and r == rounds
            if observations.pulls.completions < asked.completions or (observations.exhausted and not over):
                return False
            self._schedule.least_pull = math.ceil(math.sqrt(self._state.overhead))
            if last:
                self._schedule.enlarge()
        return True

    def _settled(self, gains: FloatArray) -> bool:
        """Whether no further draw of combinations with these expected gains is expected to change a choice."""
        enough = self._state.n_visited >= min(self._problem.n_queries, LEAST_QUERIES)
        return enough and bool(gains.max() <= NEGLIGIBLE * self._state.spread)

    def _make_room(self, fresh: Sequence[Combination]) -> None:
        """Give new combinations slots; everything is estimated anew then, from all draws."""
        if not fresh:
            return
        for combination in fresh:
            self._slots[combination] = len(self._slots)
        axes = tuple(np.array(list(self._slots), dtype=np.int64).T)
        self._numbers = np.asarray(np.ravel_multi_index(axes, self._shape), dtype=np.int64)
        self._state = self._ranking()
        if self._rounds:
            self._state.observe(joined(self._rounds), np.arange(len(self._slots)))

    def _ranking(self) -> Ranking:
        return Ranking(replace(self._problem, n_prompts=max(len(self._slots), 1)), estimator=self._estimator)

    def _observe(self, observations: Observations, alive: IntArray) -> None:
        """Take in a round, with slots in the place of numbers."""
        order = np.argsort(self._numbers)
        slots = order[np.searchsorted(self._numbers, observations.pulls.prompt, sorter=order)]
        seen = replace(observations, pulls=replace(observations.pulls, prompt=slots))
        self._spent += seen.pulls.completions
        self._rounds.append(seen)
        self._state.observe(seen, alive)

    def _outcome(self, *, complete: bool) -> Outcome:
        """Estimate everything once more, round by round, as `Coordinate.solve` does for other contexts."""
        state = self._ranking()
        for observations in self._rounds:
            state.observe(observations, np.unique(observations.pulls.prompt))
        return replace(state.outcome(complete=complete), prompts=self._numbers)
