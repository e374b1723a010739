"""The progress of a run, and the count of its failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import dspy

from iapo_dspy.environments.live.stored import Completion
from iapo_dspy.environments.live.unreadable import UnreadableShares
from iapo_dspy.errors import MostlyUnreadable, TooManyErrors
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
        max_unreadable: Share of each prompt's completions that may be unreadable; see `UnreadableShares`.
        adapters: Adapters to choose from: a run goes on, although nothing works, until each of them was tried.
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
        max_unreadable: float | None,
        adapters: Iterable[dspy.Adapter],
        kept: str,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._meter = meter
        self._max_errors = max_errors
        self._max_unreadable = max_unreadable
        self._kept = kept
        self._progress = progress
        self._drawn = [0] * n_prompts
        self._failed = [0] * n_prompts
        self._tried = 0  # prompts with completions
        self._untried = {id(adapter) for adapter in adapters}
        self._errors = 0
        self._others = 0  # of these, those of other runs
        self._causes: Counter[str] = Counter()
        self._unread = UnreadableShares(n_prompts, max_unreadable)
        self._causes_unread: Counter[str] = Counter()
        self._completions = 0
        self._total = 0
        self._unusable = 0  # failed ones that could not even be read
        self.restored = 0

    @property
    def drawn(self) -> int:
        """Completions so far."""
        return self._completions

    def drawn_of(self, prompt: int) -> int:
        """Return the completions of a prompt so far."""
        return self._drawn[prompt] if prompt < len(self._drawn) else 0

    def ask(self, prompts: Iterable[int]) -> None:
        """Take in which prompts are asked, so that a run does not stop before each of them was tried."""
        self._unread.ask(prompts)

    def try_adapter(self, adapter: dspy.Adapter | None) -> None:
        """Take in that an adapter has been tried."""
        self._untried.discard(id(adapter))

    def add(
        self, prompt: int, query: int, completions: Sequence[Completion], scored: Sequence[Scored], *, others: int = 0
    ) -> None:
        """Count the completions of one pull.

        Args:
            prompt: Its prompt.
            query: Its query.
            completions: Its completions, with those that could not be judged.
            scored: The scores of those that could be.
            others: How many of them failed with an error in other runs, which `max_errors` does not count.

        Raises:
            MostlyUnreadable: No prompt can be read often enough.
            TooManyErrors: More completions than `max_errors` failed with an error, or nothing works at all.
        """
        self._tried += bool(scored) and not self._drawn[prompt]
        self._drawn[prompt] += len(scored)
        self._completions += len(scored)
        for s in scored:
            if s.failure is not None:
                self._fail(prompt, s.failure, s.error, usable=s.usable)
        unread = [c.record for c in completions if c.unreadable]
        self._unread.add(prompt, query, [(r.draw, r.text, r.failure) for r in unread])
        self._causes_unread.update((r.failure or "")[:200] for r in unread)
        self._others += others
        if self._max_errors is not None and self._errors - self._others > self._max_errors:
            limit = f"max_errors={self._max_errors}"
            raise TooManyErrors(f"More than {limit} completions failed with errors: {self._totals()}. {self._kept}")
        several = self._tried >= min(3, len(self._drawn))
        if several and self._errors == self._completions >= NOTHING_WORKS:
            raise self._nothing_works()
        self.check_readable()
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
            MostlyUnreadable: All completions failed so far, and more than half of them could not be read.
            TooManyErrors: All completions failed so far. A few that could be read, but not scored, are not enough.
        """
        enough = self._unusable == self._completions or self._completions >= NOTHING_WORKS
        if self._completions and self._total == self._completions and enough and not self._untried:
            raise self._nothing_works()

    def check_readable(self) -> None:
        """Look whether completions of the prompts that were asked can be read.

        Raises:
            MostlyUnreadable: Surely more than `max_unreadable` of every prompt's cannot.
        """
        if not self._untried and self._unread.too_many(self._drawn):
            limit = f"max_unreadable={self._max_unreadable:g}"
            raise self._mostly_unreadable(
                f"The LM answers, but most completions cannot be read: {self._unread.total} of {self._completions}, "
                f"and surely more than {limit} of every prompt",
                " Execution(max_unreadable=None) goes on all the same.",
            )

    def _nothing_works(self) -> TooManyErrors:
        if 2 * self._unread.total > self._completions:
            said = f"{self._unread.total} of {self._completions} completions cannot be read"
            return self._mostly_unreadable(f"Nothing has worked so far: {said}")
        return TooManyErrors(f"Nothing has worked so far: {self._totals()}. {self._kept}")

    def _mostly_unreadable(self, said: str, way_out: str = "") -> MostlyUnreadable:
        report = self.report()
        causes = "; ".join(f"{n} x {cause.rstrip('.')}" for cause, n in self._causes_unread.most_common(3))
        examples = "".join(f"\n  {e}" for e in report.examples)
        remedies = "".join(f"\n  - {remedy}" for remedy in report.remedies)
        return MostlyUnreadable(
            f"{said}: {causes}.\nExamples:{examples}\nWhat may help:{remedies}\n{self._kept}{way_out}",
            share=self._unread.total / self._completions,
            examples=tuple(e.text for e in report.examples),
            remedies=report.remedies,
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
        return replace(
            self._totals(),
            share=tuple(share),
            unreadable=self._unread.shares(self._drawn),
            examples=self._unread.examples(self._drawn),
        )

    def _totals(self) -> FailureReport:
        """Return the report without the shares, which are many where the prompts are combinations."""
        return FailureReport(
            completions=self._completions,
            total=self._total,
            errors=self._errors,
            share=(),
            causes=tuple(self._causes.most_common(10)),
            unread=self._unread.total,
        )
