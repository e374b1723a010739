"""Rounds of a live run as batch jobs: the completions that a job is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dspy

from iapo_dspy.sampling.batches.batch_sampler import Ask, BatchSampler
from iapo_dspy.sampling.batches.books import Drawn
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import CompletionRecord, PullKey, Record
from iapo_dspy.sampling.spending.budget import Meter, Reservation, Spent
from iapo_dspy.sampling.spending.pricing import Prices
from iapo_dspy.types import Decoding, Pull

__all__ = ["Batches", "Start"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A pull that the budget pays for.

    Attributes:
        key: The round and the pull's position in it.
        pull: The pull.
        stored: What an earlier process has drawn of it, by index.
        reservation: Pays for the rest; None where nothing is missing.
    """

    key: PullKey
    pull: Pull
    stored: Mapping[int, CompletionRecord]
    reservation: Reservation | None

    @property
    def missing(self) -> list[int]:
        """The indices of the completions that are to be drawn."""
        return [i for i in range(self.pull.size) if i not in self.stored]


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
        self._sampler = BatchSampler(
            batch or BatchAPI(), meter=meter, ledger=ledger, journal=journal, notify=notify, prices=prices
        )

    @property
    def running(self) -> tuple[str, ...]:
        """The provider's ids of the jobs that are waited for."""
        return self._sampler.running

    @property
    def held(self) -> Spent:
        """Upper bounds of the jobs that run; the tokens stand under `completion_tokens`."""
        return self._sampler.held

    async def resume(self) -> None:
        """Finish what an earlier process left behind; afterwards its completions are stored like any others."""
        if self._left_behind:
            await self._sampler.resume(lambda line: self._ask(line.pull, line.prompt, line.query, line.indices))
            self._left_behind = False

    async def draw(self, starts: Iterable[Start]) -> dict[PullKey, Drawn]:
        """Draw what is missing of a round; nothing for a run without batch jobs.

        Returns:
            By pull, what was drawn; it is in the ledger.
        """
        asked = [s for s in starts if s.reservation is not None] if self._new else []
        if not asked:
            return {}
        return await self._sampler.draw([self._ask(s.key, s.pull.prompt, s.pull.query, s.missing) for s in asked])

    def _ask(self, key: PullKey, prompt: int, query: int, missing: Sequence[int]) -> Ask:
        return Ask(
            key=key,
            prompt=prompt,
            query=query,
            missing=tuple(missing),
            program=self._prompts[prompt].program,
            inputs=dict(self._examples[query].inputs().items()),
            decoding=self._prompts[prompt].decoding,
        )
