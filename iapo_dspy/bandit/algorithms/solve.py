"""Solve other contexts from what a run already observed, without pulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from iapo_dspy.bandit.algorithms.auto import Standing
from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import EstimatorFactory, Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import StopMode, with_stops
from iapo_dspy.types import Contexts, Observations

__all__ = ["solve", "solve_auto"]


def solve(
    problem: Problem,
    rounds: Sequence[Observations],
    contexts: Contexts | None = None,
    *,
    stockpile: bool = True,
    screening: Screening | None = None,
    estimator: EstimatorFactory = BlockEstimator,
) -> Outcome:
    """Repeat the trimming of `psst` for other contexts on recorded rounds (cross-context reuse).

    After each recorded round the arms are estimated and trimmed; at the end the best living arm of each context is
    chosen. With the contexts and the settings of the run itself this gives the run's own policy. For other contexts
    arms may be judged on little evidence, since the run trimmed for its own contexts: see `Outcome.evidence`.

    Args:
        problem: The problem of the run. Where its `cost_scale` is `None`, the scale is learnt as in the run.
        rounds: `Outcome.observations` of the run, empty rounds included; with `screening`, the first is the screening.
        contexts: The contexts to solve; `None` means the problem's own.
        stockpile: As in the run.
        screening: As in the run.
        estimator: As in the run.

    Returns:
        The outcome. `spent` and `rounds` describe the recorded run; `complete` is False where it was cut short.
    """
    if contexts is not None:
        problem = replace(problem, contexts=contexts)
    state = Elimination(problem, estimator=estimator, stockpile=stockpile)
    if screening:
        state.restrict_to_single()
    for i, observations in enumerate(rounds):
        state.observe(observations)
        if screening and i == 0:
            state.screen(screening.k)
        else:
            state.trim()
    return state.outcome(complete=bool((state.active.sum(axis=(1, 2)) == 1).all()))


def solve_auto(
    problem: Problem,
    rounds: Sequence[Observations],
    contexts: Contexts | None = None,
    *,
    stops: StopMode | None = None,
) -> Outcome:
    """Choose arms for other contexts from the recorded rounds of `auto`.

    Estimates of every arm are made from all that was drawn, whichever contexts it was drawn for; the model is fitted
    round by round, as in the run, so that the run's own contexts get the run's own policy.

    Args:
        problem: The problem of the run.
        rounds: `Outcome.observations` of the run.
        contexts: The contexts to solve; `None` means the problem's own.
        stops: How calls may stop early, see `with_stops`; `None`: all N are drawn at once.

    Returns:
        The outcome. Its rounds list every prompt as alive: who was drawn is in the observations.
    """
    if contexts is not None:
        problem = replace(problem, contexts=contexts)
    state = Standing(problem)
    for observations in rounds:
        state.observe(observations, np.arange(problem.n_prompts))
    outcome = state.outcome(complete=True)
    return outcome if stops is None else with_stops(problem, outcome, mode=stops)
