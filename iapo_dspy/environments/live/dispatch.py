"""The order in which the pulls of a round are sent: one prompt after another, so that prefix caches are used.

All pulls of a prompt begin with the same instructions and demonstrations. A server that has just read them reads them
again from its cache, which holds as many prompts as it has slots or room, and not all prompts of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence

from iapo_dspy.types import Pull

STINT = 8  # pulls of a prompt one after another where a limit may end the round in between


def in_order(
    pulls: Sequence[Pull],
    *,
    deployment: Callable[[int], Hashable],
    behind: int,
    new: Collection[int] = (),
    few: int = 0,
    limited: bool = False,
) -> list[int]:
    """Return the positions of pulls in the order in which they are sent.

    Prompts of different deployments take turns, so that no deployment waits for another one.

    Args:
        pulls: The pulls of a round, those of each prompt in the order in which the budget pays for them.
        deployment: Prompt -> what its LMs are served by.
        behind: Number of the student that is drawn for the unit of costs only. It comes first, so that a kill leaves
            the unit known.
        new: Prompts without completions. Their first pulls come before those of any other kind, so that a run in which
            no prompt can be read does not pay for a whole round.
        few: Completions of a new prompt that its first pulls have, at least.
        limited: Whether tokens, dollars or seconds may end the round in between: then prompts take turns by stints, so
            that none of them is left without pulls.
    """
    drawn: Counter[int] = Counter()
    times: Counter[int] = Counter()
    keys: list[tuple[int, int, int, int]] = []
    for position, pull in enumerate(pulls):
        first = pull.prompt in new and drawn[pull.prompt] < few
        drawn[pull.prompt] += pull.size
        stint = times[pull.prompt] // STINT if limited and not first else 0
        times[pull.prompt] += not first
        keys.append((0 if pull.prompt == behind else 1 if first else 2, stint, pull.prompt, position))
    order = [key[-1] for key in sorted(keys)]
    turns: Counter[Hashable] = Counter()
    ranked: list[tuple[bool, int]] = []
    for position in order:
        student = pulls[position].prompt == behind
        served = deployment(pulls[position].prompt)
        ranked.append((not student, turns[served]))
        turns[served] += not student
    return [position for _, position in sorted(zip(ranked, order, strict=True), key=lambda item: item[0])]
