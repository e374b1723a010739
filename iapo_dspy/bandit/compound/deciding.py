"""When a stage of a call is sure enough to answer; the same rules while compiling and when deployed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from iapo_dspy.types import Arm, Escalation

Decision = Literal["sure", "unsure"]

_ROUNDING = 1e-9  # sums of weights are rounded, so a stage that is exactly as sure as it has to be may seem less sure


def least_sure(then: Escalation) -> float:
    """Return how sure a stage must be at least to answer."""
    return then.below - _ROUNDING


def share_of_leader(votes: Sequence[float], completions: int, silent: int) -> float:
    """Return the leading answer's share of all completions that count, those without a vote among them, in [0, 1].

    Args:
        votes: Votes of the answers, or the sums of their weights, in any order.
        completions: All completions that count, as often as they count.
        silent: Those of them without a vote.
    """
    total = sum(votes)
    if not (total > 0 and completions):
        return 0.0
    if total == completions - silent:  # each of weight 1: one division, as the aggregator has it
        return max(votes) / completions
    return max(votes) / total * ((completions - silent) / completions)


def decided(
    stage: Arm, votes: Sequence[float] | None, drawn: int, best: float | None, settled: bool
) -> Decision | None:
    """Say after a wave how a stage will end whatever its other completions are; None where that is open.

    Args:
        stage: A stage that goes on where it is not sure (`Arm.then`), whose own completions alone count.
        votes: Votes of the answers, most first, each of weight 1; None where nothing is voted on.
        drawn: Completions of the stage so far.
        best: The best weighted objective so far; None where there is none.
        settled: Whether the rest cannot change the answer.
    """
    if stage.then is None:
        return None
    least = least_sure(stage.then)
    if votes is None:  # the best completion is good enough already, and a later one may only be better
        return "sure" if best is not None and best >= least else None
    leading, n = (votes[0] if votes else 0), stage.n
    if settled and leading / n >= least:
        return "sure"
    if stage.then.weight:  # all of its votes count in the next stage
        return None
    return "unsure" if (leading + n - drawn) / n < least else None
