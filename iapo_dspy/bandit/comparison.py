"""Compares the arm of each context with what a user would run without the search: the student, and the best prompt.

An arm that was measured after the choice (`measurement`) is compared by that measurement: draws that have a part in the
choice would favour it. The other arm has its estimate from all draws of the run. Both are means over questions, mostly
over the same ones, so that their errors go together: where the measured questions are drawn from all X, the covariance
of the two means is cov / X, cov that of the two arms' rewards from question to question. The interval of the difference
follows from the two intervals and the correlation (Newcombe 1998; Zou and Donner 2008), so that it is as cautious about
few questions and about rewards near their bounds as they are.

Arms that were not measured are compared by their estimates on the same questions.

A compound arm is also compared with the best arm of one prompt: the arm that the context would have without it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from iapo_dspy.bandit.compound.uncertainty import covariance, error_of, error_of_difference, queries_of
from iapo_dspy.bandit.measurement import Bounds, quantile
from iapo_dspy.bandit.outcome import HeldOut, Outcome, StoppedArm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import StopMode, as_drawn, with_stops
from iapo_dspy.bandit.ties import choose
from iapo_dspy.types import Arm, Policy

BaselineName = Literal["student", "best prompt", "best prompt, N tuned", "best single arm"]
"""The baselines of a search: the student as it was, at N = 1; the prompt with the best single completions, at
N = 1; the same prompt with the N, and the stop, that serve the context best; and beside a compound arm the best arm of
one prompt, whichever."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A baseline of one context, beside the chosen arm.

    Attributes:
        name: Which baseline.
        call: Its arm and its expected calls, by the estimates that arms are chosen by; for the arm that was chosen
            itself, with its utility as measured.
        interval: The 95 % interval of its utility; NaN from algorithms without standard errors, and with fewer than two
            queries.
        difference: Utility of the chosen arm minus that of this one; 0 where they are the same arm.
        difference_interval: Its 95 % interval; NaN likewise.
    """

    name: BaselineName
    call: StoppedArm
    interval: Interval
    difference: float
    difference_interval: Interval


def compared(
    problem: Problem,
    outcome: Outcome,
    *,
    student: int | None,
    mode: StopMode | None,
    apart: bool = False,
    doubted: Collection[int] = (),
) -> tuple[tuple[Compared, ...], ...]:
    """Compare the arm of each context with its baselines.

    Args:
        problem: The problem of the outcome's prompts.
        outcome: The run, with its chosen arms measured where the budget paid for that.
        student: The student's number among the prompts; None where it is not one of them.
        mode: How calls may stop early; None where all completions are drawn at once.
        apart: Whether the chosen arms were measured on other queries than those of the run.
        doubted: Prompts that are not taken as the best ones, because they may know the queries of the run.

    Returns:
        The baselines of every context [C], in the order of `BaselineName`; without those of which nothing is known, and
        those that break the context's caps.
    """
    best = _best_prompts(outcome, doubted)
    tuned = _tuned(problem, outcome, best, mode)
    every = _chosen(outcome)
    single = _tuned(problem, outcome, None, mode) if any(call.arm.compound for call in every) else []
    found = []
    for context, chosen in enumerate(every):
        asked: list[tuple[BaselineName, StoppedArm]] = []
        if student is not None and np.isfinite(outcome.q[context, student, 0]):
            asked.append(("student", as_drawn(outcome, context, Arm(student, 1))))
        prompt = best[context]
        if prompt is not None:
            asked.append(("best prompt", as_drawn(outcome, context, Arm(prompt, 1))))
            same = prompt == chosen.arm.prompt and not chosen.arm.compound
            asked.append(("best prompt, N tuned", chosen if same else tuned[context]))
        if chosen.arm.compound and np.isfinite(single[context].utility):
            asked.append(("best single arm", single[context]))
        found.append(tuple(_compare(problem, outcome, context, chosen, name, call, apart) for name, call in asked))
    return tuple(found)


def _chosen(outcome: Outcome) -> tuple[StoppedArm, ...]:
    if outcome.stops is not None:
        return outcome.stops
    return tuple(as_drawn(outcome, context, arm) for context, arm in enumerate(outcome.policy.arms))


def _best_prompts(outcome: Outcome, doubted: Collection[int]) -> list[int | None]:
    """Return the prompt with the best single completions in each context; None where there is no such arm."""
    single = np.where(np.isnan(outcome.q[:, :, 0]), -np.inf, outcome.q[:, :, 0])
    single[:, list(doubted)] = -np.inf
    return [int(row.argmax()) if np.isfinite(row).any() else None for row in single]


def _tuned(
    problem: Problem, outcome: Outcome, prompts: list[int | None] | None, mode: StopMode | None
) -> list[StoppedArm]:
    """Choose N and the stop for one prompt in each context, or any (None), as the run chooses them among all."""
    q = outcome.q
    if prompts is not None:
        others = np.arange(problem.n_prompts)[None, :] != np.array([-1 if p is None else p for p in prompts])[:, None]
        q = np.where(others[:, :, None], np.nan, q)
    if outcome.detail is not None:
        policy = choose(q, outcome.detail)
    else:
        flat = np.where(np.isnan(q), -np.inf, q).reshape(len(q), -1).argmax(axis=1)
        policy = Policy(tuple(Arm(i // problem.max_n, i % problem.max_n + 1) for i in flat.tolist()))
    alone = replace(outcome, q=q, policy=policy, stops=None, measured=None)
    return list(_chosen(alone if mode is None else with_stops(problem, alone, mode=mode)))


def _compare(
    problem: Problem,
    outcome: Outcome,
    context: int,
    chosen: StoppedArm,
    name: BaselineName,
    call: StoppedArm,
    apart: bool,
) -> Compared:
    measured = outcome.measured[context] if outcome.measured is not None else None
    if call.arm == chosen.arm:
        alone = measured or _alone(problem, outcome, context, chosen)
        shown = replace(call, utility=alone.utility, reward=call.reward + alone.utility - call.utility)
        return Compared(name=name, call=shown, interval=alone.interval, difference=0.0, difference_interval=(0.0, 0.0))
    own = _alone(problem, outcome, context, call)
    best = measured or _alone(problem, outcome, context, chosen)
    difference = best.utility - own.utility
    interval = math.nan, math.nan
    if outcome.detail is not None and min(own.queries, best.queries) > 1:
        if measured is None:
            half = quantile(own.queries - 1.0) * error_of_difference(outcome.detail, context, chosen, call)
            interval = difference - half, difference + half
        else:
            shared = 0.0 if apart else covariance(outcome.detail, context, chosen, call) / problem.n_queries
            interval = _of_two(best, own, shared)
    return Compared(
        name=name,
        call=replace(call, utility=own.utility, reward=call.reward + own.utility - call.utility),
        interval=own.interval,
        difference=difference,
        difference_interval=interval,
    )


def _alone(problem: Problem, outcome: Outcome, context: int, call: StoppedArm) -> HeldOut:
    """Return the utility of an arm by the estimates that arms are chosen by, within the rewards' bounds."""
    error = error_of(outcome, context, call)
    if math.isnan(error):
        queries = int(outcome.count[call.arm.prompt, call.arm.n - 1])
        return HeldOut(utility=call.utility, standard_error=math.nan, interval=(math.nan, math.nan), queries=queries)
    bounds = Bounds.of(problem.aggregator, outcome.observations, problem.contexts.weights[context])
    return bounds.estimated(call.utility, call.reward - call.utility, error, queries_of(outcome, call.arm))


def _of_two(one: HeldOut, other: HeldOut, covariance: float) -> Interval:
    """Return the interval of a difference from the intervals of its two parts and the covariance of their errors."""
    errors = one.standard_error * other.standard_error
    correlation = min(max(covariance / errors, -1.0), 1.0) if errors > 0 else 0.0

    def half(mine: float, theirs: float) -> float:
        return math.sqrt(max(mine**2 + theirs**2 - 2.0 * correlation * mine * theirs, 0.0))

    low = half(one.utility - one.interval[0], other.interval[1] - other.utility)
    high = half(one.interval[1] - one.utility, other.utility - other.interval[0])
    difference = one.utility - other.utility
    return difference - low, difference + high
