"""Win rates of arms whose completions were compared with opponents: the score is 1 for a win and 0.5 for a tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.measurement import Bounds
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import Arm, FloatArray, Observations

_STEP = 1e-6  # how far scores are moved to see which completion's score a reward follows


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """How calls of an arm fare against the opponents.

    Attributes:
        rate: Mean score of the answers over queries, ties counted half, in [0, 1].
        interval: Its 95 % interval, by query; None with fewer than two queries.
        wins: Share of answers with a score above 0.5.
        ties: Share of answers with a score of 0.5.
        losses: The rest: failed calls are among them.
        queries: Queries behind them: those on which a whole call of the arm was drawn.
        measured: Whether they were drawn after the choice. Those that the arm was chosen by make it look too good.
    """

    rate: float
    interval: tuple[float, float] | None
    wins: float
    ties: float
    losses: float
    queries: int
    measured: bool


def win_rates(
    problem: Problem, arms: Sequence[Arm], column: int, drawn: Sequence[Observations], after: Observations | None
) -> tuple[WinRate | None, ...]:
    """Estimate the win rate of each context's arm [C].

    Calls are played without their stops, on the first completions of each query.

    Args:
        problem: The problem.
        arms: The chosen arms [C].
        column: The column of scores that has the comparisons.
        drawn: What the arms were chosen by.
        after: What was drawn after the choice; None for nothing.

    Returns:
        None for an arm of several prompts or stages, for a context that does not weigh the column, and where no whole
        call was drawn.
    """
    sources = [([after], True)] if after is not None and len(after.pulls) else []
    found: list[WinRate | None] = []
    for context, arm in enumerate(arms):
        weights = problem.contexts.weights[context]
        rate = None
        for observations, measured in [*sources, (list(drawn), False)]:
            if rate is None and not arm.compound and weights[column] > 0 and observations:
                rate = _win_rate(problem, arm, column, weights, observations, measured)
        found.append(rate)
    return tuple(found)


def _win_rate(
    problem: Problem, arm: Arm, column: int, weights: FloatArray, observations: Sequence[Observations], measured: bool
) -> WinRate | None:
    cells = Cells.of(observations, problem.n_prompts, problem.contexts.n_objectives)
    whole = np.flatnonzero((cells.prompt == arm.prompt) & (cells.size >= arm.n))
    if not len(whole):
        return None
    first = cells.start[whole, None] + np.arange(arm.n)
    label, score = cells.label[first], cells.score[first]

    def reward(moved: FloatArray) -> FloatArray:
        changed = score.copy()
        changed[:, :, column] += _STEP * moved
        return np.asarray(problem.aggregator.reward(label, changed, weights[None])[0])

    def of_answer(values: FloatArray) -> FloatArray:
        """Return the values [S, n] of the completions that the answers [S] are: the reward moves as they do."""
        moved = (reward(np.nan_to_num(values)) - still) / (_STEP * weights[column])
        return np.asarray(np.clip(np.round(moved, 6), 0.0, 1.0))

    own = score[:, :, column]
    still = reward(np.zeros_like(own))
    value, wins, ties = of_answer(own), of_answer(own > 0.5), of_answer(own == 0.5)
    queries, mean = len(value), float(value.mean())
    bounds = Bounds(low=0.0, high=1.0, spread=_spread(own))
    interval = None
    if queries > 1:
        interval = bounds.interval(mean, float(value.var(ddof=1)) / queries, queries - 1.0, queries)
    share = float(wins.mean()), float(ties.mean())
    return WinRate(
        rate=mean,
        interval=interval,
        wins=share[0],
        ties=share[1],
        losses=max(1.0 - sum(share), 0.0),
        queries=queries,
        measured=measured,
    )


def _spread(scores: FloatArray) -> float:
    """Return the variance of scores as a share of that of yes-or-no scores with the same mean."""
    known = scores[~np.isnan(scores)]
    largest = float(known.mean() * (1.0 - known.mean())) if len(known) else 0.0
    return min(float(known.var()) / largest, 1.0) if largest > 0 else 1.0
