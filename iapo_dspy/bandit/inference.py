"""How certain a choice is: intervals, runners-up, the chance of being best, deceptive prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.compound.uncertainty import error_of, error_of_difference, queries_of
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.measurement import Bounds
from iapo_dspy.bandit.models.surfaces import groups
from iapo_dspy.bandit.outcome import HeldOut, Outcome, StoppedArm
from iapo_dspy.bandit.stops import as_drawn
from iapo_dspy.types import Arm, Contexts, FloatArray

Z95 = 1.959964  # half width of a 95 % interval, in standard errors
WANTED = 0.05  # half width of an interval that users can act on, as a share of the range of the rewards
_DRAWS = 400
_TIE = 1e-9  # of the range of the rewards


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How certain the choice of one context's arm is.

    Attributes:
        utility: Of the arm: as measured after the choice, or, where that was not paid for, by the estimates that it was
            chosen by. The best of many estimates tends to be too high.
        standard_error: Of the utility, for new queries like the training ones; NaN with fewer than two queries.
        interval: The 95 % interval of the utility; NaN with fewer than two queries.
        queries: How many queries the utility rests on.
        needed: About how many queries would bring the interval to +-`WANTED` of the range of the rewards; infinite
            where it cannot be told.
        measured: Whether it rests on completions that had no part in the choice, or there was nothing to choose.
        runner_up: The best arm with another prompt, beside a compound arm the best one of one prompt; None where there
            is no other.
        behind: How much less utility the runner-up is estimated to have by the estimates that both were chosen by; may
            be slightly negative where a near-tie went to the cheaper arm.
        probability_best: Probability that the arm's prompt is the best one for the context, at its best scale each;
            prompts that are as good share it. Of a compound arm, which has no prompt of its own, probability that it
            is better than the best arm of one prompt: by the completions that measured it, else by its gain on queries
            that had no part in tuning it, and else by the estimates. The latter two tend to be too high.
    """

    utility: float
    standard_error: float
    interval: tuple[float, float]
    queries: int
    needed: float
    measured: bool
    runner_up: Arm | None
    behind: float
    probability_best: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.interval[1] - self.interval[0]) / 2.0


@dataclass(frozen=True, kw_only=True)
class Deceptive:
    """A prompt that is the best one for single completions and is beaten where completions are aggregated.

    Attributes:
        context: For which context.
        prompt: The deceptive prompt.
        beaten_by: The prompt that the policy has instead.
        n: At which scale.
        difference: By how much task reward it is beaten there, on the same queries, > 0.
        interval: The 95 % interval of the difference; it lies above 0.
    """

    context: int
    prompt: int
    beaten_by: int
    n: int
    difference: float
    interval: tuple[float, float]


def choices(
    outcome: Outcome, contexts: Contexts, aggregator: Aggregator, seed: int = 0
) -> tuple[Certainty, ...] | None:
    """Return how certain each context's arm is; None for algorithms whose estimates have no standard errors.

    Args:
        outcome: The run.
        contexts: Its contexts.
        aggregator: Its aggregator.
        seed: Seed of the joint normal draws behind `probability_best`.
    """
    evidence, se = outcome.detail, outcome.estimates.standard_error
    if evidence is None or se is None:
        return None
    noises = [_Noise.of(evidence, row, np.random.default_rng([seed, row])) for row in range(len(evidence.values))]
    found = []
    for context, arm in enumerate(outcome.policy.arms):
        q = np.where(np.isnan(outcome.q[context]), -np.inf, outcome.q[context])
        others = np.where((np.arange(len(q)) == arm.prompt) & (not arm.compound), -np.inf, q.max(axis=1))
        second = int(others.argmax())
        runner_up = Arm(second, int(q[second].argmax()) + 1) if np.isfinite(others[second]) else None
        # What stopping changes is known far better than the reward itself.
        call = outcome.stops[context] if outcome.stops is not None else as_drawn(outcome, context, arm)
        value, reward = call.utility, call.reward
        behind = value - float(others[second]) if runner_up else float("nan")
        bounds = Bounds.of(aggregator, outcome.observations, contexts.weights[context])
        measured = outcome.measured[context] if outcome.measured is not None else None
        if arm.compound:
            probability = _better(outcome, context, call, runner_up, behind, measured)
        else:
            noise = noises[evidence.row[context]]
            best = (q + noise.errors(evidence, context, outcome.reward[context], se[context], bounds)).max(axis=2)
            equal = best >= best.max(axis=1, keepdims=True) - _TIE * (bounds.high - bounds.low)
            probability = float((equal[:, arm.prompt] / equal.sum(axis=1)).mean())
        alone = measured or bounds.estimated(
            value, reward - value, error_of(outcome, context, call), queries_of(outcome, arm)
        )
        found.append(
            Certainty(
                utility=alone.utility,
                standard_error=alone.standard_error,
                interval=alone.interval,
                queries=alone.queries,
                needed=alone.queries * _times(alone.interval, WANTED * (bounds.high - bounds.low)),
                measured=measured is not None or outcome.q[context].size == 1,  # nothing was chosen
                runner_up=runner_up,
                behind=behind,
                probability_best=probability,
            )
        )
    return tuple(found)


