"""A latent-trait model of success probabilities: one cell's draws inform the estimates of all others.

For a yes-or-no event of a completion (right or wrong; score above a threshold) with probability theta in the cell of
prompt p and query x,

    logit theta_px = b_p + a_p d_x + s_p e_px,     d_x from a distribution learnt on a grid, e_px ~ N(0, 1).

d_x is the query's difficulty, shared by all prompts; b_p, a_p and s_p say how good a prompt is, how much it depends on
difficulty that prompts share, and how much it differs from them. a_p = 0 with a large s_p is a prompt that shares
nothing; a large a_p makes the U-shaped cells of real language models. Difficulty and logit live on grids, so every
posterior is a sum; the parameters are fitted by expectation maximisation (an item-response model with an interaction
term, Bock and Aitkin 1981), each M-step a weighted linear regression of the logit on the difficulty, shrunk to the mean
of all prompts. Where prompts have parts in common they are shrunk to what their parts make of them (`relatives`).

Cells with equal counts under one prompt have equal likelihoods, so likelihoods are computed per distinct (count, draws)
and not per cell: the work grows with the number of cells only where it must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.relatives import Relatives
from iapo_dspy.types import FloatArray, IntArray

LOGITS = np.linspace(-6.0, 6.0, 25)
THETA = 1.0 / (1.0 + np.exp(-LOGITS))
_POWERS = np.stack([np.ones_like(LOGITS), LOGITS, LOGITS**2], axis=1)
DIFFICULTY = np.linspace(-2.6, 2.6, 13)
_NORMAL = np.exp(-(DIFFICULTY**2) / 2) / np.exp(-(DIFFICULTY**2) / 2).sum()
_PSEUDO_QUERIES = 5.0  # weight of the normal law in the learnt distribution of difficulties
_PSEUDO_CELLS = 6.0  # weight of the pooled interaction in each prompt's own
_OWN = np.array([0.25, 0.05, 0.25])  # variance of own deviations of level, slope and log interaction to start from
_EFFECTS = np.array([0.25, 0.015, 0.025])  # the same of the effects of parts
_MOST_NOISE = 20.0  # error of a trait, as a multiple of its prior variance, above which nothing is learnt from it
_TYPICAL_INTERACTION = 0.8**2
_TYPICAL_WEIGHT = 0.1  # of the typical interaction in the pooled one
_LARGEST_SLOPE = 8.0
_VARIANCES = 0.04, 36.0
_FIRST_CYCLES, _CYCLES = 12, 4  # of three steps each, at most
_REST = 0.001  # movement of every parameter in one step below which a fit is at rest
_LONGEST_STRIDE = 64.0
_CHUNK = 1 << 21  # array elements that one step may hold


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The model after a fit; B events.

    Attributes:
        law: P(theta-grid point | prompt, difficulty) [B, P, D, T].
        kind: Which distinct (count, draws) each cell has [B, G].
        likelihood: Likelihood of each distinct (count, draws) on the theta grid [U, T].
        draws: Draws of each distinct (count, draws) [U].
        events: Events among them [U].
        evidence: Likelihood of each distinct (count, draws) given prompt and difficulty [B, P, U, D].
        query: Log of each difficulty's posterior, not normalised [B, V, D].
        eta: Level, slope and log of the interaction's standard deviation of every prompt [B, P, 3].
        unexplained: Share of their variance between prompts that a prompt's relatives leave [B, P, 3]; 1 without parts.
    """

    law: FloatArray
    kind: IntArray
    likelihood: FloatArray
    draws: IntArray
    events: IntArray
    evidence: FloatArray
    query: FloatArray
    eta: FloatArray
    unexplained: FloatArray


class _Prior(NamedTuple):
    """What prompts are shrunk to.

    Attributes:
        mean: Level, slope and log of the interaction's standard deviation, of one prompt or of each [B, 1 or P, 3].
        variance: Of level and slope between prompts [B, 1, 2].
        share: The part of the variance that relatives do not explain [B, 1, 3].
    """

    mean: FloatArray
    variance: FloatArray
    share: FloatArray


