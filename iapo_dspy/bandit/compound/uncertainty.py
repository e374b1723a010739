"""How far the estimates of arms may be off, compound ones included, and those of differences between arms.

An arm of one prompt has its error in the evidence of its run. A compound arm was never drawn. The spread of its
expected rewards from query to query says how far off they are for want of queries. It does not say how far the prompts'
own levels are off, and answers of the arm rest on these prompts: so its error is at least the largest one among them.
The same holds for its difference from another arm.
"""

from __future__ import annotations

import math

import numpy as np

from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.outcome import Outcome, StoppedArm
from iapo_dspy.types import Arm, FloatArray, IntArray


def rewards_by_query(evidence: Evidence, context: int, call: StoppedArm) -> FloatArray:
    """Return the expected reward of an arm on each visited query [V]; NaN where it is not known.

    An arm of one prompt that stops early has the rewards of all its N completions: what stopping changes is far
    smaller than what differs from query to query.
    """
    if call.by_query is not None:
        return call.by_query
    if call.arm.compound:
        return np.full(evidence.n_visited, np.nan)
    values = evidence.values[evidence.row[context]]
    return np.asarray(evidence.factor[context] * values.at(np.array([call.arm.prompt]), np.array([call.arm.n]))[0])


def queries_of(outcome: Outcome, arm: Arm) -> int:
    """Return how many queries an estimate rests on: those on which each of the arm's prompts was drawn, at least."""
    return int(min(outcome.count[prompt, 0] for prompt in arm.prompts))


def error_of(outcome: Outcome, context: int, call: StoppedArm) -> float:
    """Return the standard error of an arm's estimated reward; NaN from algorithms that have none."""
    error = outcome.estimates.standard_error
    if error is None:
        return math.nan
    prompts, scales = _parts(call.arm, outcome.q.shape[2])
    worst = float(error[context][prompts, scales - 1].max())
    if outcome.detail is None or not call.arm.compound:
        return worst
    return _larger(worst, _mean_error(rewards_by_query(outcome.detail, context, call)))


def error_of_difference(evidence: Evidence, context: int, one: StoppedArm, other: StoppedArm) -> float:
    """Return the standard error of the difference of two arms' estimated rewards.

    Args:
        evidence: The evidence of the run.
        context: Whose rewards they are.
        one: An arm, compound or not.
        other: An arm of one prompt.
    """
    max_n = evidence.queries.shape[1]
    prompts, scales = _parts(one.arm, max_n)
    worst = float(evidence.against(context, prompts, scales, other.arm.prompt, other.arm.n).max())
    if not one.arm.compound:
        return worst
    difference = rewards_by_query(evidence, context, one) - rewards_by_query(evidence, context, other)
    return _larger(worst, _mean_error(difference))


def covariance(evidence: Evidence, context: int, one: StoppedArm, other: StoppedArm) -> float:
    """Return how the rewards of two arms vary together from query to query; 0 where it is not known."""
    values = np.stack([rewards_by_query(evidence, context, call) for call in (one, other)])
    values = values[:, ~np.isnan(values).any(axis=0)]
    return float(np.cov(values)[0, 1]) if values.shape[1] > 1 else 0.0


def _parts(arm: Arm, max_n: int) -> tuple[IntArray, IntArray]:
    """Return the arm's prompts with the scale of each of them, from stage to stage."""
    parts = [(share.prompt, min(share.n, max_n)) for stage in arm.stages for share in stage.shares]
    prompts, scales = np.array(parts, dtype=np.int64).T
    return prompts, scales


def _mean_error(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan


def _larger(worst: float, own: float) -> float:
    return worst if math.isnan(own) else max(worst, own)
