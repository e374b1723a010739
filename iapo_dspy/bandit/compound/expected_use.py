"""The expected use of a call of an arm."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.outcome import StoppedArm
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.types import FloatArray

_SECONDS = RESOURCES.index("seconds")


def drawn_by(call: StoppedArm) -> tuple[tuple[int, float, float], ...]:
    """Return each prompt that an arm may ask, with its expected completions and waves."""
    return call.by_prompt or ((call.arm.prompt, call.completions, call.waves),)


def expected_use(call: StoppedArm, fixed: FloatArray, each: FloatArray) -> FloatArray:
    """Return how much of each resource a call is expected to take [R]; NaN where it is not known.

    Waves come one after another, and the prompts of a mixture are drawn at the same time. A prompt that comes back in a
    later stage has all of its seconds at its first one.

    Args:
        call: The arm with its expected calls.
        fixed: How much a wave takes, whatever its size [R, P].
        each: How much a completion takes beside it [R, P].
    """
    use = {p: waves * fixed[:, p] + completions * each[:, p] for p, completions, waves in drawn_by(call)}
    total = np.sum(list(use.values()), axis=0)
    seconds = {prompt: float(used[_SECONDS]) for prompt, used in use.items()}
    stages = [[seconds.pop(share.prompt, 0.0) for share in stage.shares] for stage in call.arm.stages]
    total[_SECONDS] = sum(max(stage) if not np.isnan(stage).any() else np.nan for stage in stages)
    return np.asarray(total)


def priced(call: StoppedArm, fixed: FloatArray, each: FloatArray) -> float:
    """Return the utility of an arm at these prices of waves and completions [P]."""
    price = sum(waves * fixed[prompt] + completions * each[prompt] for prompt, completions, waves in drawn_by(call))
    return float(call.reward - price)
