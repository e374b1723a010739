"""Costs and savings of votes that stop early, by the model behind the predictions: tables over its parameters.

A completion is right (probability theta), gives the strongest wrong answer (share r of the rest), the second
strongest (share r (1 - r)), or something else, which no other completion gives. Votes for the four are multinomial, and
whatever their law is, given their counts after k completions every order is equally likely. So

    P(the call ends after wave k with counts s) = P(counts s after k) * P(a random order of s passes no earlier stop),

where the second factor is free of theta and r. It follows from one completion to the next: the last one of a random
order is of kind i with probability s_i / k. The gain is therefore exact. Completions and waves are exact up to one
detail, which moves completions by 2 % at most: whether a rival that could still draw level was drawn before the leader,
which decides whether the vote is settled, is taken to be independent of earlier stops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.stopping.rules import exact_waves, tuned_scales, tuned_vote_stops, votes_needed
from iapo_dspy.types import FloatArray, IntArray, Stop

_KINDS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class VoteTables:
    """Stopped votes by option and by the law of a completion; L laws, M options.

    Attributes:
        stops: The options [M]; the last wave of each is its N.
        gain: P(the right answer wins) minus that of all N completions [L, M].
        completions: Expected completions [L, M].
        waves: Expected waves [L, M].
    """

    stops: tuple[Stop, ...]
    gain: FloatArray
    completions: FloatArray
    waves: FloatArray


@lru_cache(maxsize=8)
def vote_tables(max_n: int, theta: tuple[float, ...], shares: tuple[float, ...]) -> VoteTables:
    """Return the tables of all options up to `max_n`: exact waves at every scale, confidence rules at some.

    Args:
        max_n: Largest scale.
        theta: Grid of success probabilities [T].
        shares: Grid of top shares [R].

    Returns:
        Tables whose L axis is shares, then theta: R * T laws.
    """
    share, success = (a.reshape(-1) for a in np.meshgrid(shares, theta, indexing="ij"))
    wrong = 1.0 - success
    law = np.stack([success, wrong * share, wrong * share * (1 - share), wrong * (1 - share) ** 2], axis=1)
    parts = [stopped_votes(law, tuned_vote_stops(n)) for n in tuned_scales(max_n)]
    exact = [Stop(waves=exact_waves(n)) for n in range(2, max_n + 1)]
    first = np.array([s.waves[0] for s in exact])
    size = np.array([s.waves[-1] for s in exact])
    settled = _unanimous(law, first, size)
    gain = np.concatenate([np.zeros(settled.shape), *(p.gain for p in parts)], axis=1)
    completions = np.concatenate([size - settled * (size - first), *(p.completions for p in parts)], axis=1)
    waves = np.concatenate([2.0 - settled, *(p.waves for p in parts)], axis=1)
    for table in (gain, completions, waves):
        table.setflags(write=False)
    stops = (*exact, *(stop for p in parts for stop in p.stops))
    return VoteTables(stops=stops, gain=gain, completions=completions, waves=waves)


def _unanimous(law: FloatArray, first: IntArray, size: IntArray) -> FloatArray:
    """Return P(a vote of N is settled after half of it) [L, M]: all of the first wave agree, nearly.

    Where N is odd the first wave has one vote to spare, which may be for a rare answer.
    """
    settled = np.zeros((len(law), len(first)))
    for kind in range(_KINDS - 1):
        p = law[:, kind, None]
        settled += p**first
        settled += np.where(size % 2 == 1, first * p ** (first - 1) * law[:, -1:], 0.0) * (first > 1)
    return settled


def stopped_votes(law: FloatArray, stops: tuple[Stop, ...]) -> VoteTables:
    """Return what stopped votes of one N do.

    Args:
        law: Probabilities of the right answer, two wrong ones, and of answers that are given once [L, 4].
        stops: The options [M]; all have the same last wave N.
    """
    n = stops[0].waves[-1]
    alive = np.ones((1, len(stops)))  # P(a random order passes no stop), by state and option
    shape = len(law), len(stops)
    reward, completions, waves = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    wave = np.zeros(len(stops), dtype=np.int64)
    for k in range(1, n + 1):
        states = _States.of(k)
        before = np.concatenate([alive, np.zeros((1, len(stops)))])  # the last row: no such state
        alive = np.zeros((len(states.counts), len(stops)))
        for kind in range(_KINDS):
            alive += states.counts[:, kind, None] / k * before[states.without[:, kind]]
        due = np.array([k in stop.waves for stop in stops])
        if not due.any():
            continue
        wave += due
        ends = alive * _ends(states, stops, n, due)
        alive -= ends
        probability = states.probability(law)
        reward += probability @ (ends * states.credit[:, None])
        ended = probability @ ends
        completions += k * ended
        waves += wave * ended
    full = probability @ states.credit
    return VoteTables(stops=stops, gain=reward - full[:, None], completions=completions, waves=waves)


def _ends(states: _States, stops: tuple[Stop, ...], n: int, due: NDArray[np.bool_]) -> FloatArray:
    """Return P(a call ends here) by state and option [S, M]: 0 or 1 but where the order decides."""
    k = int(states.counts[0].sum())
    if k == n:
        return np.ones((len(states.counts), len(stops)))
    votes = np.sort(states.counts[:, : _KINDS - 1], axis=1)[:, ::-1]
    left = n - k
    settled = np.where(votes[:, 0] >= left, 1.0, 0.0)
    for rival in range(1, _KINDS - 1):
        ahead = votes[:, 0] - votes[:, rival] - left
        # A rival that draws level wins if it was drawn first.
        level = np.where(votes[:, rival] > 0, votes[:, 0] / np.maximum(votes[:, 0] + votes[:, rival], 1), 1.0)
        settled = settled * np.where(ahead > 0, 1.0, np.where(ahead == 0, level, 0.0))
    out = np.zeros((len(votes), len(stops)))
    for o in np.flatnonzero(due).tolist():
        confidence = stops[o].confidence
        sure = 0.0 if confidence is None else votes[:, 0] >= votes_needed(n, confidence)[votes[:, 1]]
        out[:, o] = np.maximum(settled, sure)
    return out


@dataclass(frozen=True, kw_only=True, eq=False)
class _States:
    """Counts of the four kinds after k completions.

    Attributes:
        counts: All counts that sum to k [S, 4].
        without: Position after k - 1 completions of the state with one fewer of each kind [S, 4]; -1: there is none.
        credit: P(the right answer wins such a vote), ties shared [S].
        ways: Log of the number of orders [S].
    """

    counts: IntArray
    without: IntArray
    credit: FloatArray
    ways: FloatArray

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, k: int) -> _States:
        """Enumerate the states after k completions."""
        counts = _simplex(k)
        places = np.full((k + 2,) * (_KINDS - 1), -1, dtype=np.int64)  # an index of -1 finds the last entry: -1
        earlier = _simplex(k - 1)
        places[tuple(earlier[:, : _KINDS - 1].T)] = np.arange(len(earlier))
        without = np.empty_like(counts)
        for kind in range(_KINDS):
            fewer = counts.copy()
            fewer[:, kind] -= 1
            found = places[tuple(fewer[:, : _KINDS - 1].T)]
            without[:, kind] = np.where(fewer[:, kind] >= 0, found, -1)
        named = counts[:, : _KINDS - 1]
        top = named.max(axis=1)
        tied = (named == top[:, None]).sum(axis=1)
        factorial = np.array([math.lgamma(i + 1) for i in range(k + 1)])
        return cls(
            counts=counts,
            without=without,
            credit=np.where((top > 0) & (named[:, 0] == top), 1.0 / tied, 0.0),
            ways=factorial[k] - factorial[counts].sum(axis=1),
        )

    def probability(self, law: FloatArray) -> FloatArray:
        """Return the probability of each state [L, S]."""
        log = np.log(np.maximum(law, 1e-300)) @ self.counts.T.astype(float)
        return np.asarray(np.exp(log + self.ways))


def _simplex(k: int) -> IntArray:
    """Return all counts >= 0 of the four kinds that sum to k [S, 4]."""
    axes = np.meshgrid(*(np.arange(k + 1),) * (_KINDS - 1), indexing="ij")
    named = np.stack([a.reshape(-1) for a in axes], axis=1)
    rest = k - named.sum(axis=1)
    return np.asarray(np.column_stack([named, rest])[rest >= 0])
