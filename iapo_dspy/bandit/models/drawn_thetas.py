"""Draws the success probabilities of cells from what all draws say, as widely spread and as alike as cells really are.

A fit of the latent-trait model is to means above all. Where cells are nearly all right or nearly all wrong, a normal
law of logits is not as wide as they are. For means that is corrected by unbiased estimates. How often completions of a
cell agree, and how often two prompts fail on the same query, decides what compound arms are worth, so both are matched
here, by the pairs of completions that were drawn:

    theta_px = T_p(Phi(sqrt(l_p) g_x + sqrt(1 - l_p) h_px)),     g_x, h_px ~ N(0, 1),

with T_p the quantile function of a beta law with the prompt's mean and the share of its variance that lies between
cells (from pairs of one cell), and l_p the part that prompts have in common (from pairs of different prompts): a normal
copula with one factor, fitted by moments. Both are shrunk to what all prompts show.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.traits import DIFFICULTY, LOGITS, THETA, Traits, difficulties
from iapo_dspy.types import FloatArray, IntArray

_PSEUDO_PAIRS = 40.0  # that all prompts weigh beside a prompt's own pairs, and the model beside all prompts
_PSEUDO_CELLS = 60.0  # the same of cells of different prompts, of which a query has many pairs
_BETWEEN = 0.02, 0.97  # share of the variance that can lie between cells
_COMMON = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
_OWN = np.linspace(-2.6, 2.6, 27)  # h
_FINE = 1.0 / (1.0 + np.exp(-np.linspace(-12.0, 12.0, 481)))


def draw_thetas(traits: Traits, cells: Cells, prompts: IntArray, copies: int, rng: np.random.Generator) -> FloatArray:
    """Draw probabilities of the events in cells from what all draws say of them.

    A row is a query with a difficulty of its own, which all prompts share. What is hard for one event is hard for all
    of them, and a prompt that does well in one does well in all.

    Args:
        traits: The fitted model.
        cells: The cells it was fitted to.
        prompts: The prompts [Q].
        copies: Rows of each query, evenly spread over its posterior.
        rng: Source of randomness.

    Returns:
        Probabilities [B, Q, V * copies]; rows of one query are neighbours.
    """
    traits = by_moments(traits, cells)
    n_events, n_visited = traits.query.shape[:2]
    below = np.cumsum(difficulties(traits), axis=2)[:, :, None, :-1]
    difficulty = (below < _spread(n_visited, copies, rng)[:, :, None]).sum(axis=3)  # [B, V, copies]
    theta = np.empty((n_events, len(prompts), n_visited * copies))
    undrawn = len(traits.likelihood)
    likelihood = np.concatenate([traits.likelihood, np.ones((1, len(THETA)))])
    for i, p in enumerate(prompts.tolist()):
        kind = np.full((n_events, n_visited), undrawn)
        _, mine = cells.of_prompts(np.array([p]))
        kind[:, cells.query[mine]] = traits.kind[:, mine]
        # One ascending table of all laws: the entries of law i lie in (i, i + 1], so that one search draws.
        known, law = np.unique(np.arange(n_events)[:, None] * (undrawn + 1) + kind, return_inverse=True)
        event, kinds = np.divmod(known, undrawn + 1)
        table = np.cumsum(traits.law[event, p] * likelihood[kinds, None], axis=2).reshape(-1, len(THETA))
        table /= table[:, -1:]
        table += np.arange(len(table))[:, None]
        row = law.reshape(n_events, n_visited, 1) * len(DIFFICULTY) + difficulty
        place = np.searchsorted(table.reshape(-1), row + _spread(n_visited, copies, rng), side="right")
        theta[:, i] = THETA[np.minimum(place - row * len(THETA), len(THETA) - 1)].reshape(n_events, -1)
    return theta


def _spread(rows: int, copies: int, rng: np.random.Generator) -> FloatArray:
    """Return uniform numbers [rows, copies], in each row one from each of so many equal parts, in random order."""
    part = rng.permuted(np.tile(np.arange(copies), (rows, 1)), axis=1)
    return np.asarray((part + rng.random(part.shape)) / copies)


def by_moments(traits: Traits, cells: Cells) -> Traits:
    """Return the model with laws of theta that match what pairs of completions show; see the module."""
    weights = difficulties(traits).mean(axis=1)  # [B, D]
    law = (weights[:, None, None] @ traits.law)[:, :, 0]  # [B, P, T]
    mean = np.clip(law @ THETA, 1e-3, 1.0 - 1e-3)
    room = mean * (1.0 - mean)
    draws, events = traits.draws[traits.kind], traits.events[traits.kind]  # [B, G]
    share = np.clip(_between(cells, draws, events, mean, (law @ THETA**2 - mean**2) / room), *_BETWEEN)
    theta = _copula(mean, share)  # [B, P, L, D, H]
    own = np.exp(-(_OWN**2) / 2) / np.exp(-(_OWN**2) / 2).sum()
    centred = theta @ own - mean[:, :, None, None]  # of a common part and a factor, without the mean [B, P, L, D]
    common = _common(cells, events / draws, mean, centred)
    every = np.arange(mean.shape[1])
    found = np.stack([_on_grid(theta[b, every, common[b]], own) for b in range(len(mean))])
    evidence = np.maximum(np.swapaxes(found @ traits.likelihood.T, 2, 3), 1e-280)
    rows = np.log(evidence)[np.arange(len(mean))[:, None], cells.prompt, traits.kind]  # [B, G, D]
    begin = np.flatnonzero(np.concatenate([[True], cells.query[1:] != cells.query[:-1]]))
    query = np.log(_FACTOR) + np.add.reduceat(rows, begin, axis=1)
    return replace(traits, law=found, evidence=evidence, query=query)


_FACTOR = np.exp(-(DIFFICULTY**2) / 2) / np.exp(-(DIFFICULTY**2) / 2).sum()


def _between(cells: Cells, draws: IntArray, events: IntArray, mean: FloatArray, model: FloatArray) -> FloatArray:
    """Return the share of the variance that lies between cells [B, P].

    A cell of m completions counts as m - 1 pairs, for its pairs say much the same.
    """
    n_events, n_prompts = mean.shape
    slot = (np.arange(n_events)[:, None] * n_prompts + cells.prompt).reshape(-1)
    parts = draws - 1.0, events * (events - 1.0) / draws
    pairs, both = (np.bincount(slot, part.reshape(-1), mean.size).reshape(mean.shape) for part in parts)
    room, beyond = mean * (1.0 - mean), both - pairs * mean**2
    known = (pairs * room).sum(axis=1) + _PSEUDO_PAIRS * room.mean(axis=1)
    typical = (beyond.sum(axis=1) + _PSEUDO_PAIRS * (room * model).mean(axis=1)) / known
    return np.asarray((beyond / room + _PSEUDO_PAIRS * typical[:, None]) / (pairs + _PSEUDO_PAIRS))


def _copula(mean: FloatArray, share: FloatArray) -> FloatArray:
    """Return theta by common part, factor and the cell's own part [B, P, L, D, H]."""
    size = 1.0 / share - 1.0  # of the beta law
    a, b = (mean * size)[..., None], ((1.0 - mean) * size)[..., None]
    density = np.exp(a * np.log(_FINE) + b * np.log1p(-_FINE))  # by logit, which takes the factor theta (1 - theta)
    step = 24.0 / (len(_FINE) - 1)
    density[..., :1] += density[..., :1] / (a * step)  # what lies beyond the grid, where the tails are exponential
    density[..., -1:] += density[..., -1:] / (b * step)
    below = np.cumsum(density, axis=-1)
    below /= below[..., -1:]
    z = np.sqrt(_COMMON)[:, None, None] * DIFFICULTY[:, None] + np.sqrt(1.0 - _COMMON)[:, None, None] * _OWN
    u = _normal_below(z)
    out = np.empty((*mean.shape, *u.shape))
    for at in np.ndindex(*mean.shape):
        out[at] = np.interp(u, below[at], _FINE)
    return out