class TraitModel:
    """Fits the latent-trait model to counts; a later fit starts where the last one ended.

    Args:
        n_events: B.
        n_prompts: P.
        parts: The parts of each prompt [P, F], see `Problem.parts`.
    """

    def __init__(self, n_events: int, n_prompts: int, parts: IntArray | None = None) -> None:
        shape = n_events, n_prompts
        self.level = np.zeros(shape)  # b
        self.slope = np.full(shape, 1.5)  # a
        self.variance = np.ones(shape)  # s^2
        self.weights = np.tile(_NORMAL, (n_events, 1))
        self._relatives = None if parts is None else Relatives(n_events, parts, own=_OWN, effects=_EFFECTS)
        self._by_relatives: Callable[[FloatArray], FloatArray] | None = None  # what parts make of parameters
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
        # Where a cell's row lies in an array [B, P, U], and the cells of each such row.
        slot = (np.arange(n_events)[:, None] * n_prompts + prompt) * len(kinds) + kind
        order = np.argsort(slot, axis=None, kind="stable")
        ascending = slot.ravel()[order]
        first = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
        used = ascending[first]
        of_query = (np.arange(n_events)[:, None] * n_queries + query).ravel()[order]

        def step() -> None:
            law, evidence = self._evidence(likelihood)
            posterior = _normalise(self._log_posterior(evidence, slot, begin))
            # Each row's share of the posteriors of its cells' queries, over its evidence.
            share: FloatArray = np.zeros((n_events * n_prompts * len(kinds), len(DIFFICULTY)))
            by_cell = np.take(posterior.reshape(-1, len(DIFFICULTY)), of_query, axis=0)
            share[used] = np.add.reduceat(by_cell, first, axis=0)
            share = share.reshape(evidence.shape)
            share /= evidence
            law *= _along_last(np.swapaxes(share, 2, 3), likelihood)
            self._maximise(law, present)
            self.weights = (posterior.sum(axis=1) + _PSEUDO_QUERIES * _NORMAL) / (n_queries + _PSEUDO_QUERIES)

        shrunk = np.broadcast_to(np.where(present, 0.0, np.inf)[:, None], (n_events, n_prompts, 3))
        for _ in range(_CYCLES if self._fitted else _FIRST_CYCLES):
            if self._relatives is not None:
                self._by_relatives = self._relatives.blup(shrunk)
            at_rest = self._leap(step)
            if self._relatives is not None:
                self._learn(self._relatives, prompt, size, present)
            if at_rest:
                break
        self._fitted = True
        unexplained = np.ones((n_events, n_prompts, 3))
        if self._relatives is not None:
            unexplained = self._relatives.unexplained(self._noise(prompt, size))
        law, evidence = self._evidence(likelihood)
        total = self._log_posterior(evidence, slot, begin)
        return Traits(
            law=law,
            kind=kind,
            likelihood=likelihood,
            draws=draws,
            events=events,
            evidence=evidence,
            query=total,
            eta=self._parameters(),
            unexplained=unexplained,
        )

    def _leap(self, step: Callable[[], None]) -> bool:
        """Make three steps of expectation maximisation as one accelerated step; returns whether they came to rest.

        Two steps show how the parameters of an event move and how their movement slows down. The third starts from
        where they would end if it went on like that (SQUAREM, Varadhan and Roland 2008).
        """
        path = [self._parameters()]
        for _ in range(2):
            step()
            path.append(self._parameters())
        first, second = path[1] - path[0], path[2] - path[1]
        slowing = second - first
        stride = _length(first) / np.maximum(_length(slowing), 1e-12)
        stride = np.clip(stride, 1.0, _LONGEST_STRIDE)[:, None, None]
        self._move(path[0] + 2.0 * stride * first + stride**2 * slowing)
        step()
        return bool(np.abs(second).max() < _REST)

    def _parameters(self) -> FloatArray:
        """Return level, slope and log of the interaction's standard deviation [B, P, 3]."""
        return np.stack([self.level, self.slope, 0.5 * np.log(self.variance)], axis=2)

    def _move(self, parameters: FloatArray) -> None:
        self.level = parameters[:, :, 0]
        self.slope = np.clip(parameters[:, :, 1], 0.0, _LARGEST_SLOPE)
        self.variance = np.clip(np.exp(np.clip(2.0 * parameters[:, :, 2], -8.0, 8.0)), *_VARIANCES)

    def _log_posterior(self, evidence: FloatArray, slot: IntArray, begin: IntArray) -> FloatArray:
        """Return the log of each difficulty's posterior, not normalised [B, V, D]; a query's cells are neighbours."""
        rows = np.take(np.log(evidence).reshape(-1, evidence.shape[3]), slot, axis=0)
        return np.asarray(np.log(self.weights)[:, None] + np.add.reduceat(rows, begin, axis=1))

    def _evidence(self, likelihood: FloatArray) -> tuple[FloatArray, FloatArray]:
        law = laws(self._parameters())
        evidence = np.ascontiguousarray(np.swapaxes(_along_last(law, likelihood.T), 2, 3))
        return law, np.maximum(evidence, 1e-280, out=evidence)

    def _maximise(self, weight: FloatArray, present: FloatArray) -> None:
        """Regress the logit on the difficulty with these posterior weights [B, P, D, T]."""
        by_d, by_dz, by_dzz = np.moveaxis(_along_last(weight, _POWERS), 3, 0)
        cells, sz, szz = by_d.sum(axis=2), by_dz.sum(axis=2), by_dzz.sum(axis=2)
        sd, sdd, sdz = by_d @ DIFFICULTY, by_d @ DIFFICULTY**2, by_dz @ DIFFICULTY
        typical, between, share = self._prior(present)
        level_variance, slope_variance = np.moveaxis(between * share[..., :2], 2, 0)
        a11, a12, a22 = (
            sdd / self.variance + 1.0 / slope_variance,
            sd / self.variance,
            cells / self.variance + 1.0 / level_variance,
        )
        r1 = sdz / self.variance + typical[..., 1] / slope_variance
        r2 = sz / self.variance + typical[..., 0] / level_variance
        determinant = a11 * a22 - a12**2
        self.slope = np.clip((r1 * a22 - r2 * a12) / determinant, 0.0, _LARGEST_SLOPE)
        self.level = (r2 - a12 * self.slope) / a22
        a, b = self.slope, self.level
        rest = szz - 2 * a * sdz - 2 * b * sz + a**2 * sdd + 2 * a * b * sd + b**2 * cells
        pooled = np.exp(2.0 * typical[..., 2])
        pooled += _TYPICAL_WEIGHT * (_TYPICAL_INTERACTION - pooled)
        pseudo = _PSEUDO_CELLS / share[..., 2]
        self.variance = np.clip((np.maximum(rest, 0.0) + pseudo * pooled) / (cells + pseudo), *_VARIANCES)

    def _prior(self, present: FloatArray) -> _Prior:
        """Return what prompts are shrunk to, given all parameters as they are now."""
        traits = [t[:, present] for t in (self.level, self.slope, 0.5 * np.log(self.variance))]
        mean = np.stack([t.mean(axis=1) for t in traits], axis=1)[:, None]
        floors = zip(traits, (0.25, 0.05), strict=False)
        variance = np.stack([np.maximum(t.var(axis=1), least) + least for t, least in floors], axis=1)[:, None]
        if self._relatives is None or self._by_relatives is None:
            return _Prior(mean, variance, np.ones((1, 1, 3)))
        return _Prior(self._by_relatives(self._parameters()), variance, self._relatives.share[:, None])

    def _noise(self, prompt: IntArray, size: IntArray) -> FloatArray:
        """Return about the variances of level, slope and log interaction as the cells alone tell them [B, P, 3].

        A completion tells theta (1 - theta) of its cell's logit, which is off from the prompt's by the interaction.
        """
        sizes, at = np.unique(size, return_inverse=True)
        shape = self.level.shape[1], len(sizes)
        number = np.bincount(prompt * len(sizes) + at, minlength=shape[0] * shape[1]).reshape(shape)
        told = (laws(self._parameters()) @ (THETA * (1.0 - THETA))) @ self.weights[..., None] * sizes  # [B, P, M]
        share = self.variance[..., None] * told / (1.0 + self.variance[..., None] * told)
        level = (number * share).sum(axis=2) / self.variance
        centre = self.weights @ DIFFICULTY
        slope = level * (self.weights @ DIFFICULTY**2 - centre**2)[:, None]
        spread = (number * 2.0 * share**2 * (1.0 - 1.0 / sizes)).sum(axis=2)  # one completion tells nothing of it
        with np.errstate(divide="ignore"):
            return np.asarray(1.0 / np.stack([level, slope, spread], axis=2))

    def _learn(self, relatives: Relatives, prompt: IntArray, size: IntArray, present: FloatArray) -> None:
        """Fit how much prompts owe to their parts to estimates that are not shrunk."""
        values, noise = self._parameters(), self._noise(prompt, size)
        typical, between, share = self._prior(present)
        prior = np.concatenate([between, np.full((*between.shape[:2], 1), 0.5 / _PSEUDO_CELLS)], axis=2) * share
        noise = np.where(noise < _MOST_NOISE * prior, noise, np.inf)
        shrunk_by = np.where(np.isfinite(noise), noise / prior, 0.0)
        relatives.learn(values + shrunk_by * (values - typical), noise)


