"""The rows of results: the chosen arm of each preference, and the arms that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from iapo_dspy.bandit.comparison import BaselineName
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.confirmation import ConfirmedGain
from iapo_dspy.bandit.inference import Certainty
from iapo_dspy.bandit.outcome import Considered, HeldOut, Reliability
from iapo_dspy.bandit.wins import WinRate
from iapo_dspy.preferences import Preference
from iapo_dspy.types import Arm

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ArmEstimate:
    """An arm with its estimates under one preference. `CompiledProgram.with_arm` returns a program that draws it.

    Attributes:
        preference: The preference by which its utility is counted.
        arm: Its prompt and N, and its stop; or several prompts.
        words: The arm in words, with the numbers of its prompts.
        label: The prompt in words; those of a compound arm one after the other.
        model: Model string of its LM; one for each predictor where they differ, and all that a compound arm may ask.
        utility: Estimated utility (eq. 3).
        reward: Estimated task reward without the cost.
        interval: The 95 % interval of the utility; None where there is none.
        completions: Expected completions of a call: N, or fewer where it stops early.
        tokens: Expected output tokens of a call.
        usd: Expected dollars of a call; None where they are not known.
        seconds: Expected seconds from sending a call to its last completion, all in one wave; of a compound arm, its
            waves one after the other. None where they are not known.
        cost: Expected cost of a call in the run's unit (`CompileResult.cost`).
        abstains: Expected share of calls that end without an answer.
        of_prompts: Of a compound arm, each of its prompts with the completions and the waves that a call is expected
            to draw of it; none of others.
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
    words: str = ""
    abstains: float = 0.0
    of_prompts: tuple[tuple[int, float, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.words:  # saved by an older version, whose arms are of one prompt
            object.__setattr__(self, "words", arm_in_words(self.arm))


@dataclass(frozen=True, kw_only=True)
class ComparedArm:
    """An arm that one would run without the search, beside the chosen one.

    Attributes:
        name: "student": the student as it was, at N = 1. "best prompt": the prompt whose single completions serve the
            preference best, at N = 1. "best prompt, N tuned": the same prompt with the N, and the stop, that serve it
            best. "best single arm", beside a compound arm only: the arm of one prompt that serves it best.
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
        arm: Its prompt and N, or several prompts.
        words: The arm in words, with the numbers of its prompts.
        label: The prompt in words; those of a compound arm one after the other.
        model: Model string of its LM; one for each predictor where they differ, and all that a compound arm may ask.
        utility: Utility (eq. 3) as measured after the choice, by completions that had no part in it. Where the budget
            does not pay for that (`choice.measured` says so), and for `psst`, it is the estimate that the arm was
            chosen by; the best of many estimates is optimistic.
        reward: Task reward without the cost, likewise.
        completions: Expected completions of a call: N, or fewer where it stops early.
        waves: Expected waves of a call, >= 1.
        tokens: Output tokens per query: `completions` times the mean of the prompt's completions, prompt by prompt.
        cost: Estimated cost per query in the run's unit (`CompileResult.cost`).
        evidence: Number of observations behind the estimates: queries on which each of its prompts was drawn; for
            `psst`, groups of N completions.
        choice: How sure the choice is: the interval of the utility, the runner-up, the probability of being best. None
            for `psst`, whose estimates have no standard errors.
        held_out: The utility on the validation set; None without one.
        keeps_caps: Whether the arm keeps the preference's caps; where no arm does, calls raise `CapsTooTight`.
        usd: Expected dollars of a call; None where they are not known, and in programs that were saved before 1.0.
        seconds: Expected seconds of a call, as those of `ArmEstimate`, likewise.
        abstains: Expected share of calls that end without an answer.
        of_prompts: As that of `ArmEstimate`.
        baselines: The student as it was, the best single prompt, and that prompt with N tuned, as far as they are known
            and keep the preference's caps; beside a compound arm also the best arm of one prompt. None in programs that
            were saved before 1.0.
        considered: The best cascade and the best mixture that the preference was offered, with what each would gain;
            none where nothing but single prompts was looked at.
        reliability: How well the confidence of its calls agrees with really drawn ones, by cross-fitting: the
            reliability curve and the expected calibration error. None where too few were drawn, and for algorithms
            without a model of completions.
        gain: Where a prompt that the run wrote was the best one: its gain over the best prompt that was given, and how
            much of it is left on training questions that no writer has read. Where nothing is, `arm` has the given one.
        wins: How the arm fares against the opponents, by the objective that compares (`objectives.prefers`).
    """

    preference: Preference
    arm: Arm
    words: str
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
    abstains: float = 0.0
    of_prompts: tuple[tuple[int, float, float], ...] = ()
    baselines: tuple[ComparedArm, ...] = ()
    wins: Mapping[str, WinRate] = field(default_factory=dict)
    considered: tuple[Considered, ...] = ()
    reliability: Reliability | None = None

    @property
    def estimate(self) -> ArmEstimate:
        """The arm with its estimates."""
        return ArmEstimate(
            preference=self.preference,
            arm=self.arm,
            words=self.words,
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
            abstains=self.abstains,
            of_prompts=self.of_prompts,
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
