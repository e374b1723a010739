"""The model of majority vote: a latent trait for the best answer, and how the other answers share the rest.

P(the best answer wins) follows at every scale from theta, the probability of the best answer in a cell, and from how
the other answers share the rest, which is measured by how often two wrong completions of a query, and of a prompt,
agree. Wrong answers then have shares r, r (1 - r), r (1 - r)^2, .. with r = 2 h / (1 + h), which makes two of them
agree with probability h. `traits.TraitModel` learns theta from all cells together; the reward is its expectation over
the posterior.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from iapo_dspy.bandit.cells import Ballots, Cells, ballots
from iapo_dspy.bandit.models.drawn_thetas import draw_thetas
from iapo_dspy.bandit.models.exact import majority_vote_rewards
from iapo_dspy.bandit.models.information import Knowledge
from iapo_dspy.bandit.models.port import CellPredictions, Simulated
from iapo_dspy.bandit.models.relatives import Relatives
from iapo_dspy.bandit.models.traits import (
    THETA,
    TraitModel,
    Traits,
    difficulties,
    drawn_cells,
    of_drawn,
    of_prompts,
)
from iapo_dspy.bandit.models.winning import Ties
from iapo_dspy.bandit.stopping.estimates import CellReadings, StopEstimates, corrected_stops
from iapo_dspy.bandit.stopping.replays import observed_votes
from iapo_dspy.bandit.stopping.vote_stops import vote_tables
from iapo_dspy.types import FloatArray, IntArray

TOP_SHARES = np.array([0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
_PSEUDO_PAIRS = 4.0
_BETWEEN = np.array([0.025])  # variance of own deviations and of effects in how often wrong completions agree
_AGREEMENT = 0.02, 0.98  # what parts may make of it
_RANKS = 4  # wrong answers that completions may agree on, as in the tables


class VotePredictor:
    """Predictions for majority vote; W = 1, for a first weight of 1.

    Args:
        n_prompts: P.
        max_n: N.
        floor: Score of a call without a vote.
        ties: See `Ties`.
        parts: The parts of each prompt [P, F], see `Problem.parts`.
    """

    def __init__(
        self,
        n_prompts: int,
        max_n: int,
        *,
        floor: float = 0.0,
        ties: Ties = "paper",
        parts: IntArray | None = None,
    ) -> None:
        self._floor = floor
        self._model = TraitModel(1, n_prompts, parts)
        self._relatives = None if parts is None else Relatives(1, parts, own=_BETWEEN, effects=_BETWEEN)
        self._table = _vote_table(max_n, ties)

    def predict(self, cells: Cells) -> CellPredictions:
        """Implement `Predictor.predict`."""
        votes = ballots(cells)
        best, worth, rest = self._answers(cells, votes)
        counted = np.concatenate([votes.votes, np.zeros((len(cells), 1), dtype=np.int64)], axis=1)
        right = counted[np.arange(len(cells)), best[cells.query]]
        traits = self._model.fit(cells.prompt, cells.query, cells.n_visited, right[None], cells.size)
        share = self._top_share(cells, votes, best)
        span = worth - rest
        drawn = np.empty((2, 1, len(cells), self._table.shape[2]))
        for mine in drawn_cells(traits, cells):
            query = cells.query[mine]
            for reading, law in zip(drawn[:, 0], of_drawn(traits, cells, mine), strict=False):
                wins = _interpolated(share[cells.prompt[mine], query], law[0], self._table)
                reading[mine] = rest[query, None] + span[query, None] * wins
        surface = VoteSurface(traits=traits, top_share=share, rest=rest, span=span, table=self._table)
        model = VoteModel(
            cells=cells,
            traits=traits,
            votes=votes,
            best=best,
            top_share=share,
            worth=worth,
            rest=rest,
            table=self._table,
        )
        return CellPredictions(elsewhere=(surface,), given_all=drawn[0], given_others=drawn[1], model=model)

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

    def _top_share(self, cells: Cells, votes: Ballots, best: IntArray) -> FloatArray:
        """Return the share of the strongest wrong answer among all but the best one [P, V].

        How often two wrong completions agree depends on the query (some mistakes are likely) and on the prompt (some
        prompts always make the same one). The two factors are measured apart: over all completions of a
        query, and over completions of one cell, prompt by prompt; each is shrunk to the typical one, or to what the
        prompt's parts make of it.
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
        expected, pseudo = own_typical, _PSEUDO_PAIRS
        if self._relatives is not None:
            free = np.bincount(cells.prompt, np.maximum(number - 1, 0), cells.n_prompts)
            rate = (own_agree / np.maximum(own_pairs, 1))[None, :, None]
            noise = np.where(free > 0, own_typical * (1.0 - own_typical) / np.maximum(free, 1), np.inf)[None, :, None]
            self._relatives.learn(rate, noise)
            expected = np.clip(self._relatives.blup(noise)(rate)[0, :, 0], *_AGREEMENT)
            pseudo = _PSEUDO_PAIRS / float(self._relatives.share[0, 0])
        of_prompt = (own_agree + pseudo * expected) / (own_pairs + pseudo)
        agreement = np.minimum(of_prompt[:, None] * (of_query / typical), 1.0)
        return np.asarray(2.0 * agreement / (1.0 + agreement))


