"""Predictive estimates: the expected reward of every arm on every visited query, also above the number drawn.

The reward at any scale is a function of a few success probabilities of the cell: of a right answer for majority vote,
of a score above each of some thresholds for Best-of-N. `traits.TraitModel` learns these from all cells together, and
the expectation over its posterior gives the reward:

- Best-of-N: E max of n = v_0 + sum over j of (v_j - v_(j-1)) (1 - (1 - theta_j)^n) with theta_j the probability of a
  score above the middle between v_(j-1) and v_j. It is exact where the v are all values that scores take; where these
  are many, the v are quantiles and the sum is the midpoint rule for the integral of P(max > t).
- Majority vote: P(the best answer wins) from theta and from how the other answers share the rest, which is measured
  by how often two wrong completions of a query, and of a prompt, agree. Wrong answers then have shares r, r (1 - r),
  r (1 - r)^2, .. with r = 2 h / (1 + h), which makes two of them agree with probability h.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from iapo_dspy.bandit.aggregators.exact import majority_vote_rewards
from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator, Ties
from iapo_dspy.bandit.cells import Ballots, Cells, ballots
from iapo_dspy.bandit.estimators.additive import AdditivePredictor
from iapo_dspy.bandit.estimators.fitted import BestOfModel, VoteModel
from iapo_dspy.bandit.estimators.port import Predictions
from iapo_dspy.bandit.estimators.traits import THETA, TraitModel, Traits
from iapo_dspy.types import FloatArray, IntArray

__all__ = ["TOP_SHARES", "Predictions", "Predictor", "expected", "is_modelled", "predictor", "share_weights"]

TOP_SHARES = np.array([0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
_FEW_VALUES = 32
_QUANTILES = np.array([0.0, 0.08, 0.2, 0.35, 0.5, 0.65, 0.77, 0.86, 0.92, 0.955, 0.975, 0.988, 0.995, 1.0])
_PSEUDO_PAIRS = 4.0


class VotePredictor:
    """Predictions for majority vote; W = 1, for a first weight of 1.

    Args:
        aggregator: How votes are counted.
        n_prompts: P.
        max_n: N.
    """

    def __init__(self, aggregator: MajorityVoteAggregator, n_prompts: int, max_n: int) -> None:
        self._floor = aggregator.floor
        self._model = TraitModel(1, n_prompts)
        self._table = _vote_table(max_n, aggregator.ties)

    def predict(self, cells: Cells) -> Predictions:
        """Fit the model to all cells and predict every prompt on every visited query."""
        votes = ballots(cells)
        best, worth, rest = self._answers(cells, votes)
        counted = np.concatenate([votes.votes, np.zeros((len(cells), 1), dtype=np.int64)], axis=1)
        right = counted[np.arange(len(cells)), best[cells.query]]
        traits = self._model.fit(cells.prompt, cells.query, cells.n_visited, right[None], cells.size)
        share = self._top_share(cells, votes, best)
        wins = np.zeros((2, self._model.level.shape[1], cells.n_visited, self._table.shape[2]))
        for j, weight in enumerate(share_weights(share)):
            where = np.flatnonzero(weight.any(axis=0))
            if len(where):
                wins[:, :, where] += weight[:, where, None] * expected(traits, 0, cells, self._table[j], where)
        value = rest[:, None] + (worth - rest)[:, None] * wins
        model = VoteModel(cells=cells, traits=traits, top_share=share, worth=worth, rest=rest)
        return Predictions(given_all=value[:1], given_others=value[1:], model=model)

    def _answers(self, cells: Cells, votes: Ballots) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return each query's best answer, its worth, and the mean worth of a completion without it [V]."""
        credit = np.where(votes.seen > 0, votes.credit, -np.inf)
        n_answers = credit.shape[1]
        best = credit.argmax(axis=1) if n_answers else np.zeros(cells.n_visited, dtype=np.int64)
        scores = cells.score[~cells.failed, 0]
        low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
        worth = credit[np.arange(cells.n_visited), best] if n_answers else np.full(cells.n_visited, high)
        if np.isin(scores, (low, high)).all():
            # Right or wrong: where nobody was right yet, the right answer is one that nobody has given.
            high = high if high > low else max(high, 1.0)
            unknown = worth < high - 1e-9 * max(abs(high), abs(low))  # a mean of equal scores is off by rounding
            best = np.where(unknown, n_answers, best)
            worth = np.full(cells.n_visited, high)
        else:
            worth = np.where(np.isfinite(worth), worth, self._floor)
        others = np.arange(n_answers) != best[:, None]
        silent = cells.by_query(votes.silent)
        number = (votes.seen * others).sum(axis=1) + silent
        total = (votes.seen * votes.credit * others).sum(axis=1) + silent * self._floor
        typical = float(total.sum() / number.sum()) if number.sum() else self._floor
        return best, worth, (total + typical) / (number + 1.0)

    @staticmethod
    def _top_share(cells: Cells, votes: Ballots, best: IntArray) -> FloatArray:
        """Return the share that the strongest wrong answer has of what the best one leaves over [P, V].

        How often two wrong completions agree is a matter of the query (some mistakes suggest themselves) and of the
        prompt (some prompts always make the same one). The two factors are measured apart: over all completions of a
        query, and over completions of one cell, prompt by prompt; each is shrunk to what is typical.
        """
        answers = np.arange(votes.seen.shape[1])
        wrong = votes.seen * (answers != best[:, None])
        number = wrong.sum(axis=1) + cells.by_query(votes.silent)
        agree, pairs = (wrong * (wrong - 1)).sum(axis=1), number * (number - 1)
        typical = (agree.sum() + 1.0) / (pairs.sum() + 2.0)
        of_query = (agree + _PSEUDO_PAIRS * typical) / (pairs + _PSEUDO_PAIRS)
        mine = votes.votes * (answers != best[cells.query][:, None])
        number = mine.sum(axis=1) + votes.silent
        own_agree = np.bincount(cells.prompt, (mine * (mine - 1)).sum(axis=1), cells.n_prompts)
        own_pairs = np.bincount(cells.prompt, number * (number - 1), cells.n_prompts)
        own_typical = (own_agree.sum() + _PSEUDO_PAIRS * typical) / (own_pairs.sum() + _PSEUDO_PAIRS)
        of_prompt = (own_agree + _PSEUDO_PAIRS * own_typical) / (own_pairs + _PSEUDO_PAIRS)
        agreement = np.minimum(of_prompt[:, None] * (of_query / typical), 1.0)
        return np.asarray(2.0 * agreement / (1.0 + agreement))


