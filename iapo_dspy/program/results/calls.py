"""The expected calls of arms: how much of each resource they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.compound.expected_use import drawn_by, expected_use
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
        in_one = call if arm.compound else replace(call, waves=1.0)
        usd = float(expected_use(call, self.fixed, self.each)[RESOURCES.index("usd")])
        seconds = float(expected_use(in_one, self.fixed, self.each)[RESOURCES.index("seconds")])
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
            tokens=float(sum(self.tokens[prompt] * completions for prompt, completions, _ in drawn_by(call))),
            usd=usd if math.isfinite(usd) else None,
            seconds=seconds if math.isfinite(seconds) else None,
            cost=call.cost,
            abstains=call.abstains,
            of_prompts=call.by_prompt,
        )


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
