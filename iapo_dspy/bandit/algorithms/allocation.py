"""Structure-aware allocation (eq. 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.types import IntArray

__all__ = ["allocate", "largest_scales"]


def largest_scales(active: NDArray[np.bool_]) -> IntArray:
    """Return N_p,max [P]: the largest scale of each prompt that is alive in some context, 0 where none is.

    Args:
        active: Which arms are alive [C, P, N].
    """
    alive = active.any(axis=0)
    largest: IntArray = np.where(alive, np.arange(1, alive.shape[1] + 1), 0).max(axis=1)
    return largest


def allocate(scales: IntArray, budget: int) -> int:
    """Return lambda of eq. 6: how often each surviving prompt is pulled at its largest scale, floor(n_r / M).

    Args:
        scales: N_p,max [P], from `largest_scales`; M is their sum.
        budget: n_r, the completions of this round.
    """
    return budget // int(scales.sum())
