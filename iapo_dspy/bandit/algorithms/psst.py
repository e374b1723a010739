"""PSST, Prompt Scaling via Sequential Trimming (Algorithm 1), with optional Top-K screening."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.algorithms.standing import no_observations
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import EstimatorFactory, Outcome, Run
from iapo_dspy.bandit.problem import Problem, check_all_present, check_budget
from iapo_dspy.types import IntArray, Observations, Pulls

Share = Callable[[int, int, int, IntArray], int]
"""(round r, rounds R, completions spent, largest scales [P]) -> lambda, the pulls of each prompt in the round."""


@dataclass(frozen=True, kw_only=True)
class PSST:
    """Sequential trimming (Algorithm 1); at most `budget` completions are drawn.

    Round r of R = ceil(log2 |A|) gets an equal share of the rest; completions that it cannot spend move on to later
    rounds. Where the first share does not pay for one pull of every prompt, the first round makes one all the same, and
    a later round that cannot pay for a pull trims on the evidence there is. The queries of a prompt in a round depend
    on (seed, round, prompt) only.

    Args:
        screening: Top-K screening before the first round: PSST+K1, +K4 and +K8 of the paper.
        stockpile: Whether estimates use all rounds (recommended by the paper) or the last one only.
        estimator: Makes the empty estimator of a run (line 17).
    """

    screening: Screening | None = None
    stockpile: bool = True
    estimator: EstimatorFactory = BlockEstimator

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`: one pull of each prompt at its largest scale."""
        return self.screening.least(problem) if self.screening else problem.n_prompts * problem.max_n

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`.

        Where the environment is exhausted early, the best living arm of each context is returned.
        """
        what, screening = f"PSST with {problem.n_prompts} prompts and max_n={problem.max_n}", self.screening
        if screening:
            what += f" after Top-K screening (k={screening.k}, rho={screening.rho:g})"
        check_all_present(problem, "PSST")
        check_budget(budget, seed, least=self.least(problem), what=what)

        def share(r: int, rounds: int, spent: int, scales: IntArray) -> int:
            times = allocate(scales, (budget - spent) // (rounds - r + 1))  # lines 7 and 8, eq. 6
            return max(times, 1) if r == 1 else times

        state = Elimination(problem, estimator=self.estimator, stockpile=self.stockpile)
        if screening is None:
            return trimming_rounds(problem, state, seed, share)
        return screened_rounds(problem, state, seed, share, screening.k, screening.budget(budget))

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Implement `Algorithm.solve`: repeat the trimming on the recorded rounds (cross-context reuse).

        Empty rounds count, and with `screening` the first one is the screening. Contexts that the run did not trim for
        may be judged on little evidence, see `Outcome.evidence`. `complete` is False where the run was cut short.
        """
        state = Elimination(problem, estimator=self.estimator, stockpile=self.stockpile)
        if self.screening:
            state.restrict_to_single()
        for i, observations in enumerate(rounds):
            state.observe(observations)
            if self.screening and i == 0:
                state.screen(self.screening.k)
            else:
                state.trim()
        return state.outcome(complete=bool((state.active.sum(axis=(1, 2)) == 1).all()))


def screened_rounds(
    problem: Problem, state: Elimination, seed: int, share: Share, k: int, screening_budget: int
) -> Run:
    """Compare all prompts at scale 1, keep each context's `k` best, and run `trimming_rounds` on them."""
    state.restrict_to_single()
    times = screening_budget // problem.n_prompts
    pulls = draw_pulls(problem, np.ones(problem.n_prompts, dtype=np.int64), times, seed, 0)
    observations = yield pulls
    state.observe(observations)
    if _cut_short(observations, pulls):
        return state.outcome(complete=False)
    state.screen(k)
    return (yield from trimming_rounds(problem, state, seed, share))


def trimming_rounds(problem: Problem, state: Elimination, seed: int, share: Share) -> Run:
    """Run lines 4 to 24 of Algorithm 1 on the arms that are alive.

    Args:
        problem: The problem.
        state: The arms that are alive, as many in every context, and their estimates.
        seed: Root of the random streams.
        share: How often each prompt is pulled in a round.
    """
    arms = int(state.active[0].sum())
    rounds = max(math.ceil(math.log2(arms)), 1)  # line 4; where there is nothing to choose, the only arm is measured
    for r in range(1, rounds + 1):  # line 5
        scales = largest_scales(state.active)
        times = share(r, rounds, state.spent, scales)
        if arms == 1:
            times = min(times, problem.n_queries)
        pulls = draw_pulls(problem, scales, times, seed, r)  # lines 6 to 15
        if not len(pulls):
            state.observe(no_observations(problem.contexts.n_objectives))
        else:
            observations = yield replace(pulls, interim=state.interim(rounds_left=rounds - r + 1))  # line 16
            state.observe(observations)  # line 17
            if _cut_short(observations, pulls, last=r == rounds):
                return state.outcome(complete=False)
        state.trim()  # lines 18 to 22
    return state.outcome(complete=True)  # line 24


def largest_scales(active: NDArray[np.bool_]) -> IntArray:
    """Return N_p,max [P]: the largest scale of each prompt that is alive in some context, 0 where none is.

    Args:
        active: Which arms are alive [C, P, N].
    """
    alive = active.any(axis=0)
    largest: IntArray = np.where(alive, np.arange(1, alive.shape[1] + 1), 0).max(axis=1)
    return largest


def allocate(scales: IntArray, budget: int) -> int:
    """Return lambda of eq. 6: how often each surviving prompt is pulled at its largest scale, floor(n_r / M).

    Args:
        scales: N_p,max [P], from `largest_scales`; M is their sum.
        budget: n_r, the completions of this round.
    """
    return budget // int(scales.sum())


def draw_pulls(problem: Problem, scales: IntArray, times: int, seed: int, r: int) -> Pulls:
    """Pull each prompt `times` times at its scale, on queries drawn independently (lines 10 to 15).

    Args:
        problem: Gives the queries.
        scales: Completions per pull of each prompt [P]; 0 leaves the prompt out.
        times: Pulls per prompt.
        seed: Root of the random streams.
        r: Round; (seed, r, prompt) names the stream of a prompt's queries.
    """
    prompts = np.flatnonzero(scales)
    queries = [np.random.default_rng([seed, r, p]).integers(problem.n_queries, size=times) for p in prompts.tolist()]
    return Pulls(np.repeat(prompts, times), np.concatenate(queries), np.repeat(scales[prompts], times))


def _cut_short(observations: Observations, pulls: Pulls, *, last: bool = False) -> bool:
    missing = observations.pulls.completions < pulls.completions
    return missing or (observations.exhausted and not last)