class BestOfPredictor:
    """Predictions for Best-of-N under W rows of objective weights.

    Args:
        aggregator: Gives the floors.
        weights: Objective weights [W, K].
        n_prompts: P.
        max_n: N.
    """

    def __init__(self, aggregator: BestOfNAggregator, weights: FloatArray, n_prompts: int, max_n: int) -> None:
        floors = np.zeros(weights.shape[1]) if aggregator.floors is None else np.asarray(aggregator.floors)
        self._weights = weights
        self._floor = weights @ floors
        self._n_prompts = n_prompts
        self._levels: list[FloatArray] = [np.empty(0)] * len(weights)
        self._many = [False] * len(weights)
        self._models: list[TraitModel] = [TraitModel(1, n_prompts)] * len(weights)
        self._table = 1.0 - (1.0 - THETA[:, None]) ** np.arange(1, max_n + 1)

    def predict(self, cells: Cells) -> Predictions:
        """Fit the model to all cells and predict every prompt on every visited query."""
        values = [np.where(cells.failed, np.nan, cells.score @ w) for w in self._weights]
        for row, (value, floor) in enumerate(zip(values, self._floor, strict=True)):
            self._cut(row, value, floor)
        shape = 2, len(self._weights), self._n_prompts, cells.n_visited, self._table.shape[1]
        out = np.empty(shape)
        traits: list[Traits | None] = []
        for row, (value, levels, model) in enumerate(zip(values, self._levels, self._models, strict=True)):
            low = min(float(np.nanmin(value, initial=np.inf)), float(levels[0]), float(self._floor[row]))
            filled = np.where(np.isnan(value), low, value)
            out[:, row], found = self._row(cells, filled, levels, model)
            traits.append(found)
        fitted = BestOfModel(
            cells=cells,
            values=tuple(values),
            floors=tuple(self._floor.tolist()),
            levels=tuple(self._levels),
            traits=tuple(traits),
        )
        return Predictions(given_all=out[0], given_others=out[1], model=fitted)

    def _cut(self, row: int, value: FloatArray, floor: float) -> None:
        """Choose where a row's scores are cut: once where they are many, anew while they are few and new ones turn up.

        A first batch in which nobody had any success has one value, and says nothing of what success is worth.
        """
        known = value[~np.isnan(value)]
        if len(known) < len(value):
            known = np.append(known, min(floor, known.min(initial=floor)))
        if self._many[row] or np.isin(known, self._levels[row]).all():
            return
        levels = np.unique(known)
        if len(levels) > _FEW_VALUES:
            self._many[row] = True
            levels = np.unique(np.quantile(known, _QUANTILES))
        self._levels[row] = levels
        self._models[row] = TraitModel(max(len(levels) - 1, 1), self._n_prompts)

    def _row(
        self, cells: Cells, value: FloatArray, levels: FloatArray, model: TraitModel
    ) -> tuple[FloatArray, Traits | None]:
        """Return both readings under one row of weights [2, P, V, N], and the model."""
        if len(levels) == 1:
            return np.full((2, self._n_prompts, cells.n_visited, self._table.shape[1]), levels[0]), None
        cuts = (levels[1:] + levels[:-1]) / 2
        above = value > cuts[:, None]
        count = np.add.reduceat(above, cells.start, axis=1, dtype=np.int64)
        traits = model.fit(cells.prompt, cells.query, cells.n_visited, count, cells.size)
        width = np.diff(levels)
        out = np.full((2, self._n_prompts, cells.n_visited, self._table.shape[1]), levels[0])
        everywhere = np.arange(cells.n_visited)
        for j in range(len(cuts)):
            out += width[j] * expected(traits, j, cells, self._table, everywhere)
        return out, traits