def laws(eta: FloatArray) -> FloatArray:
    """Return P(theta-grid point | prompt, difficulty) [B, P, D, T] of prompts with these traits [B, P, 3]."""
    mean = eta[..., :1] + eta[..., 1:2] * DIFFICULTY
    precision = np.sqrt(0.5) * np.exp(-eta[..., 2:])
    # All in place, and sums along short axes as products: this is most of the work of a fit.
    law = (LOGITS * precision)[:, :, None] - (mean * precision)[..., None]
    np.square(law, out=law)
    np.minimum(law, 60.0, out=law)  # the floor below hides smaller densities
    np.exp(np.negative(law, out=law), out=law)
    law += 1e-12
    law /= _along_last(law, np.ones((law.shape[3], 1)))
    return np.asarray(law)


def difficulties(traits: Traits) -> FloatArray:
    """Return the posterior of each visited query's difficulty [B, V, D]."""
    return _normalise(traits.query)


def of_drawn(traits: Traits, cells: Cells, mine: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the laws of theta in some drawn cells [B, M, T] each.

    Args:
        traits: The fitted model.
        cells: The cells it was fitted to.
        mine: Which of them [M], prompt after prompt, as `Cells.of_prompts` has them.

    Returns:
        Given all draws; given all but the cell's own; and as of a cell without draws on the same query, whose
        difficulty is known from all draws.
    """
    prompt, query, kind = cells.prompt[mine], cells.query[mine], traits.kind[:, mine]
    log = traits.query[:, query]
    own = traits.evidence[np.arange(len(traits.law))[:, None], prompt, kind]
    prior, undrawn = np.empty((2, *kind.shape, traits.law.shape[3]))
    begin = np.searchsorted(prompt, np.arange(cells.n_prompts + 1))
    for law_given, difficulty in ((prior, _normalise(log - np.log(own))), (undrawn, _normalise(log))):
        for p in np.flatnonzero(np.diff(begin)).tolist():
            part = np.s_[:, begin[p] : begin[p + 1]]
            np.matmul(difficulty[part], traits.law[:, p], out=law_given[part])
    posterior = prior * traits.likelihood[kind]
    posterior /= _along_last(posterior, np.ones((posterior.shape[2], 1)))
    return posterior, prior, undrawn


def drawn_cells(traits: Traits, cells: Cells, width: int = 0) -> Iterator[IntArray]:
    """Cut the drawn cells into parts for `of_drawn`: each part's laws and arrays [M, `width`] fit into memory."""
    _, order = cells.of_prompts(np.arange(cells.n_prompts))
    step = max(1, _CHUNK // max(len(traits.law) * len(THETA), width))
    for begin in range(0, len(order), step):
        yield order[begin : begin + step]


def of_prompts(traits: Traits, cells: Cells, prompts: IntArray) -> tuple[Traits, Cells]:
    """Return the model and the cells of some prompts [Q], ascending, which are 0 .. Q - 1 there."""
    kept = np.isin(cells.prompt, prompts)
    fewer = cells.only(kept)
    fewer = replace(fewer, n_prompts=len(prompts), prompt=np.searchsorted(prompts, fewer.prompt))
    law, evidence = traits.law[:, prompts], traits.evidence[:, prompts]
    eta, unexplained = traits.eta[:, prompts], traits.unexplained[:, prompts]
    found = replace(traits, law=law, evidence=evidence, kind=traits.kind[:, kept], eta=eta, unexplained=unexplained)
    return found, fewer


def _likelihood(events: IntArray, draws: IntArray) -> FloatArray:
    """Return the binomial likelihood on the theta grid, its largest value about 1 [U, T]."""
    log = events[:, None] * np.log(THETA) + (draws - events)[:, None] * np.log1p(-THETA)
    return np.asarray(np.exp(log - log.max(axis=1, keepdims=True)))


def _along_last(values: FloatArray, matrix: FloatArray) -> FloatArray:
    """Return values [..., T] @ matrix [T, U] by one product instead of many small ones."""
    flat: FloatArray = values.reshape(-1, values.shape[-1]) @ matrix
    return flat.reshape(*values.shape[:-1], matrix.shape[1])


def _length(values: FloatArray) -> FloatArray:
    """Return the length of each event's vector [B]."""
    return np.asarray(np.sqrt((values**2).sum(axis=(1, 2))))


def _normalise(log: FloatArray) -> FloatArray:
    """Return probabilities along the last axis from their logarithms."""
    out = np.exp(log - log.max(axis=-1, keepdims=True))
    out /= _along_last(out, np.ones((out.shape[-1], 1)))
    return np.asarray(out)