@dataclass(frozen=True, kw_only=True, eq=False)
class VoteSurface:
    """Predictions for cells without draws; see `models.surfaces.Surface`.

    Attributes:
        traits: The fitted model of right answers, one event.
        top_share: Share of the strongest wrong answer among all but the best one [P, V].
        rest: Mean worth of a completion without the best answer [V].
        span: Worth of the best answer beyond that [V].
        table: P(the best answer wins) by top share of the others and theta [R, T, N].
    """

    traits: Traits
    top_share: FloatArray
    rest: FloatArray
    span: FloatArray
    table: FloatArray

    @cached_property
    def _difficulties(self) -> FloatArray:
        return np.asarray(difficulties(self.traits)[0])

    def block(self, prompts: IntArray) -> FloatArray:
        """Implement `Surface.block`."""
        out = np.empty((len(prompts), len(self.rest), self.table.shape[2]))
        for wins, p in zip(out, prompts.tolist(), strict=True):
            wins[:] = _interpolated(self.top_share[p], self._difficulties, self.traits.law[0, p] @ self.table)
            wins *= self.span[:, None]
            wins += self.rest[:, None]
        return out

    def at(self, prompts: IntArray, scales: IntArray) -> FloatArray:
        """Implement `Surface.at`."""
        low, high = _between(self.top_share[prompts])
        wins = np.zeros(low.shape)
        for j in range(int(low.min()), int(low.max()) + 2):
            by_difficulty = (self.traits.law[0, prompts] @ self.table[j].T[scales - 1, :, None])[:, :, 0]  # [M, D]
            weight = np.where(low == j, 1.0 - high, np.where(low + 1 == j, high, 0.0))
            wins += weight * (by_difficulty @ self._difficulties.T)
        return np.asarray(self.rest + self.span * wins)