Predictor = VotePredictor | BestOfPredictor | AdditivePredictor


def is_modelled(aggregator: Aggregator) -> bool:
    """Return whether there is a model that says what completions beyond those drawn would bring."""
    return isinstance(aggregator, (MajorityVoteAggregator, BestOfNAggregator))


def predictor(aggregator: Aggregator, weights: FloatArray, n_prompts: int, max_n: int) -> Predictor:
    """Return the predictor of an aggregator; a predictor learns from one call to the next.

    Majority vote and Best-of-N have models of their own; for any other aggregator effects of prompts and queries add.
    """
    if isinstance(aggregator, MajorityVoteAggregator):
        return VotePredictor(aggregator, n_prompts, max_n)
    if isinstance(aggregator, BestOfNAggregator):
        return BestOfPredictor(aggregator, weights, n_prompts, max_n)
    return AdditivePredictor(aggregator, weights, n_prompts, max_n)


def share_weights(share: FloatArray) -> list[FloatArray]:
    """Return the weight of each point of the grid `TOP_SHARES`, so that tables are interpolated, each [P, V]."""
    low = np.clip(np.searchsorted(TOP_SHARES, share, side="right") - 1, 0, len(TOP_SHARES) - 2)
    high = (share - TOP_SHARES[low]) / (TOP_SHARES[low + 1] - TOP_SHARES[low])
    points = range(len(TOP_SHARES))
    return [np.where(low == j, 1.0 - high, 0.0) + np.where(low + 1 == j, high, 0.0) for j in points]


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
    out[:] = _normalised(log[queries]) @ (law @ table)
    place = np.full(cells.n_visited, -1)
    place[queries] = np.arange(len(queries))
    mine = np.flatnonzero(place[cells.query] >= 0)
    mine = mine[np.argsort(cells.prompt[mine], kind="stable")]
    prompt, query, kind = cells.prompt[mine], cells.query[mine], traits.kind[event][mine]
    others = _normalised(log[query] - np.log(traits.evidence[event][prompt, :, kind]))  # [M, D]
    prior = np.empty((len(mine), law.shape[2]))
    begin = np.searchsorted(prompt, np.arange(len(law) + 1))
    for p in range(len(law)):
        prior[begin[p] : begin[p + 1]] = others[begin[p] : begin[p + 1]] @ law[p]
    posterior = prior * traits.likelihood[kind]
    posterior /= posterior.sum(axis=1, keepdims=True)
    out[0, prompt, place[query]] = posterior @ table
    out[1, prompt, place[query]] = prior @ table
    return out


def _normalised(log: FloatArray) -> FloatArray:
    out = np.exp(log - log.max(axis=-1, keepdims=True))
    return np.asarray(out / out.sum(axis=-1, keepdims=True))


@lru_cache(maxsize=16)
def _vote_table(max_n: int, ties: Ties) -> FloatArray:
    """Return P(the best answer wins) by top share of the others and theta [R, T, N]."""
    share, theta = np.meshgrid(TOP_SHARES, THETA, indexing="ij")
    rivals = [(1.0 - theta) * share * (1.0 - share) ** j for j in range(4)]
    probs = np.stack([theta, *rivals], axis=2).reshape(-1, 5)
    credit = np.zeros_like(probs)
    credit[:, 0] = 1.0
    table = majority_vote_rewards(probs, credit, max_n, ties=ties).reshape(len(TOP_SHARES), len(THETA), max_n)
    table.setflags(write=False)
    return table
