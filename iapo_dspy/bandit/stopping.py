"""When a deployed call has drawn enough: waves, and the rules that are looked at after each of them.

Majority vote, with a and b votes for the two leading answers: stop once P(Beta(a + 1, b + 1) > 1/2) reaches a
confidence. The identity P(Beta(a + 1, b + 1) > 1/2) = P(Binomial(a + b + 1, 1/2) <= a) makes it a finite sum.

Best-of-N: stop once the best weighted objective reaches a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from iapo_dspy.types import Stop

__all__ = ["beta_confidence", "exact_waves", "reached"]


@lru_cache(maxsize=4096)
def beta_confidence(a: int, b: int) -> float:
    """Return P(Beta(a + 1, b + 1) > 1/2): how sure it is that an answer with a votes is ahead of one with b votes."""
    trials = a + b + 1
    return float(sum(math.comb(trials, i) for i in range(a + 1)) / 2**trials)


def exact_waves(n: int) -> tuple[int, ...]:
    """Return two waves of a vote of n: the fewest completions that can settle it, and the rest.

    Half of them settle it if all agree: a later answer that draws level loses the tie, for it was drawn later.
    """
    first = (n + 1) // 2
    return (first, n) if first < n else (n,)


def reached(stop: Stop, votes: Sequence[float], best: float | None) -> str | None:
    """Say which rule ends a call after a wave; None where none does.

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