@dataclass(frozen=True, kw_only=True, eq=False)
class VoteModel:
    """A fitted model of votes.

    Attributes:
        cells: Everything that was drawn.
        traits: The fitted model of right answers, one event.
        votes: The votes of the cells.
        best: Each query's best answer [V]; the number of answers where nobody has given it.
        top_share: Share of the strongest wrong answer among all but the best one [P, V].
        worth: Worth of the best answer of each query [V].
        rest: Mean worth of a completion without it [V].
        table: P(the best answer wins) by top share of the others and theta [R, T, N].
    """

    cells: Cells
    traits: Traits
    votes: Ballots
    best: IntArray
    top_share: FloatArray
    worth: FloatArray
    rest: FloatArray
    table: FloatArray

    def knowledge(self, row: int) -> Knowledge:
        """Implement `Informed.knowledge`; a prompt's other answers share the rest as on its mean query."""
        low, high = _between(self.top_share.mean(axis=1))
        span = float((self.worth - self.rest).mean())

        def worth(prompts: IntArray, scales: IntArray) -> FloatArray:
            at, weight = low[prompts], high[prompts, None]
            below, above = self.table[at, :, scales - 1], self.table[at + 1, :, scales - 1]
            return np.asarray(span * ((1.0 - weight) * below + weight * above))[None]

        return Knowledge(traits=self.traits, cells=self.cells, worth=worth)

    def stops(self, row: int, prompts: IntArray, max_n: int, *, exact: bool = False) -> StopEstimates:
        """Implement `FittedModel.stops` for every rule of `vote_tables`, for a first weight of 1."""
        traits, cells = of_prompts(self.traits, self.cells, prompts)
        tables = vote_tables(max_n, tuple(THETA.tolist()), tuple(TOP_SHARES.tolist()))
        shape = len(TOP_SHARES), len(THETA), 3 * len(tables.stops)
        table = np.concatenate([tables.gain, tables.completions, tables.waves], axis=1).reshape(shape)
        span, share = self.worth - self.rest, self.top_share[prompts]
        low, high = _between(share)
        difficulty = difficulties(traits)[0]
        # Linear in the posterior of the difficulty, so that its mean over the queries is enough: with the gain weighted
        # by what is at stake, and without.
        sums = np.zeros((2, len(prompts), shape[2]))
        for j in range(int(low.min()), int(low.max()) + 2):
            weight = np.where(low == j, 1.0 - high, np.where(low + 1 == j, high, 0.0))
            by_theta = traits.law[0] @ table[j]  # [Q, D, 3 M]
            for total, w in zip(sums, (weight * span, weight), strict=True):
                total += ((w @ difficulty)[:, None] @ by_theta)[:, 0]
        parts = sums.reshape(2, len(prompts), 3, -1)
        total = np.stack([parts[0, :, 0], parts[1, :, 1], parts[1, :, 2]])

        def says() -> Iterator[CellReadings]:
            for mine in drawn_cells(traits, cells, shape[2]):
                query = cells.query[mine]
                found = []
                for law in of_drawn(traits, cells, mine):
                    reading = _interpolated(share[cells.prompt[mine], query], law[0], table)
                    reading = reading.reshape(len(mine), 3, -1).transpose(1, 0, 2)
                    reading[0] *= span[query, None]
                    found.append(reading)
                yield CellReadings(mine, *found)

        observed = observed_votes(cells, tables.stops)
        return corrected_stops(total, says(), observed, cells, prompts, tables.stops, float(np.abs(span).max()))

    def simulate(self, row: int, prompts: IntArray, n: int, copies: int, rng: np.random.Generator) -> Simulated:
        """Implement `Simulates.simulate`.

        A completion gives the best answer with the probability theta of its row. The others share the rest as in the
        module's text; which answer is the strongest, the second, and so on is drawn from the answers that were given on
        the query, above all by the prompt itself, and from new ones. Prompts draw the same order of answers as often as
        their wrong completions were seen to agree.
        """
        votes, cells = self.votes, self.cells
        theta = draw_thetas(self.traits, cells, prompts, copies, rng)[0]
        n_answers = votes.seen.shape[1]
        query = np.repeat(np.arange(cells.n_visited), copies)
        wrong = votes.seen * (np.arange(n_answers) != self.best[:, None])
        own = votes.votes * (np.arange(n_answers) != self.best[cells.query][:, None])
        silent = self._silent(own)
        alike = self._alike(wrong, own)
        names = n_answers + 1 + _RANKS  # answers that were given, the best one, and new ones
        credit = np.concatenate(
            [np.where(votes.seen > 0, votes.credit, self.rest[:, None]), np.tile(self.rest[:, None], _RANKS + 2)],
            axis=1,
        )
        credit[np.arange(len(credit)), self.best] = self.worth
        luck = rng.normal(size=(len(query), names))
        shape = len(prompts), len(query), n
        label, value = np.empty(shape, dtype=np.int64), np.empty(shape)
        fresh = np.full(len(query), names)  # the next answer of each row that nobody has given
        for i, p in enumerate(prompts.tolist()):
            share = self.top_share[p]
            agree = np.minimum(share / (2.0 - share) / (1.0 - silent[p]) ** 2, 1.0)
            ratio = np.clip(2.0 * agree / (1.0 + agree), 1e-6, 1.0 - 1e-12)[query, None]
            _, mine = cells.of_prompts(np.array([p]))
            weight = np.zeros((cells.n_visited, names))
            weight[:, :n_answers] = alike * wrong
            weight[cells.query[mine], :n_answers] += (1.0 - alike) * own[mine]
            weight[:, n_answers + 1 :] = np.maximum((1.0 - agree) / agree / _RANKS, 1e-3)[:, None]
            alone = rng.random(len(query)) >= alike
            normal = np.where(alone[:, None], rng.normal(size=luck.shape), luck)
            order = np.argsort(-_shares(weight[query], normal), axis=1)[:, :_RANKS]
            # One uniform number decides: the best answer, no vote, or how strong the wrong answer is.
            u = rng.random((len(query), n))
            right = u < theta[i][:, None]
            u = np.where(right, 0.0, (u - theta[i][:, None]) / (1.0 - theta[i][:, None]))
            mute = ~right & (u < silent[p])
            u = np.clip((u - silent[p]) / (1.0 - silent[p]), 0.0, 1.0 - 1e-12)
            rank = np.floor(np.log1p(-u) / np.log1p(-ratio)).astype(np.int64)
            rare = rank >= _RANKS  # nobody else gives it
            named = np.take_along_axis(order, np.minimum(rank, _RANKS - 1), axis=1)
            named = np.where(right, self.best[query, None], np.where(rare, names, named))
            value[i] = credit[query[:, None], named]
            rare &= ~right & ~mute
            number = np.cumsum(rare, axis=1) + fresh[:, None]
            label[i] = np.where(mute, -1, np.where(rare, number - 1, named))
            fresh = number[:, -1]
        return Simulated(label, value)

    def _silent(self, own: IntArray) -> FloatArray:
        """Return the share of completions without a vote among those without the best answer, prompt by prompt [P]."""
        cells = self.cells
        silent = np.bincount(cells.prompt, self.votes.silent, cells.n_prompts)
        number = silent + np.bincount(cells.prompt, own.sum(axis=1), cells.n_prompts)
        typical = silent.sum() / max(float(number.sum()), 1.0)
        return np.asarray(np.minimum((silent + typical) / (number + 1.0), 0.999))

    def _alike(self, wrong: IntArray, own: IntArray) -> float:
        """Return how much more seldom wrong completions of different prompts agree than those of one, in [0, 1]."""
        total, cell = wrong.sum(axis=1), own.sum(axis=1)
        within, pairs_within = float((own * (own - 1)).sum()), float((cell * (cell - 1)).sum())
        across = float((wrong * (wrong - 1)).sum()) - within
        pairs_across = float((total * (total - 1)).sum()) - pairs_within
        if not pairs_across:
            return 1.0
        inside = (within + _PSEUDO_PAIRS * 0.5) / (pairs_within + _PSEUDO_PAIRS)
        return min(across / pairs_across / inside, 1.0)


