"""Where the prompts of a run come from that it wrote itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WrittenPrompt:
    """A prompt that a proposer wrote.

    Attributes:
        by: The proposer.
        parents: The prompts that it was made from, by number; the one that it is compared with comes first.
        generation: Number of its generation, 0-based; -1 for a prompt that an earlier run wrote.
        preference: Name of the preference that it was written for; None for all of them.
    """

    by: str
    parents: tuple[int, ...] = ()
    generation: int = 0
    preference: str | None = None
