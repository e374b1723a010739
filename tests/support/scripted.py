"""A sampler whose completions are known beforehand, for calls of arms of several prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.program.stages import Drawable
from iapo_dspy.sampling.rollouts.rollout import Rollout
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.types import Decoding

LATENCY = 0.25


class Numbered(dspy.Module):
    """The program of a prompt; it knows its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.ask = dspy.Predict("question -> answer")


def drawables(prompts: Sequence[int]) -> dict[int, Drawable]:
    """Return prompts that a scripted sampler draws."""
    return {
        p: Drawable(prompt=p, label=f"prompt {p}", program=Numbered(p), decoding=Decoding(), adapter=None)
        for p in prompts
    }


class Scripted:
    """Gives a prompt's predictions in their order, whatever the request, and keeps the requests.

    Args:
        predictions: Prompt -> its predictions in the order of drawing; None fails.
    """

    def __init__(self, predictions: Mapping[int, Sequence[dspy.Prediction | None]]) -> None:
        self.predictions = predictions
        self.requests: list[tuple[int, int, Any]] = []  # prompt, completions, key

    async def sample(self, program: Numbered, inputs: Any, m: int, *, key: Any, **_: Any) -> list[Rollout]:
        before = sum(n for prompt, n, _ in self.requests if prompt == program.number)
        self.requests.append((program.number, m, key))
        found = self.predictions[program.number][before : before + m]
        assert len(found) == m
        usage = Usage(prompt_tokens=1.0, completion_tokens=1.0, latency_s=LATENCY)
        return [Rollout(prediction=p, failure=None if p is not None else "failed", usage=usage) for p in found]
