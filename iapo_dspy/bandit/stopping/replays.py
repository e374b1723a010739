"""Stopped calls replayed on sequences of completions, many sequences and rules at a time.

The rules of a deployed call (`rules.reached`, `Settles.settled`) are applied here to rows of completions: rows drawn
from a known law to value an arm, or permuted draws of a cell, which show without bias how stopping would have gone. A
vote that is tied goes to the answer that was drawn first, as in a deployed call, so that a call that ends because the
rest cannot change it ends with the very answer of all N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.stopping.rules import votes_needed
from iapo_dspy.types import FloatArray, IntArray, Stop

ORDERS = 8  # random orders of each cell's draws


class Ended(NamedTuple):
    """How stopped calls ended, one entry per sequence and rule.

    Attributes:
        gain: Reward at the stop minus that of all N completions [S, O].
        completions: Completions drawn [S, O].
        waves: Waves drawn [S, O].
    """

    gain: FloatArray
    completions: FloatArray
    waves: FloatArray


Replay = Callable[[IntArray, tuple[Stop, ...]], Ended]
"""(positions of completions in their order of drawing [S, n], options [M]) -> how the calls ended."""


class VoteTally:
    """Running votes of many sequences.

    Args:
        label: Answers in the order of drawing [S, n], 0 .. A - 1; -1 is not a vote.
        n_answers: A.
    """

    def __init__(self, label: IntArray, n_answers: int) -> None:
        self._label = label
        self._n_answers = n_answers
        self._size = label.shape[1]
        rows = np.arange(len(label))
        self._first = np.full((len(label), n_answers), self._size, dtype=np.int64)
        for i in range(self._size - 1, -1, -1):
            voted = label[:, i] >= 0
            self._first[rows[voted], label[voted, i]] = i
        self._known: dict[int, tuple[IntArray, IntArray, IntArray, IntArray]] = {}

    def at(self, k: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Return after k completions: leader [S] (-1: there is none), its votes, the runner-up's, and all ranks [S, A].

        An answer's rank grows with its votes, and among equals with how early it was drawn.
        """
        if k not in self._known:
            drawn = self._label[:, :k]
            votes = np.stack([(drawn == a).sum(axis=1) for a in range(self._n_answers)], axis=1)
            rank = votes * (self._size + 1) + (self._size - self._first)
            leader = rank.argmax(axis=1)
            top = np.sort(votes, axis=1)[:, ::-1]
            second = top[:, 1] if self._n_answers > 1 else np.zeros(len(votes), dtype=np.int64)
            self._known[k] = np.where(top[:, 0] > 0, leader, -1), top[:, 0], second, rank
        return self._known[k]

    def settled(self, k: int, n: int) -> NDArray[np.bool_]:
        """Return where the completions from k to n cannot change the leader [S]."""
        leader, _, _, rank = self.at(k)
        seen = rank > self._size  # at least one vote
        own = np.where(leader >= 0, rank[np.arange(len(rank)), np.maximum(leader, 0)], -1)
        left = (n - k) * (self._size + 1)
        rivals = np.where(seen, rank + left, 0)
        rivals[np.arange(len(rank)), np.maximum(leader, 0)] = 0
        unseen = left + self._size - k  # an answer that is not there yet comes later than all others
        return np.asarray((leader >= 0) & (rivals.max(axis=1) < own) & (unseen < own))


