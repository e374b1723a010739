"""The expected calls of arms: how much of each resource they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.outcome import StoppedArm
from iapo_dspy.preferences import RESOURCES, Preference
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.program.results.rows import ArmEstimate, Interval
from iapo_dspy.types import Arm, FloatArray


@dataclass(frozen=True, kw_only=True)
class CallsOfPrompts:
    """The calls of the prompts of a run.

    Attributes:
        labels: The prompts in words [P].
        models: Model strings of their LMs [P].
        aggregator: Says when an answer is not sure enough.
        tokens: Output tokens of a completion [P].
        fixed: How much a request takes of each resource, whatever its N [R, P].
        each: How much a completion takes beside it [R, P].
    """

    labels: Sequence[str]
    models: Sequence[str | tuple[str, ...]]
    aggregator: Aggregator
    tokens: FloatArray
    fixed: FloatArray
    each: FloatArray

    @classmethod
    def of(
        cls,
        compiled: CompiledPolicy,
        labels: Sequence[str],
        models: Sequence[str | tuple[str, ...]],
        aggregator: Aggregator,
        tokens: FloatArray,
    ) -> CallsOfPrompts:
        """Return the calls of a policy's prompts, by its stored evidence."""
        fixed, each = compiled.charges(Preference()).parts()
        return cls(labels=labels, models=models, aggregator=aggregator, tokens=tokens, fixed=fixed, each=each)

    def of_resource(self, resource: str, max_n: int) -> FloatArray:
        """Return how much calls take that draw all N at once [P, N]; NaN where it is not known."""
        at = RESOURCES.index(resource)
        return np.asarray(self.fixed[at, :, None] + self.each[at, :, None] * np.arange(1, max_n + 1))

    def estimate(self, preference: Preference, call: StoppedArm, interval: Interval | None) -> ArmEstimate:
        """Describe an arm with its expected call; see `ArmEstimate`."""
        arm = call.arm
        drawn = drawn_by(call)
        usd = self._taken("usd", drawn)
        return ArmEstimate(
            preference=preference,
            arm=arm,
            words=arm_in_words(arm, self.aggregator),
            label=label_of(arm, self.labels),
            model=model_of(arm, self.models),
            utility=call.utility,
            reward=call.reward,
            interval=interval,
            completions=call.completions,
            tokens=float(sum(self.tokens[prompt] * completions for prompt, completions, _ in drawn)),
            usd=usd if math.isfinite(usd) else None,
            seconds=seconds if math.isfinite(seconds := self._seconds(call)) else None,
            cost=call.cost,
            abstains=call.abstains,
            of_prompts=call.by_prompt,
        )

    def _taken(self, resource: str, drawn: Sequence[tuple[int, float, float]]) -> float:
        """Return how much of a resource takes what is drawn: prompts with their completions and waves."""
        at = RESOURCES.index(resource)
        return float(sum(self.fixed[at, p] * waves + self.each[at, p] * n for p, n, waves in drawn))

    def _seconds(self, call: StoppedArm) -> float:
        """Return the seconds of a call. Prompts of one stage are drawn at the same time, stages one after the other."""
        if not call.arm.compound:
            return self._taken("seconds", [(call.arm.prompt, call.completions, 1.0)])
        left, total = {drawn[0]: drawn for drawn in call.by_prompt}, 0.0
        for stage in call.arm.stages:  # a prompt that comes back later has all of its completions at its first stage
            mine = [left.pop(share.prompt) for share in stage.shares if share.prompt in left]
            total += max((self._taken("seconds", [drawn]) for drawn in mine), default=0.0)
        return total


def drawn_by(call: StoppedArm) -> tuple[tuple[int, float, float], ...]:
    """Return each prompt that an arm may ask, with its expected completions and waves."""
    return call.by_prompt or ((call.arm.prompt, call.completions, call.waves),)


def priced(call: StoppedArm, fixed: FloatArray, each: FloatArray) -> StoppedArm:
    """Return an arm with its utility at other prices of waves and completions [P]."""
    price = sum(waves * fixed[prompt] + completions * each[prompt] for prompt, completions, waves in drawn_by(call))
    return replace(call, utility=float(call.reward - price))


def label_of(arm: Arm, labels: Sequence[str]) -> str:
    """Return the prompts of an arm in words, by those of all prompts [P]."""
    return "; ".join(labels[prompt] for prompt in arm.prompts)


def model_of(arm: Arm, models: Sequence[str | tuple[str, ...]]) -> str | tuple[str, ...]:
    """Return the model string of an arm's LM, or all that it may ask, by those of all prompts [P]."""
    if len(arm.prompts) == 1:
        return models[arm.prompt]
    asked = [(model,) if isinstance(model, str) else model for model in (models[p] for p in arm.prompts)]
    distinct = tuple(dict.fromkeys(model for some in asked for model in some))
    return distinct if len(distinct) > 1 else distinct[0]
