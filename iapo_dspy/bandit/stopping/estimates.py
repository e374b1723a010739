"""Gain, completions and waves of an arm under each stopping rule, estimated from the draws of training.

For an option o = (n, stop) let f_x be the expectation of the model on query x given all draws, g_x the same
given all but the cell's own, and u_x the mean over random orders of the cell's own draws, where it has at least n of
them: unbiased, whatever the model. Three things are estimated in this way, the *gain* (reward at the stop minus that of
all n completions; mostly below 0), the completions and the waves:

    estimate = mean of f + trust * delta,
    delta = mean of (u - g) over the queries with n draws + mean of (g - f) over all,

with trust = tau^2 / (tau^2 + variance of delta) as in `corrected`: deltas that are more than noise are believed, and a
floor of tau makes the unbiased part take over as draws grow. Losses are rare events, which a few queries can miss
altogether, so the variance has a part that falls with the number of queries only. For a prompt with few such queries
the model decides.

The gain is small because a stopped call and the call of all n completions are compared on the same completions, so it
is known far better than either reward; it is added to the arm's own corrected estimate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.types import FloatArray, IntArray, Stop

LEAST_BIAS = (0.0015, 0.02, 0.02)  # floors of tau: of the rewards' range, of n, of the waves
_LEAST_QUERIES = 30  # with fewer an option has no evidence of its own: early stops that cost something are rare
_RARE = 0.1  # of the range: a query that loses so much may be missing however many queries agree
_CLEARLY = 3.0  # times its variance: a squared residual that is more than noise


@dataclass(frozen=True, kw_only=True, eq=False)
class StopEstimates:
    """Estimates of every stopping rule of some prompts under one row of objective weights; M options, Q prompts.

    Attributes:
        prompts: The prompts [Q].
        stops: The options [M]; the last wave of each is its N.
        gain: Reward at the stop minus that of all N completions [Q, M].
        completions: Expected completions [Q, M].
        waves: Expected waves [Q, M].
    """

    prompts: IntArray
    stops: tuple[Stop, ...]
    gain: FloatArray
    completions: FloatArray
    waves: FloatArray


class CellReadings(NamedTuple):
    """Expected gain, completions and waves in some drawn cells [3, m, M], by the model.

    Attributes:
        cells: Which cells [m].
        given_all: From all draws.
        given_others: From all but the cell's own.
        undrawn: As of a cell without draws on the same query.
    """

    cells: IntArray
    given_all: FloatArray
    given_others: FloatArray
    undrawn: FloatArray


def corrected_stops(
    total: FloatArray,
    says: Iterable[CellReadings],
    observed: FloatArray,
    cells: Cells,
    prompts: IntArray,
    stops: tuple[Stop, ...],
    spread: float,
) -> StopEstimates:
    """Correct the model by observation.

    Args:
        total: The model's sum over all visited queries, as if no cell had draws of its own [3, Q, M].
        says: The model in the drawn cells, each of them once, prompt after prompt within each part.
        observed: Gain, completions and waves of each cell [3, G, M]; NaN where there is no evidence.
        cells: The cells of these prompts, numbered from 0.
        prompts: The prompts [Q].
        stops: The options [M].
        spread: Range of the rewards.
    """
    n_visited, shape = cells.n_visited, (3, len(prompts), len(stops))
    drawn = np.zeros(shape[1:])
    mean = total.copy()
    shift, shift_square, miss, miss_square, both, shift_drawn = np.zeros((6, *shape))
    for part in says:
        known = ~np.isnan(observed[0, part.cells])
        h = part.given_others - part.given_all  # 0 in all other cells
        d = np.where(known, observed[:, part.cells] - part.given_others, 0.0)
        own = np.where(known, h, 0.0)
        present, begin = np.unique(cells.prompt[part.cells], return_index=True)
        drawn[present] += np.add.reduceat(known, begin, axis=0, dtype=np.int64)
        terms = (part.given_all - part.undrawn, h, h**2, d, d**2, d * own, own)
        sums = (mean, shift, shift_square, miss, miss_square, both, shift_drawn)
        for sum_, term in zip(sums, terms, strict=True):
            sum_[:, present] += np.add.reduceat(term, begin, axis=1)
    count = np.maximum(drawn, 1)
    mean, shift, miss = mean / n_visited, shift / n_visited, miss / count
    # The variance of the two means together: of d around its mean over the k draws, and of h over all V.
    around = np.maximum(miss_square - count * miss**2, 0.0) / count**2
    spread_h = np.maximum(shift_square / n_visited - shift**2, 0.0) / n_visited
    noise = np.maximum(around + spread_h + 2.0 * (both - miss * shift_drawn) / (count * n_visited), 0.0)
    unit = np.array([[spread or 1.0] * len(stops), [s.waves[-1] for s in stops], [len(s.waves) for s in stops]])
    noise += (_RARE * unit[:, None] / count) ** 2
    enough = drawn >= _LEAST_QUERIES
    delta = miss + shift
    tau2 = _beyond(delta, noise, enough, (np.array(LEAST_BIAS)[:, None] * unit)[:, None])
    gain, completions, waves = mean + np.where(enough, tau2 / (tau2 + noise), 0.0) * delta
    return StopEstimates(prompts=prompts, stops=stops, gain=gain, completions=completions, waves=waves)


def _beyond(delta: FloatArray, noise: FloatArray, known: NDArray[np.bool_], floor: FloatArray) -> FloatArray:
    """Return tau^2 [3, 1, M]: the variance of residuals beyond the noise, over the prompts, plus the floor's.

    There are few prompts, so residuals count as more than noise only where they clearly are.
    """
    weight = known / (noise + floor**2) ** 2
    beyond = (weight * (delta**2 - _CLEARLY * noise)).sum(axis=1, keepdims=True)
    beyond /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    return np.asarray(np.maximum(beyond, 0.0) + floor**2)
