"""The most that a whole call of an arm may take, and whether that keeps the caps of a context.

A call of a cascade takes most where it goes through all stages. The completions of a mixture are drawn at the same
time, so their seconds do not add up; everything else does.
"""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.types import Arm, FloatArray

_SECONDS = RESOURCES.index("seconds")


def most_used(charges: Charges, arm: Arm) -> FloatArray:
    """Return an upper bound of what one call of an arm takes, by its worst path [R]; NaN where it is not known."""
    upper, (request, _) = charges.upper(), charges.upper_parts()
    request = np.nan_to_num(request)  # `upper` has the NaN of what is not known; seconds have no part of a request
    total = np.zeros(len(RESOURCES))
    for stage in arm.stages:
        waves = len(stage.stop.waves) if stage.stop is not None else 1
        used = np.stack(
            [upper[:, s.prompt, s.n - 1] + (waves - 1) * request[:, s.prompt] for s in stage.shares], axis=1
        )
        amount = used.sum(axis=1)
        amount[_SECONDS] = waves * used[_SECONDS].max()  # every wave takes its time; shares take theirs together
        total += amount
    return total


def keeps_caps(charges: Charges, context: int, arm: Arm) -> bool:
    """Tell whether every call of an arm keeps the caps of a context, as far as upper bounds tell.

    Args:
        charges: What calls take.
        context: Position of the context whose caps they are.
        arm: The arm; its stages draw at most N of each prompt.
    """
    if not arm.compound:  # by the same numbers that chose it
        waves = len(arm.stop.waves) if arm.stop is not None else 1
        return bool(charges.most_waves()[context, arm.prompt, arm.n - 1] >= waves)
    caps = charges.caps[context]
    capped = np.isfinite(caps)
    if not capped.any():
        return True
    usable = charges.usable[list(arm.prompts)].all()  # a cheap failure is not an answer
    return bool(usable and (most_used(charges, arm)[capped] <= caps[capped]).all())
