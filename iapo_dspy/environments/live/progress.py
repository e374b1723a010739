"""The progress of a run, and the count of its failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from iapo_dspy.errors import TooManyErrors
from iapo_dspy.sampling.spending.budget import Meter, Spent
from iapo_dspy.scoring.failures import FailureReport
from iapo_dspy.scoring.scores import Scored

NOTHING_WORKS = 32  # failed completions without a single success after which a run stops


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        completions: Completions drawn so far, failed ones included.
        budget: Completions at most; None without a limit.
        failed: Failed ones among them.
        spent: Everything spent so far.
        waiting: The state of a batch job that the run waits for, in a few words. Empty for ordinary requests.
        restored: Completions that were in `log_dir` already.
    """

    completions: int
    budget: int | None
    failed: int
    spent: Spent
    waiting: str = ""
    restored: int = 0


class Tracker:
    """Counts completions and failures while a run goes on, tells how far it is, and ends a run in which nothing works.

    Args:
        n_prompts: P.
        meter: Knows the budget and the spending.
        max_errors: Completions that may fail with an error; None ends a run only where nothing works.
        kept: Says where the completions are, for the message of a run that is ended.
        progress: Called after every pull.

    Attributes:
        restored: Completions that the ledger had already; counted where they are looked up.
    """

    def __init__(
        self,
        n_prompts: int,
        *,
        meter: Meter,
        max_errors: int | None,
        kept: str,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._meter = meter
        self._max_errors = max_errors
        self._kept = kept
        self._progress = progress
        self._drawn = [0] * n_prompts
        self._failed = [0] * n_prompts
        self._tried = 0  # prompts with completions
        self._errors = 0
        self._others = 0  # of these, those of other runs
        self._causes: Counter[str] = Counter()
        self._completions = 0
        self._total = 0
        self._unusable = 0  # failed ones that could not even be read
        self.restored = 0

    @property
    def drawn(self) -> int:
        """Completions so far."""
        return self._completions

    def add(self, prompt: int, scored: Sequence[Scored], *, others: int = 0) -> None:
        """Count the completions of one pull.

        Args:
            prompt: Its prompt.
            scored: Its completions.
            others: How many of them failed with an error in other runs, which `max_errors` does not count.

        Raises:
            TooManyErrors: More completions than `max_errors` failed with an error, or nothing works at all.
        """
        self._tried += bool(scored) and not self._drawn[prompt]
        self._drawn[prompt] += len(scored)
        self._completions += len(scored)
        for s in scored:
            if s.failure is not None:
                self._fail(prompt, s.failure, s.error, usable=s.usable)
        self._others += others
        if self._max_errors is not None and self._errors - self._others > self._max_errors:
            limit = f"max_errors={self._max_errors}"
            raise TooManyErrors(f"More than {limit} completions failed with errors: {self._totals()}. {self._kept}")
        several = self._tried >= min(3, len(self._drawn))
        if several and self._errors == self._completions >= NOTHING_WORKS:
            raise self._nothing_works()
        self.tell()

    def spoil(self, prompt: int, cause: str) -> None:
        """Count a failure of a completion that was counted as fine: an error came up when answers were compared."""
        self._fail(prompt, cause, True, usable=False)

    def _fail(self, prompt: int, cause: str, error: bool, *, usable: bool) -> None:
        self._failed[prompt] += 1
        self._total += 1
        self._unusable += not usable
        self._errors += error
        self._causes[cause[:200]] += 1

    def check(self) -> None:
        """Look at the end of a batch of pulls whether anything has worked.

        Raises:
            TooManyErrors: All completions failed so far. A few that could be read, but not scored, are not enough.
        """
        enough = self._unusable == self._completions or self._completions >= NOTHING_WORKS
        if self._completions and self._total == self._completions and enough:
            raise self._nothing_works()

    def _nothing_works(self) -> TooManyErrors:
        return TooManyErrors(f"Nothing has worked so far: {self._totals()}. {self._kept}{self._hint()}")

    def _hint(self) -> str:
        """Name another adapter where the model does not keep to the format of this one."""
        cause = next(iter(self._causes.most_common(1)), ("", 0))[0]
        if not cause.startswith("AdapterParseError"):
            return ""
        other = "ChatAdapter" if "JSON" in cause else "JSONAdapter"
        return (
            " The model does not keep to the format that it is asked for. Another one may suit it: "
            f"dspy.configure(adapter=dspy.{other}())."
        )

    def tell(self, waiting: str = "") -> None:
        """Say how far the run is."""
        if self._progress is not None:
            budget = self._meter.budget
            self._progress(
                Progress(
                    completions=self._completions,
                    budget=None if budget is None else budget.completions,
                    failed=self._total,
                    spent=self._meter.spent,
                    waiting=waiting,
                    restored=min(self.restored, self._completions),
                )
            )

    def report(self) -> FailureReport:
        """Return the counts so far."""
        share = [f / d if d else float("nan") for f, d in zip(self._failed, self._drawn, strict=True)]
        return replace(self._totals(), share=tuple(share))

    def _totals(self) -> FailureReport:
        """Return the report without the shares, which are many where the prompts are combinations."""
        return FailureReport(
            completions=self._completions,
            total=self._total,
            errors=self._errors,
            share=(),
            causes=tuple(self._causes.most_common(10)),
        )