def _normal_below(z: FloatArray) -> FloatArray:
    """Return the normal distribution function, to 1e-4 (a logistic of an odd cubic, Page 1977)."""
    return np.asarray(1.0 / (1.0 + np.exp(-(1.5976 * z + 0.070566 * z**3))))


def _common(cells: Cells, rate: FloatArray, mean: FloatArray, centred: FloatArray) -> IntArray:
    """Return which common part each prompt has [B, P], as positions in `_COMMON`.

    Args:
        cells: The cells.
        rate: Share of events in each cell [B, G].
        mean: Mean of each prompt [B, P].
        centred: Mean of a prompt given the factor, without its mean [B, P, L, D].
    """
    n_events, n_prompts = mean.shape
    seen = np.zeros((cells.n_visited, n_prompts))
    seen[cells.query, cells.prompt] = 1.0
    together = seen.T @ seen * (1.0 - np.eye(n_prompts))
    drawn = seen.sum(axis=0)
    found = np.empty((n_events, n_prompts), dtype=np.int64)
    for b in range(n_events):
        rest = np.zeros((cells.n_visited, n_prompts))
        rest[cells.query, cells.prompt] = rate[b] - mean[b, cells.prompt]
        observed = (rest * (rest.sum(axis=1, keepdims=True) - rest)).sum(axis=0)  # with all other prompts [P]
        same = np.einsum("pld,qld,d,pq->lp", centred[b], centred[b], _FACTOR, together)  # all have the same part [L, P]
        every = int(np.abs(same.sum(axis=1) - observed.sum()).argmin())
        if not every:  # prompts have nothing in common, or fail on each other's queries, which one factor cannot say
            found[b] = 0
            continue
        own = np.einsum("pld,qd,d,pq->lp", centred[b], centred[b, :, every], _FACTOR, together)
        weight = drawn / (drawn + _PSEUDO_CELLS)
        wanted = weight * observed + (1.0 - weight) * same[every]
        found[b] = np.abs(own - wanted).argmin(axis=0)
    return found


def _on_grid(theta: FloatArray, own: FloatArray) -> FloatArray:
    """Return laws on the theta grid [P, D, T] of theta [P, D, H] with these weights [H]."""
    step, points = LOGITS[1] - LOGITS[0], len(LOGITS)
    inner = np.clip(theta, THETA[0], THETA[-1])
    at = np.clip((np.log(inner / (1.0 - inner)) - LOGITS[0]) / step, 0.0, points - 1.0)
    low = np.minimum(at.astype(np.int64), points - 2)
    row = np.arange(theta.shape[0] * theta.shape[1]).reshape(*theta.shape[:2], 1) * points
    mass = np.broadcast_to(own, theta.shape)
    size = theta.shape[0] * theta.shape[1] * points
    law = np.bincount((row + low).reshape(-1), (mass * (low + 1 - at)).reshape(-1), size)
    law += np.bincount((row + low + 1).reshape(-1), (mass * (at - low)).reshape(-1), size)
    return np.asarray((law + 1e-12).reshape(*theta.shape[:2], points))
