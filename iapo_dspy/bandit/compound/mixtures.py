"""Mixtures: the N completions of a call shared among prompts, and one vote over all of them.

Prompts that err on different queries, or make different mistakes, gain from each other. The best mixture of N
completions is found greedily: all N of the best prompt to begin with, then a quarter of N at a time is moved to the
prompt where that brings most, as long as it brings something. Mixtures are valued on sequences of completions
(`known`), each once per query.

A mixture that is tuned and valued on the same queries looks better than it is, and so does the best of many prompts. So
both are cross-fitted: each fold of queries is valued by the mixture that is best on the others, and compared with the
prompt that is best on the others at the same N. Most prompts of one LM err together, and then there is nothing to gain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.compound.cascades import Allowed, ArmPrices, Offer
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import Part, Sequences
from iapo_dspy.types import Arm, FloatArray, Share

FOLDS = 5
MOST = 3  # prompts of a mixture
_UNITS = 4  # a call's completions move between prompts in so many equal parts
_MOVES = 6  # at most
_AT_ONCE = 1 << 16  # completions on which a mixture is valued, about: its queries matter more than their rows

Counts = tuple[int, ...]
"""Completions of each prompt of the sequences [Q]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture(Offer):
    """The best mixture of N completions.

    Attributes:
        beside: The best arm of one prompt with as many completions, tuned on all queries.
        reward: Reward of the mixture minus that of such an arm on each query [V], both cross-fitted.
    """

    beside: Arm
    reward: FloatArray


