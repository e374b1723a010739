"""The model of majority vote: a latent trait for the best answer, and how the other answers share the rest.

P(the best answer wins) follows at every scale from theta, the probability of the best answer in a cell, and from how
the other answers share the rest, which is measured by how often two wrong completions of a query, and of a prompt,
agree. Wrong answers then have shares r, r (1 - r), r (1 - r)^2, .. with r = 2 h / (1 + h), which makes two of them
agree with probability h. `traits.TraitModel` learns theta from all cells together; the reward is its expectation over
the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from iapo_dspy.bandit.cells import Ballots, Cells, ballots
from iapo_dspy.bandit.models.exact import majority_vote_rewards
from iapo_dspy.bandit.models.port import Predictions
from iapo_dspy.bandit.models.traits import THETA, TraitModel, Traits, expected, of_prompts
from iapo_dspy.bandit.models.winning import Ties
from iapo_dspy.bandit.stopping.estimates import StopEstimates, corrected_stops
from iapo_dspy.bandit.stopping.replays import observed_votes
from iapo_dspy.bandit.stopping.vote_stops import vote_tables
from iapo_dspy.types import FloatArray, IntArray

TOP_SHARES = np.array([0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
_PSEUDO_PAIRS = 4.0


class VotePredictor:
    """Predictions for majority vote; W = 1, for a first weight of 1.

    Args:
        n_prompts: P.
        max_n: N.
        floor: Score of a call without a vote.
        ties: See `Ties`.
    """

    def __init__(self, n_prompts: int, max_n: int, *, floor: float = 0.0, ties: Ties = "paper") -> None:
        self._floor = floor
        self._model = TraitModel(1, n_prompts)
        self._table = _vote_table(max_n, ties)

    def predict(self, cells: Cells) -> Predictions:
        """Implement `Predictor.predict`."""
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
            # Right or wrong: where no completion was right yet, the right answer is one that was not given.
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
        """Return the share of the strongest wrong answer among all but the best one [P, V].

        How often two wrong completions agree depends on the query (some mistakes are likely) and on the prompt (some
        prompts always make the same one). The two factors are measured apart: over all completions of a
        query, and over completions of one cell, prompt by prompt; each is shrunk to the typical one.
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


@dataclass(frozen=True, kw_only=True, eq=False)
class VoteModel:
    """A fitted model of votes.

    Attributes:
        cells: Everything that was drawn.
        traits: The fitted model of right answers, one event.
        top_share: Share of the strongest wrong answer among all but the best one [P, V].
        worth: Worth of the best answer of each query [V].
        rest: Mean worth of a completion without it [V].
    """

    cells: Cells
    traits: Traits
    top_share: FloatArray
    worth: FloatArray
    rest: FloatArray

    def stops(self, row: int, prompts: IntArray, max_n: int, *, exact: bool = False) -> StopEstimates:
        """Implement `FittedModel.stops` for every rule of `vote_tables`, for a first weight of 1."""
        traits, cells = of_prompts(self.traits, self.cells, prompts)
        tables = vote_tables(max_n, tuple(THETA.tolist()), tuple(TOP_SHARES.tolist()))
        shape = len(TOP_SHARES), len(THETA), 3 * len(tables.stops)
        table = np.concatenate([tables.gain, tables.completions, tables.waves], axis=1).reshape(shape)
        weights = share_weights(self.top_share[prompts])
        span = self.worth - self.rest

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


def share_weights(share: FloatArray) -> list[FloatArray]:
    """Return the weight of each point of the grid `TOP_SHARES`, so that tables are interpolated, each [P, V]."""
    low = np.clip(np.searchsorted(TOP_SHARES, share, side="right") - 1, 0, len(TOP_SHARES) - 2)
    high = (share - TOP_SHARES[low]) / (TOP_SHARES[low + 1] - TOP_SHARES[low])
    points = range(len(TOP_SHARES))
    return [np.where(low == j, 1.0 - high, 0.0) + np.where(low + 1 == j, high, 0.0) for j in points]


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
