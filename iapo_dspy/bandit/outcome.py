"""The outcome of a run of an algorithm, and the type of the run."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.estimators.port import Estimates, Estimator
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import Arm, FloatArray, IntArray, Interim, Observations, Policy, Pulls


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a run.

    Attributes:
        active: Arms that were alive when the round began [C, P, N].
        pulls: Pulls made.
        completions: Completions drawn.
    """

    active: NDArray[np.bool_]
    pulls: int
    completions: int

    @property
    def arms(self) -> IntArray:
        """How many arms were alive per context [C]."""
        return np.asarray(self.active.sum(axis=(1, 2)), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class StoppedArm:
    """A context's arm with its stopping rule, and its expected calls.

    Attributes:
        arm: Prompt, N and rule; without a rule all N are drawn at once.
        reward: Estimated task reward without the cost.
        gain: Reward added by stopping: mostly below 0, and 0 where the rule does not change an answer.
        completions: Expected completions of a call, <= N.
        waves: Expected waves of a call, >= 1.
        cost: Expected raw cost of a call: the overhead once per wave, and the completions.
        utility: Reward minus the priced cost.
        by_query: Expected reward on each visited query [V], of a compound arm; None of others, whose evidence has it.
        by_prompt: (prompt, expected completions, expected waves) of each prompt of a compound arm; none of others.
        abstains: Expected share of calls that end without an answer.
        answered_by: Of a compound arm, each of its prompts with a scale, and the expected share of calls on each
            visited query whose answer is of the prompt's completions [V]; none of others.
    """

    arm: Arm
    reward: float
    gain: float
    completions: float
    waves: float
    cost: float
    utility: float
    by_query: FloatArray | None = None
    by_prompt: tuple[tuple[int, float, float], ...] = ()
    abstains: float = 0.0
    answered_by: tuple[tuple[int, int, FloatArray], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Considered:
    """The best compound arm of one kind, beside the best arm of one prompt.

    Both are compared on queries that had no part in tuning the compound one (cross-fitting).

    Attributes:
        kind: "cascade" or "mixture".
        arm: The compound arm.
        beside: The arm of one prompt that it is compared with: in a cascade the best one for the context, in a mixture
            the best one that draws as many completions.
        gain: Utility of the compound arm minus that of the other one; in a mixture reward.
        standard_error: Its standard error.
        chosen: Whether the context's calls draw the compound arm.
    """

    kind: Literal["cascade", "mixture"]
    arm: Arm
    beside: Arm
    gain: float
    standard_error: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Utility of a chosen arm by completions that had no part in the choice.

    Attributes:
        utility: Unbiased, but for being kept within the bounds of the rewards.
        standard_error: Its standard error, for new queries like these; NaN with fewer than two queries.
        interval: The 95 % interval; NaN with fewer than two queries.
        queries: How many queries it rests on.
    """

    utility: float
    standard_error: float
    interval: tuple[float, float]
    queries: int


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How well the confidence of an arm's calls agreed with what was really drawn.

    Calls are those of the completions that were drawn on a query, and their confidence is learnt from other queries
    (cross-fitting).

    Attributes:
        confidence: Mean confidence of each bin of calls [B].
        right: Share of them whose answer was right [B].
        count: How many they are [B], >= 1.
    """

    confidence: tuple[float, ...]
    right: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence and share over the bins, weighted by count."""
        share = np.array(self.count) / sum(self.count)
        return float(share @ np.abs(np.array(self.confidence) - np.array(self.right)))

    @property
    def by_chance(self) -> float:
        """The error that so few calls are expected to have where every confidence is true."""
        p, count = np.array(self.confidence), np.array(self.count)
        return float((count / count.sum()) @ np.sqrt(2.0 / np.pi * p * (1.0 - p) / count))

    @property
    def in_words(self) -> str:
        """The error in words."""
        return (
            f"confidence is off by {self.error:.3f} on {sum(self.count)} real calls; by chance by {self.by_chance:.3f}"
        )


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A promised share of right answers, and the share that a context's arm is sure of.

    Attributes:
        share: The promise, in (0, 1).
        bound: Lower bound of the share of right answers among the calls that answer; NaN where nothing is known of how
            sure answers are.
    """

    share: float
    bound: float

    @property
    def kept(self) -> bool:
        """Whether the arm is sure to keep the promise."""
        return self.bound >= self.share

    @property
    def in_words(self) -> str:
        """Why the promise may not be kept, and what to do; for one that is kept, by how much."""
        asked = f"the promise of {self.share:g} of the answers right"
        if self.kept:
            return f"{asked} is kept: the lower bound is {self.bound:.3f}"
        if np.isnan(self.bound):
            return (
                f"{asked} cannot be kept: nothing is known of how sure answers are, so calls answer in any case. Use "
                'the algorithm "auto", and a vote or Best-of-N'
            )
        less = max(np.floor(self.bound * 100.0) / 100.0, 0.01)
        return (
            f"no arm is sure to keep {asked}: the best lower bound is {self.bound:.3f}. So calls abstain, and tell the "
            "answer that they withhold. More completions, more questions, a stronger prompt, or "
            f"min_confidence={less:.2f} would do"
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The findings of a run.

    Attributes:
        policy: The chosen arm of each context.
        q: Estimated utility [C, P, N]; NaN where there is no evidence, for prompts that never answered, and for
            arms that break a cap of the context.
        estimates: Rewards, raw costs and the number of blocks behind them, from which `q` follows.
        spent: Completions drawn.
        rounds: The rounds in order.
        observations: One entry per round of the choice; a round that could not pay for a pull has an empty one.
        cost_scale: Utility of one raw cost unit, as used in `q`.
        complete: False where the environment was exhausted before the algorithm was done.
        detail: Query-by-query evidence, from algorithms whose estimates have standard errors; else `None`.
        charges: Resources of calls, and which arms keep the contexts' caps; `None` from sequential baselines.
        measured: The arms of the policy by completions that had no part in the choice [C], from `measurement.measured`;
            None for an arm without one whole call, and altogether where nothing was measured.
        measuring: What was drawn to measure them; None where nothing was.
        stops: The arms of the policy with their expected calls [C], from `stops.with_stops`; else `None`.
        considered: The compound arms that each context was offered [C]; none where nothing but single prompts was
            looked at.
        reliability: How well the confidence of the contexts' calls agrees with real ones [C]; none where unknown.
        promises: The promised shares of right answers [C], None of contexts without; none where nobody promises any.
        prompts: Which of the problem's prompts the P axis stands for, in policy, estimates and observations alike;
            `None`: all of them. `coordinate` looks at some prompts of a set that is too large to look at.
    """

    policy: Policy
    q: FloatArray
    estimates: Estimates
    spent: int
    rounds: tuple[Round, ...]
    observations: tuple[Observations, ...]
    cost_scale: float
    complete: bool = True
    detail: Evidence | None = None
    charges: Charges | None = None
    stops: tuple[StoppedArm, ...] | None = None
    measured: tuple[HeldOut | None, ...] | None = None
    measuring: Observations | None = None
    considered: tuple[tuple[Considered, ...], ...] = ()
    reliability: tuple[Reliability | None, ...] = ()
    promises: tuple[Promise | None, ...] = ()
    prompts: IntArray | None = None

    @property
    def count(self) -> IntArray:
        """Blocks behind each estimate [P, N]."""
        return self.estimates.count

    @property
    def reward(self) -> FloatArray:
        """Estimated task reward without the cost [C, P, N]; NaN where there is no evidence."""
        return self.estimates.reward

    @property
    def evidence(self) -> IntArray:
        """Evidence behind each context's chosen arm [C]: blocks, or the queries that its prompts were drawn on."""
        predicted = self.estimates.standard_error is not None  # one query's draws serve every scale
        return np.array(
            [min(self.count[p, 0 if predicted else arm.n - 1] for p in arm.prompts) for arm in self.policy.arms],
            dtype=np.int64,
        )

    @property
    def interim(self) -> Interim:
        """The estimates of the run at the end of its last round."""
        found = interim(self.policy, self.q, self.estimates.standard_error, rounds_left=0)
        return found if self.prompts is None else renumbered(found, self.prompts)


def interim(policy: Policy, q: FloatArray, standard_error: FloatArray | None, *, rounds_left: int | None) -> Interim:
    """Return what is known of a policy.

    Args:
        policy: The chosen arms [C].
        q: Estimated utility [C, P, N].
        standard_error: Standard error of the rewards, as `q`; None from estimators that have none.
        rounds_left: Rounds that are still planned.
    """

    def of_arms(values: FloatArray | None) -> FloatArray:
        if values is None:
            return np.full(len(policy), np.nan)
        most = values.shape[2]
        at = ((c, arm.prompt, arm.n - 1) for c, arm in enumerate(policy.arms))
        return np.array([values[c, p, n] if n < most else np.nan for c, p, n in at])

    return Interim(policy=policy, utility=of_arms(q), standard_error=of_arms(standard_error), rounds_left=rounds_left)


def renumbered(found: Interim, numbers: IntArray) -> Interim:
    """Return what is known with other numbers of the prompts: `numbers[p]` for p."""
    arms = tuple(replace(arm, prompt=int(numbers[arm.prompt])) for arm in found.policy.arms)
    return replace(found, policy=Policy(arms))


@dataclass(frozen=True, kw_only=True)
class Wish:
    """More prompts are worth more than further draws of those at hand.

    Attributes:
        outcome: What is known so far; before the first draw, estimates are NaN.
        front: How often each prompt is the best one on a visited query, at the context's own N [C, P]; the weights by
            which parents are drawn. Zeros before the first draw.
        n: How many prompts are wanted, >= 1.
        generation: Number of the wish, 0-based.
        gain: Utility that a new prompt is expected to bring, mean over contexts; infinite before the first draw.
    """

    outcome: Outcome
    front: FloatArray
    n: int
    generation: int
    gain: float


Run = Generator[Pulls, Observations, Outcome]
"""Yields one batch of pulls a round, is sent its observations, and returns the outcome."""

SearchRun = Generator[Pulls | Wish, Observations | Problem, Outcome]
"""A run that also yields wishes for more prompts: it is sent the problem with these behind the others, or the
same problem if none came."""

EstimatorFactory = Callable[[Problem], Estimator]
"""Makes an empty estimator for a problem."""
