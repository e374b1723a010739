"""What an arm gains, draws and waits for under each stopping rule, estimated from the draws of training.

For an option o = (n, stop) let f_x be what the model of the predictions says on query x given all draws, g_x the same
given all but the cell's own, and u_x the mean over random orders of the cell's own draws, where it has at least n of
them: unbiased, whatever the model. Three things are estimated in this way, the *gain* (reward at the stop minus that of
all n completions; mostly below 0), the completions and the waves:

    estimate = mean of f + trust * delta,
    delta = mean of (u - g) over the queries with n draws + mean of (g - f) over all,

with trust = tau^2 / (tau^2 + variance of delta) as in `corrected`: deltas that are more than noise are believed, and a
floor of tau makes the unbiased part take over as draws grow. Losses are rare events, which a few queries can miss
altogether, so the variance has a part that falls with the number of queries only. A prompt with few such queries takes
the model's word.

The gain is small because a stopped call and the call of all n completions are compared on the same completions, so it
is known far better than either reward; it is added to the arm's own corrected estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.fitted import VoteModel
from iapo_dspy.bandit.estimators.predictive import TOP_SHARES, expected, share_weights
from iapo_dspy.bandit.estimators.traits import THETA, Traits
from iapo_dspy.bandit.stopping.replays import Ended, VoteTally, vote_ends
from iapo_dspy.bandit.stopping.vote_stops import vote_tables
from iapo_dspy.types import FloatArray, IntArray, Stop

__all__ = ["StopEstimates", "corrected_stops", "estimated_votes", "observed_votes", "of_prompts", "replayed"]

ORDERS = 8  # random orders of each cell's draws
LEAST_BIAS = (0.0015, 0.02, 0.02)  # floors of tau: of the rewards' range, of n, of the waves
_LEAST_QUERIES = 30  # with fewer an option has no evidence of its own: early stops that cost something are rare
_RARE = 0.1  # of the range: a query that loses so much may be missing however many queries agree
_CLEARLY = 3.0  # times its variance: a squared residual that is more than noise
_CHUNK = 128  # queries worked on at once


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


Model = Callable[[IntArray], FloatArray]
"""Positions of visited queries [V'] -> what the model says of gain, completions and waves [2, 3, Q, V', M]: given all
draws, and given all but the cell's own."""

Replay = Callable[[IntArray, tuple[Stop, ...]], Ended]
"""(positions of completions in their order of drawing [S, n], options [M]) -> how the calls ended."""


def estimated_votes(model: VoteModel, prompts: IntArray, max_n: int) -> StopEstimates:
    """Estimate every rule of `vote_tables` for some prompts, for a first weight of 1.

    Args:
        model: What the predictions of the run are made of.
        prompts: The prompts [Q], ascending.
        max_n: Largest scale.
    """
    traits, cells = of_prompts(model.traits, model.cells, prompts)
    tables = vote_tables(max_n, tuple(THETA.tolist()), tuple(TOP_SHARES.tolist()))
    shape = len(TOP_SHARES), len(THETA), 3 * len(tables.stops)
    table = np.concatenate([tables.gain, tables.completions, tables.waves], axis=1).reshape(shape)
    weights = share_weights(model.top_share[prompts])
    span = model.worth - model.rest

    def says(queries: IntArray) -> FloatArray:
        out = np.zeros((2, len(prompts), len(queries), shape[2]))
        for j, weight in enumerate(weights):
            mine = weight[:, queries]
            where = np.flatnonzero(mine.any(axis=0))
            if len(where):
                out[:, :, where] += mine[:, where, None] * expected(traits, 0, cells, table[j], queries[where])
        parts = out.reshape(2, len(prompts), len(queries), 3, -1).transpose(0, 3, 1, 2, 4)
        parts[:, 0] *= span[queries, None]
        return np.asarray(parts)

    observed = observed_votes(cells, tables.stops)
    return corrected_stops(says, observed, cells, prompts, tables.stops, float(np.abs(span).max()))


def of_prompts(traits: Traits, cells: Cells, prompts: IntArray) -> tuple[Traits, Cells]:
    """Return the model and the cells of some prompts [Q], ascending, which are 0 .. Q - 1 there."""
    kept = np.isin(cells.prompt, prompts)
    fewer = cells.only(kept)
    fewer = replace(fewer, n_prompts=len(prompts), prompt=np.searchsorted(prompts, fewer.prompt))
    law, evidence = traits.law[:, prompts], traits.evidence[:, prompts]
    return replace(traits, law=law, evidence=evidence, kind=traits.kind[:, kept]), fewer


