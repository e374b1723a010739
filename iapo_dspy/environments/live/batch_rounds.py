"""Rounds of a live run as batch jobs: which completions a job is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import dspy

from iapo_dspy.sampling.batches.batch_sampler import Ask, BatchSampler
from iapo_dspy.sampling.batches.books import Drawn
from iapo_dspy.sampling.batches.lines import BatchLine
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import CompletionRecord, PullKey, Record
from iapo_dspy.sampling.spending.budget import Meter, Reservation, Spent
from iapo_dspy.sampling.spending.pricing import Prices
from iapo_dspy.types import Decoding, Pull

__all__ = ["Batches"]

Start = tuple[PullKey, Pull, Mapping[int, CompletionRecord], Reservation | None]
"""A pull that the budget pays for, what is stored of it, and the reservation for the rest."""


class _Prompt(Protocol):
    @property
    def program(self) -> Any:
        """A single predictor."""

    @property
    def decoding(self) -> Decoding:
        """How it decodes."""


class Batches:
    """The batch jobs of a run, if it uses any.

    Args:
        batch: How jobs are run; None sends ordinary requests. Jobs that an earlier process left behind are finished in
            either case, because they are paid for.
        prompts: The prompt set P.
        examples: The training set X.
        meter: Holds the budget.
        ledger: Keeps jobs and completions.
        journal: Makes the record of what the run has taken by now.
        notify: Told in a few words what is waited for.
        prices: The user's own prices.
    """

    def __init__(
        self,
        batch: BatchAPI | None,
        *,
        prompts: Sequence[_Prompt],
        examples: Sequence[dspy.Example],
        meter: Meter,
        ledger: LedgerPort,
        journal: Callable[[], Record],
        notify: Callable[[str], None],
        prices: Prices | None = None,
    ) -> None:
        self._prompts = prompts
        self._examples = examples
        self._new = batch is not None
        self._left_behind = bool(ledger.batches)
        self._sampler: BatchSampler | None = None
        if self._new or self._left_behind:
            self._sampler = BatchSampler(
                batch or BatchAPI(), meter=meter, ledger=ledger, journal=journal, notify=notify, prices=prices
            )

    @property
    def running(self) -> tuple[str, ...]:
        """The provider's ids of the jobs that are waited for."""
        return () if self._sampler is None else self._sampler.running

    @property
    def held(self) -> Spent:
        """Upper bounds of the jobs that run; the tokens stand under `completion_tokens`."""
        return Spent() if self._sampler is None else self._sampler.held

    async def resume(self) -> None:
        """Finish what an earlier process left behind; afterwards its completions are stored like any others."""
        if self._sampler is not None and self._left_behind:
            await self._sampler.resume(self._ask_of)
            self._left_behind = False

    async def draw(self, starts: Iterable[Start]) -> dict[PullKey, Drawn]:
        """Draw what is missing of a round; nothing for a run without batch jobs.

        Returns:
            By pull, what was drawn; it is in the ledger.
        """
        asked = [start for start in starts if start[3] is not None]
        if self._sampler is None or not self._new or not asked:
            return {}
        try:
            return await self._sampler.draw(
                [self._ask(key, pull, [i for i in range(pull.size) if i not in known]) for key, pull, known, _ in asked]
            )
        except BaseException:
            for *_, reservation in asked:
                if reservation is not None:
                    reservation.release()
            raise

    def _ask_of(self, line: BatchLine) -> Ask:
        pull = Pull(prompt=line.prompt, query=line.query, size=len(line.indices))
        return self._ask(line.pull, pull, line.indices)

    def _ask(self, key: PullKey, pull: Pull, missing: Sequence[int]) -> Ask:
        prompt = self._prompts[pull.prompt]
        return Ask(
            key=key,
            prompt=pull.prompt,
            query=pull.query,
            missing=tuple(missing),
            program=prompt.program,
            inputs=dict(self._examples[pull.query].inputs().items()),
            decoding=prompt.decoding,
        )