def _shares(weight: FloatArray, normal: FloatArray) -> FloatArray:
    """Return about the shares that a Dirichlet law of these weights gives to such normal numbers, times any factor.

    A gamma variable's cube root is nearly normal (Wilson and Hilferty 1931). Weights of 0 come last.
    """
    known = np.maximum(weight, 1e-9)
    share = weight * np.maximum(1.0 - 1.0 / (9.0 * known) + normal / (3.0 * np.sqrt(known)), 0.0) ** 3
    return np.where(weight > 0.0, share + 1e-9 * np.exp(normal), -1.0)


def _between(share: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return the point of the grid `TOP_SHARES` below each share, and the weight of the next one."""
    low = np.clip(np.searchsorted(TOP_SHARES, share, side="right") - 1, 0, len(TOP_SHARES) - 2)
    return low, (share - TOP_SHARES[low]) / (TOP_SHARES[low + 1] - TOP_SHARES[low])


def _interpolated(share: FloatArray, law: FloatArray, table: FloatArray) -> FloatArray:
    """Return the expectation of tables under laws, interpolated between top shares [M, N].

    Args:
        share: Top share of each law [M].
        law: Laws [M, T].
        table: Functions by top share [R, T, N].
    """
    low, high = _between(share)
    out = np.empty((len(law), table.shape[2]))
    weighted = np.concatenate([law * (1.0 - high)[:, None], law * high[:, None]], axis=1)
    for j in np.unique(low).tolist():
        mine = np.flatnonzero(low == j)
        out[mine] = weighted[mine] @ np.concatenate([table[j], table[j + 1]])
    return out


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
