"""The journal of a live run: the ledger's records of its spending and its reservations."""

from __future__ import annotations

from collections.abc import Callable

from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import SpentRecord
from iapo_dspy.sampling.spending.budget import Meter, Spent


class Journal:
    """Writes the spending of a run into its ledger.

    Args:
        meter: Counts, and asks for an entry before each reservation that a crash must not hide.
        ledger: Takes the entries.
        held: Returns the part of the reservations that batch jobs hold; these have records of their own.
    """

    def __init__(self, meter: Meter, ledger: LedgerPort, *, held: Callable[[], Spent]) -> None:
        self._meter = meter
        self._held = held
        self._finished = False
        self._before = ledger.spent
        meter.keep_journal(lambda spent, reserved: ledger.append(self._record(spent, reserved)))

    def write(self, *, finished: bool = False) -> None:
        """Write an entry; `finished` says that the run has come to its end."""
        self._finished = finished
        self._meter.write_journal()

    def entry(self) -> SpentRecord:
        """Return the entry of this moment."""
        return self._record(self._meter.spent, self._meter.reserved)

    def _record(self, spent: Spent, reserved: Spent) -> SpentRecord:
        held = self._held()
        reserved = Spent(
            completion_tokens=max(reserved.tokens - held.tokens, 0),
            usd=max(round(reserved.usd - held.usd, 12), 0.0),  # whole picodollars
        )
        asked = spent.requests > self._before.spent.requests or reserved.tokens or reserved.usd
        finished = self._finished or (self._before.finished and not asked)  # a replay that is stopped changes nothing
        return SpentRecord(spent=spent, finished=finished, reserved=reserved)
