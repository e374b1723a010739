"""How far the estimates of arms may be off, compound ones included, and those of differences between arms.

An arm of one prompt has its error in the evidence of its run. A compound arm was never drawn: it has its expected
reward on each query, by a model. What the model leaves open of a prompt on a query (the residual between
`Evidence.influence` and `Evidence.values`) counts as far as calls on this query are answered by completions of the
prompt, and so does the doubt about the prompt's level. The spread of both together from query to query tells the error,
as it does for an arm of one prompt.
"""

from __future__ import annotations

import math

import numpy as np

from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.outcome import Outcome, StoppedArm
from iapo_dspy.types import Arm, FloatArray


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
    if outcome.detail is None or not call.arm.compound:
        return float(error[context, call.arm.prompt, call.arm.n - 1])
    return _error(outcome.detail, context, call.answered_by, rewards_by_query(outcome.detail, context, call))


def error_of_difference(evidence: Evidence, context: int, one: StoppedArm, other: StoppedArm) -> float:
    """Return the standard error of the difference of two arms' estimated rewards.

    Args:
        evidence: The evidence of the run.
        context: Whose rewards they are.
        one: An arm, compound or not.
        other: An arm of one prompt.
    """
    prompt, n = other.arm.prompt, other.arm.n
    if not one.arm.compound:
        return float(evidence.against(context, np.array([prompt]), np.array([n]), one.arm.prompt, one.arm.n)[0])
    values = [rewards_by_query(evidence, context, call) for call in (one, other)]
    counted = {p: (p, scale, share) for p, scale, share in one.answered_by}
    _, scale, share = counted.get(prompt, (prompt, n, np.zeros(evidence.n_visited)))
    counted[prompt] = prompt, scale, share - 1.0  # the same draws tell of both
    return _error(evidence, context, tuple(counted.values()), values[0] - values[1])


def _error(
    evidence: Evidence, context: int, counted: tuple[tuple[int, int, FloatArray], ...], values: FloatArray
) -> float:
    """Return the standard error of the mean of values [V].

    Args:
        evidence: The evidence.
        context: Whose rewards the values are.
        counted: Prompts, scales, and how much of each prompt's error the value of each query has [V].
        values: The values; NaN where they are not known.
    """
    row, factor = evidence.row[context], evidence.factor[context]
    error, doubt = np.zeros(evidence.n_visited), 0.0
    for prompt, scale, share in counted:
        at = np.array([prompt]), np.array([min(scale, evidence.queries.shape[1])])
        residual = (evidence.influence[row].at(*at) - evidence.values[row].at(*at))[0]
        error += factor * share * (residual - residual.mean())
        doubt += float((factor * np.nanmean(share)) ** 2 * evidence.doubt[row][prompt, at[1][0] - 1])
    known = ~np.isnan(values + error)
    spread = float((values + error)[known].var()) / max(int(known.sum()) - 1, 1) if known.any() else math.nan
    return math.sqrt(spread + doubt)


def covariance(evidence: Evidence, context: int, one: StoppedArm, other: StoppedArm) -> float:
    """Return how the rewards of two arms vary together from query to query; 0 where it is not known."""
    values = np.stack([rewards_by_query(evidence, context, call) for call in (one, other)])
    values = values[:, ~np.isnan(values).any(axis=0)]
    return float(np.cov(values)[0, 1]) if values.shape[1] > 1 else 0.0
