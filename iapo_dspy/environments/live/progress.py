"""How far a run is, and what failed in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.scoring.scores import Scored

__all__ = ["FailureReport", "Failures", "Progress"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        completions: Completions drawn so far, failed ones included.
        budget: Completions at most; None without a limit.
        failed: Failed ones among them.
        spent: Everything spent so far.
        waiting: What is waited for, in a few words: the state of a batch job. Empty for ordinary requests.
    """

    completions: int
    budget: int | None
    failed: int
    spent: Spent
    waiting: str = ""


@dataclass(frozen=True, kw_only=True)
class FailureReport:
    """Failed completions of a run.

    Attributes:
        completions: All completions of the run.
        total: Failed ones.
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
        return f"{self.total} of {self.completions} completions failed and count as spent, without a vote: {causes}"


@dataclass
class Failures:
    """Counts failures while a run goes on."""

    drawn: list[int]
    failed: list[int]
    tried: int = 0  # prompts with completions
    completions: int = 0
    total: int = 0
    errors: int = 0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, prompt: int, scored: Sequence[Scored]) -> None:
        """Count the completions of one pull."""
        self.tried += bool(scored) and not self.drawn[prompt]
        self.drawn[prompt] += len(scored)
        self.completions += len(scored)
        for s in scored:
            if s.failure is not None:
                self.failed[prompt] += 1
                self.total += 1
                self.errors += s.error
                self.causes[s.failure[:200]] += 1

    def spoil(self, prompt: int, cause: str) -> None:
        """Count a failure of a completion that was counted as fine: an error came up when answers were compared."""
        self.failed[prompt] += 1
        self.total += 1
        self.errors += 1
        self.causes[cause[:200]] += 1

    def report(self) -> FailureReport:
        """Return what was counted so far."""
        share = [f / d if d else float("nan") for f, d in zip(self.failed, self.drawn, strict=True)]
        return replace(self.totals(), share=tuple(share))

    def totals(self) -> FailureReport:
        """Return the report without the shares, which are many where the prompts are combinations."""
        return FailureReport(
            completions=self.completions,
            total=self.total,
            errors=self.errors,
            share=(),
            causes=tuple(self.causes.most_common(10)),
        )
