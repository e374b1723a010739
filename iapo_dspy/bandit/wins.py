"""Win rates of arms whose completions were compared with opponents: the score is 1 for a win and 0.5 for a tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import drawn_sequences
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
        losses: The rest: calls that failed or abstained are among them.
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
    """Estimate the win rate of each context's arm [C], cascades and mixtures included.

    Calls are played on the first completions of each query.

    Args:
        problem: The problem.
        arms: The chosen arms [C].
        column: The column of scores that has the comparisons.
        drawn: What the arms were chosen by.
        after: What was drawn after the choice; None for nothing.

    Returns:
        None for a context that does not weigh the column, and where no whole call was drawn.
    """
    k = problem.contexts.n_objectives
    sources = [(Cells.of([after] if after is not None else [], problem.n_prompts, k), True)]
    sources += [(Cells.of(drawn, problem.n_prompts, k), False)]
    found: list[WinRate | None] = []
    for arm, weights in zip(arms, problem.contexts.weights, strict=True):
        played = (_win_rate(problem, arm, column, weights, *source) for source in sources if weights[column] > 0)
        found.append(next((rate for rate in played if rate is not None), None))
    return tuple(found)


def _win_rate(
    problem: Problem, arm: Arm, column: int, weights: FloatArray, cells: Cells, measured: bool
) -> WinRate | None:
    calls = drawn_sequences(cells, arm, problem.aggregator, weights)
    if not len(calls):
        return None
    own = calls.score[..., column]

    def reward(moved: FloatArray) -> FloatArray:
        score = calls.score.copy()
        score[..., column] += _STEP * moved
        return play(arm, replace(calls, score=score)).reward

    def of_answer(values: FloatArray) -> FloatArray:
        """Return the values of the completions that are the answers [S]: rewards move as the answers' scores do."""
        moved = (reward(np.nan_to_num(values)) - still) / (_STEP * weights[column])
        return np.asarray(np.clip(np.round(moved, 6), 0.0, 1.0))

    still = reward(np.zeros_like(own))
    value, wins, ties = map(of_answer, (own, np.where(own > 0.5, 1.0, 0.0), np.where(own == 0.5, 1.0, 0.0)))
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
