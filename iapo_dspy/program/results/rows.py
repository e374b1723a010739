"""The rows of results: the chosen arm of each preference, and the arms that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from iapo_dspy.bandit.comparison import BaselineName
from iapo_dspy.bandit.confirmation import ConfirmedGain
from iapo_dspy.bandit.inference import Certainty
from iapo_dspy.bandit.outcome import HeldOut
from iapo_dspy.bandit.wins import WinRate
from iapo_dspy.preferences import Preference
from iapo_dspy.types import Arm

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ArmEstimate:
    """An arm with its estimates under one preference. `CompiledProgram.with_arm` returns a program that draws it.

    Attributes:
        preference: The preference by which its utility is counted.
        arm: Its prompt and N, and its stop.
        label: The prompt in words.
        model: Model string of its LM; one for each predictor where they differ.
        utility: Estimated utility (eq. 3).
        reward: Estimated task reward without the cost.
        interval: The 95 % interval of the utility; None where there is none.
        completions: Expected completions of a call: N, or fewer where it stops early.
        tokens: Expected output tokens of a call.
        usd: Expected dollars of a call; None where they are not known.
        seconds: Expected seconds from sending a call to its last completion, all in one wave; None where they are not
            known.
        cost: Expected cost of a call in the run's unit (`CompileResult.cost`).
    """

    preference: Preference
    arm: Arm
    label: str
    model: str | tuple[str, ...]
    utility: float
    reward: float
    interval: Interval | None
    completions: float
    tokens: float
    usd: float | None
    seconds: float | None
    cost: float


@dataclass(frozen=True, kw_only=True)
class ComparedArm:
    """An arm that one would run without the search, beside the chosen one.

    Attributes:
        name: "student": the student as it was, at N = 1. "best prompt": the prompt whose single completions serve the
            preference best, at N = 1. "best prompt, N tuned": the same prompt with the N, and the stop, that serve it
            best.
        estimate: The arm with its estimates: those that arms are chosen by, as no draws measure it apart. Where it is
            the chosen arm itself, those of the chosen arm.
        difference: Utility of the chosen arm minus that of this one; 0 where they are the same arm.
        interval: The 95 % interval of the difference; None from `psst`, whose estimates have no standard errors, and
            from fewer than two questions.
    """

    name: BaselineName
    estimate: ArmEstimate
    difference: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class PreferenceResult:
    """The arm of one preference with its training estimates.

    Attributes:
        preference: The preference.
        arm: Its prompt and N.
        label: The prompt in words.
        model: Model string of its LM; one for each predictor where they differ.
        utility: Utility (eq. 3) as measured after the choice, by completions that had no part in it. Where the budget
            does not pay for that (`choice.measured` says so), and for `psst`, it is the estimate that the arm was
            chosen by; the best of many estimates is optimistic.
        reward: Task reward without the cost, likewise.
        completions: Expected completions of a call: N, or fewer where it stops early.
        waves: Expected waves of a call, >= 1.
        tokens: Output tokens per query: `completions` times the mean of the prompt's completions.
        cost: Estimated cost per query in the run's unit (`CompileResult.cost`).
        evidence: Number of observations behind the estimates: queries on which the prompt was drawn; for `psst`,
            groups of N completions.
        choice: How sure the choice is: the interval of the utility, the runner-up, the probability of being best. None
            for `psst`, whose estimates have no standard errors.
        held_out: The utility on the validation set; None without one.
        keeps_caps: Whether the arm keeps the preference's caps; where no arm does, calls raise `CapsTooTight`.
        usd: Expected dollars of a call; None where they are not known, and in programs that were saved before 1.0.
        seconds: Expected seconds of a call, all in one wave, likewise.
        baselines: The student as it was, the best single prompt, and that prompt with N tuned, as far as they are known
            and keep the preference's caps; none in programs that were saved before 1.0.
        gain: Where a prompt that the run wrote was the best one: its gain over the best prompt that was given, and how
            much of it is left on training questions that no writer has read. Where nothing is, `arm` has the given one.
        wins: How the arm fares against the opponents, by the objective that compares (`objectives.prefers`).
    """

    preference: Preference
    arm: Arm
    label: str
    utility: float
    reward: float
    completions: float
    waves: float
    tokens: float
    cost: float
    evidence: int
    model: str | tuple[str, ...]
    choice: Certainty | None = None
    held_out: HeldOut | None = None
    keeps_caps: bool = True
    gain: ConfirmedGain | None = None
    usd: float | None = None
    seconds: float | None = None
    baselines: tuple[ComparedArm, ...] = ()
    wins: Mapping[str, WinRate] = field(default_factory=dict)

    @property
    def estimate(self) -> ArmEstimate:
        """The arm with its estimates."""
        return ArmEstimate(
            preference=self.preference,
            arm=self.arm,
            label=self.label,
            model=self.model,
            utility=self.utility,
            reward=self.reward,
            interval=self.interval,
            completions=self.completions,
            tokens=self.tokens,
            usd=self.usd,
            seconds=self.seconds,
            cost=self.cost,
        )

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the utility; None where there is none."""
        if self.choice is not None:
            return known(self.choice.interval)
        return known(self.held_out.interval) if self.held_out is not None else None


def known(interval: Interval) -> Interval | None:
    """Return an interval, or None for one of NaN."""
    return None if math.isnan(interval[0]) else interval
