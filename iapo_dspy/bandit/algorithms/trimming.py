"""Trimming of arms (Algorithm 1, lines 18 to 22), for all contexts at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.types import Arm, FloatArray, IntArray, Policy

BoolArray = NDArray[np.bool_]


def trim(q: FloatArray, cost: FloatArray | None, active: BoolArray) -> BoolArray:
    """Keep the best ceil(n / 2) of each context's n arms.

    The paper removes ceil(n / 2), which would delete the last arm; keeping ceil(n / 2) reaches one arm after
    ceil(log2 |A|) rounds.

    Args:
        q: Estimated utility [C, P, N], NaN where there is no evidence.
        cost: Expected raw cost of an arm [P, N], NaN where there is no evidence; `None` leaves ties in the arms' order.
        active: Which arms are alive [C, P, N].

    Returns:
        Which arms stay alive [C, P, N].
    """
    alive = active.sum(axis=(1, 2), dtype=np.int64)
    return keep_best(q, cost, active, (alive + 1) // 2)


def keep_best(q: FloatArray, cost: FloatArray | None, active: BoolArray, keep: IntArray) -> BoolArray:
    """Keep the best `keep[c]` arms of each context; arguments as in `trim`.

    Ties go to the cheaper arm, then to the smaller scale, then to the lower prompt index. Arms without evidence rank
    after all others.
    """
    order = _ranking(q, cost, active)
    kept = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(kept, order, np.arange(order.shape[1]) < keep[:, None], axis=1)
    return kept.reshape(active.shape) & active


def best_arms(q: FloatArray, cost: FloatArray | None, active: BoolArray) -> Policy:
    """Return the best arm of each context, ranked as in `keep_best`; every context needs a living arm."""
    first = _ranking(q, cost, active)[:, 0].tolist()
    max_n = active.shape[2]
    return Policy(tuple(Arm(a // max_n, a % max_n + 1) for a in first))


def _ranking(q: FloatArray, cost: FloatArray | None, active: BoolArray) -> IntArray:
    """Order the arms of each context from best to worst, dead ones last [C, P * N]."""
    n_contexts, _, max_n = active.shape
    arms = active[0].size
    dead = ~active.reshape(n_contexts, arms)
    loss = np.where(np.isnan(q), np.inf, -q).reshape(n_contexts, arms)
    tie = np.arange(arms)
    if cost is not None:
        price = np.where(np.isnan(cost), np.inf, cost).reshape(arms)
        # The order of ties is the same in every context, so one rank stands for it in the sort per context.
        tie[np.lexsort((tie % max_n, price))] = np.arange(arms)
    return np.lexsort((np.broadcast_to(tie, loss.shape), loss, dead), axis=1)
