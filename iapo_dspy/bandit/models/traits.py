"""A latent-trait model of success probabilities: one cell's draws inform the estimates of all others.

For a yes-or-no event of a completion (right or wrong; score above a threshold) with probability theta in the cell of
prompt p and query x,

    logit theta_px = b_p + a_p d_x + s_p e_px,     d_x from a distribution learnt on a grid, e_px ~ N(0, 1).

d_x is the query's difficulty, shared by all prompts; b_p, a_p and s_p say how good a prompt is, how much it depends on
difficulty that prompts share, and how much it differs from them. a_p = 0 with a large s_p is a prompt that shares
nothing; a large a_p makes the U-shaped cells of real language models. Difficulty and logit live on grids, so every
posterior is a sum; the parameters are fitted by expectation maximisation (an item-response model with an interaction
term, Bock and Aitkin 1981), each M-step a weighted linear regression of the logit on the difficulty, shrunk to the mean
of all prompts.

Cells with equal counts under one prompt have equal likelihoods, so likelihoods are computed per distinct (count, draws)
and not per cell: the work grows with the number of cells only where it must.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.types import FloatArray, IntArray

LOGITS = np.linspace(-6.0, 6.0, 25)
THETA = 1.0 / (1.0 + np.exp(-LOGITS))
_DIFFICULTY = np.linspace(-2.6, 2.6, 13)
_NORMAL = np.exp(-(_DIFFICULTY**2) / 2) / np.exp(-(_DIFFICULTY**2) / 2).sum()
_PSEUDO_QUERIES = 5.0  # weight of the normal law in the learnt distribution of difficulties
_PSEUDO_CELLS = 6.0  # weight of the pooled interaction in each prompt's own
_TYPICAL_INTERACTION = 0.8**2
_LARGEST_SLOPE = 8.0
_FIRST_STEPS, _STEPS = 15, 6


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The model after a fit; B events.

    Attributes:
        law: P(theta-grid point | prompt, difficulty) [B, P, D, T].
        kind: Which distinct (count, draws) each cell has [B, G].
        likelihood: Likelihood of each distinct (count, draws) on the theta grid [U, T].
        evidence: Likelihood of each distinct (count, draws) given prompt and difficulty [B, P, D, U].
        query: Log of each difficulty's posterior, not normalised [B, V, D].
    """

    law: FloatArray
    kind: IntArray
    likelihood: FloatArray
    evidence: FloatArray
    query: FloatArray