def observed_votes(cells: Cells, stops: tuple[Stop, ...]) -> FloatArray:
    """Replay votes on random orders of each cell's own draws.

    Returns:
        Gain, completions and waves [3, G, M]; NaN where a cell has fewer completions than the option's N.
    """

    def replay(index: IntArray, options: tuple[Stop, ...]) -> Ended:
        label = np.where(cells.failed, -1, cells.label)[index]
        dense, credit = _answers(label, cells.score[index, 0])
        return vote_ends(VoteTally(dense, credit.shape[1]), credit, options)

    return replayed(cells, stops, replay)


def replayed(
    cells: Cells, stops: tuple[Stop, ...], replay: Callable[[IntArray, tuple[Stop, ...]], Ended]
) -> FloatArray:
    """Replay stopped calls on random orders of each cell's own draws.

    Args:
        cells: The completions.
        stops: The options [M].
        replay: Replays calls.

    Returns:
        Gain, completions and waves [3, G, M]; NaN where a cell has fewer completions than the option's N.
    """
    scale = np.array([stop.waves[-1] for stop in stops], dtype=np.int64)
    out = np.full((3, len(cells), len(stops)), np.nan)
    rng = np.random.default_rng(0)  # the same draws have the same orders
    for m in np.unique(cells.size).tolist():
        able = np.flatnonzero(scale <= m)
        if not len(able):
            continue
        members = np.flatnonzero(cells.size == m)
        order = rng.random((len(members), ORDERS, m)).argsort(axis=2)[:, :, : int(scale[able].max())]
        index = (cells.start[members, None, None] + order).reshape(len(members) * ORDERS, -1)
        ended = replay(index, tuple(stops[o] for o in able.tolist()))
        for i, part in enumerate((ended.gain, ended.completions, ended.waves)):
            out[i, members[:, None], able] = part.reshape(len(members), ORDERS, -1).mean(axis=1)
    return out


def _answers(label: IntArray, score: FloatArray) -> tuple[IntArray, FloatArray]:
    """Number each row's answers from 0 [S, n] and return each one's mean score in the row [S, A]."""
    ascending = np.sort(label, axis=1)
    new = np.diff(ascending, axis=1, prepend=-1) > 0  # -1, no vote, is no answer
    rank = np.where(ascending >= 0, np.cumsum(new, axis=1) - 1, -1)
    dense = np.empty_like(label)
    np.put_along_axis(dense, np.argsort(label, axis=1, kind="stable"), rank, axis=1)
    n_answers = max(int(dense.max(initial=0)) + 1, 1)
    row, at = np.nonzero(dense >= 0)
    flat = row * n_answers + dense[row, at]
    count = np.bincount(flat, minlength=len(label) * n_answers)
    total = np.bincount(flat, weights=score[row, at], minlength=len(count))
    return dense, (total / np.maximum(count, 1)).reshape(len(label), n_answers)


def corrected_stops(
    says: Model, observed: FloatArray, cells: Cells, prompts: IntArray, stops: tuple[Stop, ...], spread: float
) -> StopEstimates:
    """Correct what the model says by what was observed.

    Args:
        says: The model.
        observed: Gain, completions and waves of each cell [3, G, M]; NaN where there is no evidence.
        cells: The cells of these prompts, numbered from 0.
        prompts: The prompts [Q].
        stops: The options [M].
        spread: Range of the rewards.
    """
    n_visited, shape = cells.n_visited, (3, len(prompts), len(stops))
    drawn = np.zeros(shape[1:])
    known = ~np.isnan(observed[0])
    np.add.at(drawn, cells.prompt, known)
    count = np.maximum(drawn, 1)
    mean, shift, shift_square, miss, miss_square, both, shift_drawn = np.zeros((7, *shape))
    for begin in range(0, n_visited, _CHUNK):
        given_all, given_others = says(np.arange(begin, min(begin + _CHUNK, n_visited)))
        mine = np.flatnonzero((cells.query >= begin) & (cells.query < begin + _CHUNK))
        at = cells.prompt[mine], cells.query[mine] - begin
        h = given_others - given_all
        d = np.where(known[mine], observed[:, mine] - given_others[:, at[0], at[1]], 0.0)
        own = np.where(known[mine], h[:, at[0], at[1]], 0.0)
        mean += given_all.sum(axis=2)
        shift += h.sum(axis=2)
        shift_square += (h**2).sum(axis=2)
        for sums, part in ((miss, d), (miss_square, d**2), (both, d * own), (shift_drawn, own)):
            for i in range(len(sums)):
                np.add.at(sums[i], at[0], part[i])
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
    """Return tau^2 [3, 1, M]: what residuals have beyond the noise, over the prompts, plus the floor's.

    There are few prompts, so residuals count as more than noise only where they clearly are.
    """
    weight = known / (noise + floor**2) ** 2
    beyond = (weight * (delta**2 - _CLEARLY * noise)).sum(axis=1, keepdims=True)
    beyond /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    return np.asarray(np.maximum(beyond, 0.0) + floor**2)