def vote_ends(tally: VoteTally, credit: FloatArray, stops: Sequence[Stop], floor: float = 0.0) -> Ended:
    """Replay stopped majority votes.

    Args:
        tally: The votes of S sequences, at least as long as every rule's N.
        credit: Score of each answer [S, A].
        stops: The rules; a call also stops where its vote is settled.
        floor: Score of a call without a vote.
    """
    size = len(credit)
    rows = np.arange(size)

    def score(leader: IntArray) -> FloatArray:
        return np.where(leader >= 0, credit[rows, np.maximum(leader, 0)], floor)

    out = np.empty((3, size, len(stops)))
    for o, stop in enumerate(stops):
        n = stop.waves[-1]
        full = tally.at(n)[0]
        leader, going = full.copy(), np.ones(size, dtype=bool)
        completions, waves = np.full(size, float(n)), np.full(size, float(len(stop.waves)))
        for wave, k in enumerate(stop.waves[:-1], 1):
            ahead, votes, second, _ = tally.at(k)
            ends = tally.settled(k, n)
            if stop.confidence is not None:
                ends = ends | (votes >= votes_needed(n, stop.confidence)[second])
            ends &= going
            leader[ends], completions[ends], waves[ends] = ahead[ends], k, wave
            going &= ~ends
        out[:, :, o] = score(leader) - score(full), completions, waves
    return Ended(*out)


def best_of_ends(value: FloatArray, stops: Sequence[Stop], floor: float = 0.0) -> Ended:
    """Replay stopped calls of Best-of-N.

    Args:
        value: Weighted scores in the order of drawing [S, n], -inf for failed completions.
        stops: The rules.
        floor: Value where every completion failed.
    """
    best = np.maximum.accumulate(value, axis=1)
    out = np.empty((3, len(value), len(stops)))
    for o, stop in enumerate(stops):
        at = np.array(stop.waves)
        reached = best[:, at - 1] >= (math.inf if stop.threshold is None else stop.threshold)
        reached[:, -1] = True
        wave = reached.argmax(axis=1)
        stopped, full = best[np.arange(len(value)), at[wave] - 1], best[:, at[-1] - 1]
        gain = np.where(np.isneginf(stopped), floor, stopped) - np.where(np.isneginf(full), floor, full)
        out[:, :, o] = gain, at[wave], wave + 1
    return Ended(*out)


def observed_votes(cells: Cells, stops: tuple[Stop, ...]) -> FloatArray:
    """Replay votes on random orders of each cell's own draws.

    Returns:
        Gain, completions and waves [3, G, M]; NaN where a cell has fewer completions than the option's N.
    """

    def replay(index: IntArray, options: tuple[Stop, ...]) -> Ended:
        label = np.where(cells.failed, -1, cells.label)[index]
        dense, credit = numbered_answers(label, cells.score[index, 0])
        return vote_ends(VoteTally(dense, credit.shape[1]), credit, options)

    return replayed(cells, stops, replay)


def observed_best_of(cells: Cells, value: FloatArray, stops: tuple[Stop, ...], floor: float) -> FloatArray:
    """Replay Best-of-N on random orders of each cell's own draws; the same result as of `observed_votes`.

    Args:
        cells: The completions.
        value: Their weighted scores [S].
        stops: The options [M].
        floor: Value where every completion failed.
    """
    value = np.where(cells.failed, -np.inf, value)
    return replayed(cells, stops, lambda index, options: best_of_ends(value[index], options, floor))


def replayed(cells: Cells, stops: tuple[Stop, ...], replay: Replay) -> FloatArray:
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
        for i, part in enumerate(ended):
            out[i, members[:, None], able] = part.reshape(len(members), ORDERS, -1).mean(axis=1)
    return out


def numbered_answers(label: IntArray, score: FloatArray) -> tuple[IntArray, FloatArray]:
    """Number each row's answers from 0 [S, n] and return each one's mean score in the row [S, A]."""
    ascending = np.sort(label, axis=1)
    new = np.diff(ascending, axis=1, prepend=-1) > 0  # -1 is not an answer
    rank = np.where(ascending >= 0, np.cumsum(new, axis=1) - 1, -1)
    dense = np.empty_like(label)
    np.put_along_axis(dense, np.argsort(label, axis=1, kind="stable"), rank, axis=1)
    n_answers = max(int(dense.max(initial=0)) + 1, 1)
    row, at = np.nonzero(dense >= 0)
    flat = row * n_answers + dense[row, at]
    count = np.bincount(flat, minlength=len(label) * n_answers)
    total = np.bincount(flat, weights=score[row, at], minlength=len(count))
    return dense, (total / np.maximum(count, 1)).reshape(len(label), n_answers)
