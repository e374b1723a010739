"""When a deployed call has drawn enough: waves, and the rules that are looked at after each of them.

Majority vote, with a and b votes for the two leading answers: stop once P(Beta(a + 1, b + 1) > 1/2) reaches a
confidence. The identity P(Beta(a + 1, b + 1) > 1/2) = P(Binomial(a + b + 1, 1/2) <= a) makes it a finite sum.

Best-of-N: stop once the best weighted objective reaches a threshold.

Which rules are on offer: two waves that end where the vote is settled (`exact_waves`), and for some scales doubling
waves with a confidence (`tuned_vote_stops`) or a threshold (`threshold_stops`). Doubling costs at most about twice the
completions that looking after each one would, in log2(N) waves instead of N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from iapo_dspy.types import IntArray, Stop

CONFIDENCES = (0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
FIRST_WAVES = (2, 3)  # a vote of one settles nothing, and two that disagree need a third
FIRST_DRAWS = (1, 4)  # Best-of-N: a single completion may do; four at once wait for fewer waves
MOST_TUNED = 64  # largest scale that rules are tuned for
_EVERY_SCALE = 8  # up to here rules are tuned for every scale, above for four between two powers of two


@lru_cache(maxsize=4096)
def beta_confidence(a: int, b: int) -> float:
    """Return P(Beta(a + 1, b + 1) > 1/2): the confidence that an answer with a votes is ahead of one with b."""
    trials = a + b + 1
    return float(sum(math.comb(trials, i) for i in range(a + 1)) / 2**trials)


@lru_cache(maxsize=256)
def votes_needed(n: int, confidence: float) -> IntArray:
    """Return how many votes the leader needs for this confidence, by votes of the runner-up 0 .. n [n + 1].

    n + 1 where n votes are too few.
    """
    needed = np.full(n + 1, n + 1, dtype=np.int64)
    for b in range(n + 1):
        needed[b] = next((a for a in range(b + 1, n - b + 1) if beta_confidence(a, b) >= confidence), n + 1)
    needed.setflags(write=False)
    return needed


def exact_waves(n: int) -> tuple[int, ...]:
    """Return two waves of a vote of n: the fewest completions that can settle it, and the rest.

    Half of them settle it if all agree: a later answer that draws level loses the tie, for it was drawn later.
    """
    first = (n + 1) // 2
    return (first, n) if first < n else (n,)


def doubling_waves(first: int, n: int) -> tuple[int, ...]:
    """Return waves that end at first, 2 first, 4 first, .. and at n."""
    ends = []
    while first < n:
        ends.append(first)
        first *= 2
    return (*ends, n)


def tuned_scales(max_n: int) -> tuple[int, ...]:
    """Return the scales that rules are tuned for: 3 .. 8, four between powers of two up to 64, and `max_n` up to 64."""
    scales = set(range(3, _EVERY_SCALE + 1))
    power = _EVERY_SCALE
    while power < MOST_TUNED:
        scales |= {power + i * power // 4 for i in range(1, 5)}
        power *= 2
    scales.add(min(max_n, MOST_TUNED))
    return tuple(sorted(n for n in scales if 3 <= n <= max_n))


def best_of_scales(max_n: int) -> tuple[int, ...]:
    """Return the scales that thresholds are tuned for: the powers of two from 2 on, and `max_n`."""
    powers = {2**i for i in range(1, max_n.bit_length()) if 2**i <= max_n}
    return tuple(sorted(powers | ({max_n} if max_n > 1 else set())))


def tuned_vote_stops(n: int) -> tuple[Stop, ...]:
    """Return the confidence rules on offer for a vote of n."""
    waves = [doubling_waves(first, n) for first in FIRST_WAVES if first < n]
    return tuple(Stop(waves=w, confidence=c) for w in waves for c in CONFIDENCES)


def threshold_stops(n: int, thresholds: Sequence[float]) -> tuple[Stop, ...]:
    """Return rules for the best of n: every threshold with waves from 1 on, then every one with waves from 4 on."""
    waves = [doubling_waves(first, n) for first in FIRST_DRAWS if first < n]
    return tuple(Stop(waves=w, threshold=float(t)) for w in waves for t in thresholds)


def reached(stop: Stop, votes: Sequence[float], best: float | None) -> str | None:
    """Return the name of the rule that ends a call after a wave; None where none does.

    Args:
        stop: The rules.
        votes: Votes of the answers, most first; empty where nothing is voted on.
        best: Best weighted objective so far; None where there is none.
    """
    if stop.confidence is not None and votes:
        runner_up = votes[1] if len(votes) > 1 else 0
        if beta_confidence(int(votes[0]), int(runner_up)) >= stop.confidence:
            return "confident"
    if stop.threshold is not None and best is not None and best >= stop.threshold:
        return "threshold"
    return None
