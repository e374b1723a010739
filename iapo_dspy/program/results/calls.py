"""The expected calls of arms: how much of each resource they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.outcome import StoppedArm
from iapo_dspy.preferences import RESOURCES, Preference
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.program.results.rows import ArmEstimate, Interval
from iapo_dspy.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class CallsOfPrompts:
    """The calls of the prompts of a run.

    Attributes:
        labels: The prompts in words [P].
        models: Model strings of their LMs [P].
        tokens: Output tokens of a completion [P].
        fixed: How much a request takes of each resource, whatever its N [R, P].
        each: How much a completion takes beside it [R, P].
    """

    labels: Sequence[str]
    models: Sequence[str | tuple[str, ...]]
    tokens: FloatArray
    fixed: FloatArray
    each: FloatArray

    @classmethod
    def of(
        cls,
        compiled: CompiledPolicy,
        labels: Sequence[str],
        models: Sequence[str | tuple[str, ...]],
        tokens: FloatArray,
    ) -> CallsOfPrompts:
        """Return the calls of a policy's prompts, by its stored evidence."""
        fixed, each = compiled.charges(Preference()).parts()
        return cls(labels=labels, models=models, tokens=tokens, fixed=fixed, each=each)

    def of_resource(self, resource: str, max_n: int) -> FloatArray:
        """Return how much calls take that draw all N at once [P, N]; NaN where it is not known."""
        at = RESOURCES.index(resource)
        return np.asarray(self.fixed[at, :, None] + self.each[at, :, None] * np.arange(1, max_n + 1))

    def estimate(self, preference: Preference, call: StoppedArm, interval: Interval | None) -> ArmEstimate:
        """Describe an arm with its expected call; seconds are those of a call in one wave."""
        prompt = call.arm.prompt
        usd, seconds = (
            float(self.fixed[at, prompt] * waves + self.each[at, prompt] * call.completions)
            for at, waves in ((RESOURCES.index("usd"), call.waves), (RESOURCES.index("seconds"), 1.0))
        )
        return ArmEstimate(
            preference=preference,
            arm=call.arm,
            label=self.labels[prompt],
            model=self.models[prompt],
            utility=call.utility,
            reward=call.reward,
            interval=interval,
            completions=call.completions,
            tokens=float(self.tokens[prompt]) * call.completions,
            usd=usd if math.isfinite(usd) else None,
            seconds=seconds if math.isfinite(seconds) else None,
            cost=call.cost,
        )
