"""When a stage of a call is sure enough to answer; the same rules while compiling and when deployed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from iapo_dspy.types import Arm

Decision = Literal["sure", "unsure"]


def share_of_leader(votes: Sequence[float], completions: int, silent: int) -> float:
    """Return the leading answer's share of all completions that count, those without a vote among them, in [0, 1].

    Args:
        votes: Votes of the answers, or the sums of their weights, in any order.
        completions: All completions that count, as often as they count.
        silent: Those of them without a vote.
    """
    total = sum(votes)
    return max(votes) / total * (completions - silent) / completions if total > 0 and completions else 0.0


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
    if votes is None:  # the best completion is good enough already, and a later one may only be better
        return "sure" if best is not None and best >= stage.then.below else None
    leading, n = (votes[0] if votes else 0), stage.n
    if settled and leading / n >= stage.then.below:
        return "sure"
    if stage.then.weight:  # all of its votes count in the next stage
        return None
    return "unsure" if (leading + n - drawn) / n < stage.then.below else None