class Mixtures:
    """Mixtures of some prompts under one row of objective weights.

    Args:
        sequences: Completions of the prompts; rows of one query are neighbours, in the order of queries.
        level: What the run's estimates say of the reward of each prompt at each scale [P, N]. The sequences are
            corrected by the difference, so that both agree on arms of one prompt; a mixture takes its share of each of
            its prompts' differences.
        seed: Seed of the folds.
    """

    def __init__(self, sequences: Sequences, level: FloatArray, seed: int = 0) -> None:
        self.sequences = sequences
        self._level = level
        self._known: dict[Counts, FloatArray] = {}
        self._shifts: dict[tuple[int, int], float] = {}
        self._rows: dict[int, Sequences] = {}
        order = np.random.default_rng([seed, sequences.n_queries]).permutation(sequences.n_queries)
        self._fold = order % FOLDS

    def best(
        self, n: int, tuned: ArmPrices, paid: ArmPrices, single: Arm | None = None, allowed: Allowed | None = None
    ) -> Mixture | None:
        """Return the best mixture of n completions.

        Args:
            n: Completions of a call, at most those of a row.
            tuned: Prices by which mixtures are compared; each prompt of a mixture is a wave.
            paid: Prices by which the mixture is valued.
            single: The arm of one prompt that `Offer.difference` compares with; None: `Mixture.beside`.
            allowed: Whether an arm keeps the caps of the context; None: there are none.

        Returns:
            The mixture; None where none is better than its best prompt even on the queries that it is tuned on.
        """
        everyone = np.ones(self.sequences.n_queries, dtype=bool)
        search = _Search(mixtures=self, n=n, prices=tuned, allowed=allowed)
        beside, chosen = search.best(everyone)
        if beside is None or chosen is None or beside == chosen:
            return None
        reward, value = np.empty((2, len(everyone)))
        for fold in np.unique(self._fold).tolist():
            mine = self._fold == fold
            alone, mixed = search.best(~mine)
            assert alone is not None
            assert mixed is not None
            reward[mine] = (self.by_query(mixed) - self.by_query(alone))[mine]
            value[mine] = self.by_query(mixed)[mine] - self.price(mixed, paid)
        arm, other = self.arm(chosen), self.arm(beside)
        difference = value - self._worth(single or other, paid)
        return Mixture(arm=arm, difference=difference, played=play(arm, self.sequences), beside=other, reward=reward)

    def by_query(self, counts: Counts) -> FloatArray:
        """Return the reward on each query [V] of a call with so many completions of each prompt of the sequences."""
        if counts not in self._known:
            sequences = self._thinned(sum(counts))
            parts = [Part(int(p), 0, m) for p, m in zip(sequences.prompts, counts, strict=True) if m]
            shift = sum(part.end / sum(counts) * self._shift(part.prompt, sum(counts)) for part in parts)
            self._known[counts] = sequences.by_query(sequences.reward(parts)) + shift
        return self._known[counts]

    def price(self, counts: Counts, prices: ArmPrices) -> float:
        """Return the price of such a call."""
        drawn = np.array(counts)
        return float((drawn > 0) @ prices.fixed[self.sequences.prompts] + drawn @ prices.each[self.sequences.prompts])

    def arm(self, counts: Counts) -> Arm:
        """Return the arm; the prompt with most completions comes first."""
        pairs = zip(self.sequences.prompts.tolist(), counts, strict=True)
        first, *others = sorted(((m, p) for p, m in pairs if m), key=lambda pair: (-pair[0], pair[1]))
        return Arm(first[1], first[0], beside=tuple(Share(prompt=p, n=m) for m, p in others))

    def _shift(self, prompt: int, n: int) -> float:
        """Return the estimated reward of all n completions of one prompt, minus that on the sequences."""
        if (prompt, n) not in self._shifts:
            level = float(self._level[prompt, n - 1])
            known = float(self._thinned(n).reward([Part(prompt, 0, n)]).mean())
            self._shifts[prompt, n] = level - known if np.isfinite(level) else 0.0
        return self._shifts[prompt, n]

    def _thinned(self, n: int) -> Sequences:
        """Return some of the rows of every query, the same ones for all mixtures of n completions."""
        if n not in self._rows:
            sequences = self.sequences
            copy = np.arange(len(sequences)) - np.searchsorted(sequences.query, sequences.query)
            kept = copy % max(len(sequences) * n // _AT_ONCE, 1) == 0
            self._rows[n] = replace(
                sequences,
                label=sequences.label[:, kept, :n],
                score=sequences.score[:, kept, :n],
                query=sequences.query[kept],
            )
        return self._rows[n]

    def _worth(self, single: Arm, paid: ArmPrices) -> FloatArray:
        """Return the utility of an arm of one prompt on each query [V]."""
        sequences = self._thinned(single.n)
        played = play(single, sequences)
        worth = sequences.by_query(played.reward - paid.of(sequences.prompts, played))
        return worth + self._shift(single.prompt, single.n)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Search:
    """A greedy search for the best mixture of n completions at some prices."""

    mixtures: Mixtures
    n: int
    prices: ArmPrices
    allowed: Allowed | None

    def best(self, queries: NDArray[np.bool_]) -> tuple[Counts | None, Counts | None]:
        """Return the best prompt alone and the best mixture on these queries; None where caps allow nothing."""
        many = len(self.mixtures.sequences.prompts)
        singles = [tuple(self.n * (q == p) for q in range(many)) for p in range(many)]
        alone, value = self._best_of(singles, queries)
        if alone is None:
            return None, None
        mixed = alone
        for _ in range(_MOVES):
            moved, better = self._best_of(self._moves(mixed), queries)
            if moved is None or better <= value:
                break
            mixed, value = moved, better
        return alone, mixed

    def _best_of(self, options: list[Counts], queries: NDArray[np.bool_]) -> tuple[Counts | None, float]:
        """Return the best of some options and its utility, the first of equals."""
        best, most = None, -np.inf
        for counts in options:
            if self.allowed is None or self.allowed(self.mixtures.arm(counts)):
                value = float(self.mixtures.by_query(counts)[queries].mean()) - self.mixtures.price(counts, self.prices)
                if value > most:
                    best, most = counts, value
        return best, most

    def _moves(self, counts: Counts) -> list[Counts]:
        """Return what becomes of a mixture when one part of its completions goes to another prompt."""
        found = []
        for giver, has in enumerate(counts):
            part = min(max(self.n // _UNITS, 1), has)
            for taker, already in enumerate(counts):
                if part and taker != giver:
                    moved = list(counts)
                    moved[giver], moved[taker] = has - part, already + part
                    if np.count_nonzero(moved) <= MOST:
                        found.append(tuple(moved))
        return found