class TraitModel:
    """Fits the latent-trait model to counts; a later fit starts where the last one ended.

    Args:
        n_events: B.
        n_prompts: P.
    """

    def __init__(self, n_events: int, n_prompts: int) -> None:
        shape = n_events, n_prompts
        self.level = np.zeros(shape)  # b
        self.slope = np.full(shape, 1.5)  # a
        self.variance = np.ones(shape)  # s^2
        self.weights = np.tile(_NORMAL, (n_events, 1))
        self._fitted = False

    def fit(self, prompt: IntArray, query: IntArray, n_queries: int, count: IntArray, size: IntArray) -> Traits:
        """Fit to all cells.

        Args:
            prompt: Prompt of each cell [G].
            query: Query of each cell [G], ascending; each of 0 .. V - 1 occurs.
            n_queries: V.
            count: Events of each cell [B, G].
            size: Completions of each cell [G], >= 1.
        """
        n_events, n_prompts = self.level.shape
        base = int(size.max()) + 1
        kinds, kind = np.unique(size * base + count, return_inverse=True)
        kind = kind.reshape(count.shape)
        draws, events = np.divmod(kinds, base)
        likelihood = _likelihood(events, draws)
        begin = np.flatnonzero(np.concatenate([[True], query[1:] != query[:-1]]))
        present = np.zeros(n_prompts, dtype=bool)
        present[prompt] = True
        # Where a cell's row lies in an array [B, P, U].
        slot = (np.arange(n_events)[:, None] * n_prompts + prompt) * len(kinds) + kind
        for _ in range(_STEPS if self._fitted else _FIRST_STEPS):
            law, evidence = self._evidence(likelihood)
            own = _rows(evidence, slot)
            posterior = _normalise(np.log(self.weights)[:, None] + np.add.reduceat(np.log(own), begin, axis=1))
            share = posterior[:, query] / own  # [B, G, D]
            summed = np.empty((*law.shape[:3], len(kinds)))
            for d in range(law.shape[2]):
                flat = np.bincount(slot.ravel(), weights=share[:, :, d].ravel(), minlength=summed[:, :, d].size)
                summed[:, :, d] = flat.reshape(n_events, n_prompts, len(kinds))
            self._maximise(law * (summed @ likelihood), present)
            self.weights = (posterior.sum(axis=1) + _PSEUDO_QUERIES * _NORMAL) / (n_queries + _PSEUDO_QUERIES)
        self._fitted = True
        law, evidence = self._evidence(likelihood)
        total = np.log(self.weights)[:, None] + np.add.reduceat(np.log(_rows(evidence, slot)), begin, axis=1)
        return Traits(law=law, kind=kind, likelihood=likelihood, evidence=evidence, query=total)

    def _evidence(self, likelihood: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean = self.level[..., None] + self.slope[..., None] * _DIFFICULTY
        law = np.exp(-((LOGITS - mean[..., None]) ** 2) / (2.0 * self.variance[..., None, None])) + 1e-12
        law /= law.sum(axis=3, keepdims=True)
        return law, np.maximum(law @ likelihood.T, 1e-280)

    def _maximise(self, weight: FloatArray, present: FloatArray) -> None:
        """Regress the logit on the difficulty with these posterior weights [B, P, D, T]."""
        by_d, by_t = weight.sum(axis=3), weight.sum(axis=2)
        cells = by_d.sum(axis=2)
        sd, sdd = by_d @ _DIFFICULTY, by_d @ _DIFFICULTY**2
        sz, szz = by_t @ LOGITS, by_t @ LOGITS**2
        sdz = np.einsum("bpdt,d,t->bp", weight, _DIFFICULTY, LOGITS, optimize=True)
        slopes, levels = self.slope[:, present], self.level[:, present]
        typical_slope, typical_level = slopes.mean(axis=1, keepdims=True), levels.mean(axis=1, keepdims=True)
        slope_variance = np.maximum(slopes.var(axis=1, keepdims=True), 0.05) + 0.05
        level_variance = np.maximum(levels.var(axis=1, keepdims=True), 0.25) + 0.25
        a11, a12, a22 = (
            sdd / self.variance + 1.0 / slope_variance,
            sd / self.variance,
            cells / self.variance + 1.0 / level_variance,
        )
        r1 = sdz / self.variance + typical_slope / slope_variance
        r2 = sz / self.variance + typical_level / level_variance
        determinant = a11 * a22 - a12**2
        self.slope = np.clip((r1 * a22 - r2 * a12) / determinant, 0.0, _LARGEST_SLOPE)
        self.level = (r2 - a12 * self.slope) / a22
        a, b = self.slope, self.level
        rest = szz - 2 * a * sdz - 2 * b * sz + a**2 * sdd + 2 * a * b * sd + b**2 * cells
        pooled = np.exp(np.log(self.variance[:, present]).mean(axis=1, keepdims=True))
        pooled = (pooled + _TYPICAL_INTERACTION) / 2
        self.variance = np.clip((np.maximum(rest, 0.0) + _PSEUDO_CELLS * pooled) / (cells + _PSEUDO_CELLS), 0.04, 36.0)


def expected(traits: Traits, event: int, cells: Cells, table: FloatArray, queries: IntArray) -> FloatArray:
    """Return the expectation of a function of theta in every cell of these queries.

    Args:
        traits: The fitted model.
        event: Which event.
        cells: The cells it was fitted to.
        table: The function on the theta grid at every scale [T, N].
        queries: Positions of visited queries [Q], ascending.

    Returns:
        Expectations given all draws, and given all but the cell's own [2, P, Q, N].
    """
    law, log = traits.law[event], traits.query[event]
    out = np.empty((2, len(law), len(queries), table.shape[1]))
    out[:] = _normalise(log[queries]) @ (law @ table)
    place = np.full(cells.n_visited, -1)
    place[queries] = np.arange(len(queries))
    mine = np.flatnonzero(place[cells.query] >= 0)
    mine = mine[np.argsort(cells.prompt[mine], kind="stable")]
    prompt, query, kind = cells.prompt[mine], cells.query[mine], traits.kind[event][mine]
    others = _normalise(log[query] - np.log(traits.evidence[event][prompt, :, kind]))  # [M, D]
    prior = np.empty((len(mine), law.shape[2]))
    begin = np.searchsorted(prompt, np.arange(len(law) + 1))
    for p in range(len(law)):
        prior[begin[p] : begin[p + 1]] = others[begin[p] : begin[p + 1]] @ law[p]
    posterior = prior * traits.likelihood[kind]
    posterior /= posterior.sum(axis=1, keepdims=True)
    out[0, prompt, place[query]] = posterior @ table
    out[1, prompt, place[query]] = prior @ table
    return out


def of_prompts(traits: Traits, cells: Cells, prompts: IntArray) -> tuple[Traits, Cells]:
    """Return the model and the cells of some prompts [Q], ascending, which are 0 .. Q - 1 there."""
    kept = np.isin(cells.prompt, prompts)
    fewer = cells.only(kept)
    fewer = replace(fewer, n_prompts=len(prompts), prompt=np.searchsorted(prompts, fewer.prompt))
    law, evidence = traits.law[:, prompts], traits.evidence[:, prompts]
    return replace(traits, law=law, evidence=evidence, kind=traits.kind[:, kept]), fewer


def _likelihood(events: IntArray, draws: IntArray) -> FloatArray:
    """Return the binomial likelihood on the theta grid, its largest value about 1 [U, T]."""
    log = events[:, None] * np.log(THETA) + (draws - events)[:, None] * np.log1p(-THETA)
    return np.asarray(np.exp(log - log.max(axis=1, keepdims=True)))


def _rows(evidence: FloatArray, slot: IntArray) -> FloatArray:
    """Return each cell's row of difficulties [B, G, D] from evidence [B, P, D, U]."""
    flat = np.moveaxis(evidence, 2, 3).reshape(-1, evidence.shape[2])
    return flat[slot]


def _normalise(log: FloatArray) -> FloatArray:
    """Return probabilities along the last axis from their logarithms."""
    out = np.exp(log - log.max(axis=-1, keepdims=True))
    return np.asarray(out / out.sum(axis=-1, keepdims=True))
