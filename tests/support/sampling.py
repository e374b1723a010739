"""Rollouts for tests that do not await."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.rollouts.rollout import Rollout
from iapo_dspy.sampling.rollouts.sampler import Sampler


def draw(
    sampler: Sampler, program: Any, inputs: Mapping[str, Any], m: int, *, key: Any, **settings: Any
) -> list[Rollout]:
    """Draw m rollouts and wait for them."""
    return run_on_loop(sampler.sample(program, inputs, m, key=key, **settings))