def _better(
    outcome: Outcome, context: int, call: StoppedArm, single: Arm | None, behind: float, measured: HeldOut | None
) -> float:
    """Return the probability that a compound arm is better than the best arm of one prompt."""
    if single is None or outcome.detail is None:
        return math.nan
    other = as_drawn(outcome, context, single)
    if measured is not None:  # with errors of their own, as on a validation set: more cautious where they are not
        error = math.hypot(measured.standard_error, error_of(outcome, context, other))
        return probability_above(measured.utility - other.utility, error, measured.queries - 1.0)
    gain, error = behind, error_of_difference(outcome.detail, context, call, other)
    for considered in outcome.considered[context] if outcome.considered else ():
        if considered.arm == call.arm and considered.kind == "cascade":  # the gain of a mixture is one of rewards
            gain, error = considered.gain, considered.standard_error
    return probability_above(gain, error, queries_of(outcome, call.arm) - 1.0)


def probability_above(gain: float, error: float, freedom: float) -> float:
    """Return the probability that a gain is above 0, by Student's t; to .001 (Wallace 1959).

    Args:
        gain: The estimate.
        error: Its standard error, >= 0.
        freedom: Degrees of freedom of the error; fewer than 1 say nothing.
    """
    if math.isnan(gain) or math.isnan(error) or freedom < 1:
        return math.nan
    if error <= 0:
        return 0.5 + 0.5 * float(np.sign(gain))
    z = math.sqrt(freedom * math.log1p((gain / error) ** 2 / freedom)) * (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    return 0.5 * (1.0 + math.erf(math.copysign(z, gain) / math.sqrt(2.0)))


def _times(interval: tuple[float, float], half_width: float) -> float:
    """Return how many times as many queries would make an interval so narrow."""
    now = (interval[1] - interval[0]) / 2.0
    return float("inf") if math.isnan(now) else (now / half_width) ** 2 if half_width > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """Joint random errors of all arms under one row of weights.

    Few queries do not say how much they vary, so that the errors follow Student's t and not the normal law.

    Attributes:
        queries: Of the queries, by the multiplier bootstrap [draws, P, N].
        prompts: Standard errors of each prompt's own error, by which it is off [draws, P, 1].
    """

    queries: FloatArray
    prompts: FloatArray

    @classmethod
    def of(cls, evidence: Evidence, row: int, rng: np.random.Generator) -> _Noise:
        """Draw the errors."""
        n_prompts, max_n = evidence.doubt[row].shape
        n_visited, freedom = evidence.n_visited, max(evidence.n_visited - 1, 1)
        wider = np.sqrt(freedom / rng.chisquare(freedom, size=(_DRAWS, 1, 1)))
        drawn = rng.normal(size=(_DRAWS, n_visited))
        queries = np.empty((_DRAWS, n_prompts, max_n))
        for prompts in groups(n_prompts, n_visited, max_n):
            influence = evidence.influence[row].block(prompts)
            influence -= influence.mean(axis=1, keepdims=True)
            queries[:, prompts] = np.moveaxis(drawn @ influence / np.sqrt(n_visited * freedom), 1, 0)
        return cls(queries=wider * queries, prompts=wider * rng.normal(size=(_DRAWS, n_prompts, 1)))

    def errors(
        self, evidence: Evidence, context: int, reward: FloatArray, error: FloatArray, bounds: Bounds
    ) -> FloatArray:
        """Return the errors in one context [draws, P, N].

        Where a prompt's queries all agree, their spread says nothing: an error like that of yes-or-no rewards is added.

        Args:
            evidence: The evidence.
            context: Which context.
            reward: Estimates [P, N].
            error: Their standard errors [P, N].
            bounds: The context's.
        """
        factor = evidence.factor[context]
        doubt = factor**2 * evidence.doubt[evidence.row[context]]
        least = bounds.variances(np.nan_to_num(reward), evidence.queries[:, :1])
        own = np.sqrt(doubt + np.maximum(least - (np.nan_to_num(error) ** 2 - doubt), 0.0))
        return np.asarray(factor * self.queries + self.prompts * own)


def deceptive_prompts(outcome: Outcome) -> tuple[Deceptive, ...] | None:
    """Return the prompts that a comparison of single completions would have chosen, where that would be a mistake.

    Task rewards are compared, on the queries that both prompts share, at the scale of the context's arm; None for
    algorithms whose estimates have no standard errors.
    """
    evidence = outcome.detail
    if evidence is None:
        return None
    reward = outcome.reward
    found = []
    for context, arm in enumerate(outcome.policy.arms):
        if arm.compound:  # a prompt that votes badly may still serve one of its stages
            continue
        single = np.where(np.isnan(outcome.q[context, :, 0]), -np.inf, reward[context, :, 0])
        first = int(single.argmax())
        if first == arm.prompt or arm.n == 1:
            continue
        difference = float(reward[context, arm.prompt, arm.n - 1] - reward[context, first, arm.n - 1])
        error = float(evidence.against(context, np.array([first]), np.array([arm.n]), arm.prompt, arm.n)[0])
        interval = _interval(difference, error)
        if interval[0] > 0:
            found.append(
                Deceptive(
                    context=context,
                    prompt=first,
                    beaten_by=arm.prompt,
                    n=arm.n,
                    difference=difference,
                    interval=interval,
                )
            )
    return tuple(found)


def _interval(value: float, error: float) -> tuple[float, float]:
    return value - Z95 * error, value + Z95 * error
