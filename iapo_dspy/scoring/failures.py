"""The failed completions of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class FailureReport:
    """Failed completions of a run.

    Attributes:
        completions: All completions of the run.
        total: Failed ones: those that could not be read, which have no vote, and those that could not be scored, which
            vote as they do when deployed and are worth the lowest value.
        errors: Failed ones where an exception, not the completion's text, was the cause.
        share: Share of failed completions per prompt [P]; NaN for a prompt that was never pulled.
        causes: The most frequent causes with their numbers.
    """

    completions: int
    total: int
    errors: int
    share: tuple[float, ...]
    causes: tuple[tuple[str, int], ...]

    def only(self, prompts: Sequence[int]) -> FailureReport:
        """Return the report of these prompts, which are all that were drawn."""
        return replace(self, share=tuple(self.share[p] for p in prompts))

    def __str__(self) -> str:
        """Return one line for a log."""
        causes = "; ".join(f"{n} x {cause}" for cause, n in self.causes[:3])
        return f"{self.total} of {self.completions} completions failed and count as spent: {causes}"
