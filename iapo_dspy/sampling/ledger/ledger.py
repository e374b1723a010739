"""Keeps everything that was paid for on disk before it is used: versioned JSON lines in `log_dir/ledger.jsonl`.

The first line names the format; every other line is one record. Runs write one after the other, each behind a record of
its own, and each finds what all of them have paid for. A process that is killed may leave half a record at the end; the
next start cuts it off. A lock keeps a second process out. It is a lock of the operating system, so it ends with the
process that holds it.

`log_dir/ledger.spare` takes room that is given back when the disk is full. So completions whose requests are in flight
at that moment can still be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

import filelock

from iapo_dspy.errors import LedgerError, storing
from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.sampling.ledger.lock import acquire
from iapo_dspy.sampling.ledger.reading import LedgerContents, read_contents
from iapo_dspy.sampling.ledger.records import (
    FORMAT,
    VERSION,
    BatchRecord,
    CallRecord,
    Cell,
    CompletionRecord,
    GenerationRecord,
    PlannedRecord,
    ProposalRecord,
    Record,
    RewriteRecord,
    RunRecord,
    ScoreRecord,
    SpentRecord,
    UnitRecord,
    VerdictRecord,
    encode_record,
)
from iapo_dspy.sampling.ledger.serving import check_serves, warn_of_servers
from iapo_dspy.sampling.ledger.upgrade import Older, upgrade
from iapo_dspy.sampling.spending.budget import Spent

logger = logging.getLogger(__name__)

L = TypeVar("L", bound="LedgerPort")
# Records between two `fsync`, which is for the death of the machine. Each record reaches the operating system at once,
# so that the death of the process loses none.
_SYNC_EVERY = 64
_SPARE = 1 << 21  # bytes
_KEPT = "Every completion that was paid for before is in it, so compiling again goes on from there."
_SECRET = re.compile(
    r"(api|access|private|secret)_?key|secret|password|passwd|credential|authorization|headers?$|(^|_)token$|bearer",
    re.IGNORECASE,
)


class LedgerPort:
    """A run's ledger as the run sees it: it finds the records of earlier processes, and takes new ones.

    This class finds nothing and keeps nothing; `Ledger` reads and writes a file.

    Attributes:
        known: The completions that stood in the file before this run began, as the numbers of the draws by cell.
        stored: The completions that later pulls can use, also of earlier processes of this run, likewise.
        own: Those of them that earlier processes of this run have paid for, likewise.
        spent: The spending of earlier processes of the run, and what other runs had paid before it began.
        taken_over: The part of it that other runs had paid.
        others: What other runs have paid since this one began; it is not in `spent`.
        batches: The batch jobs of earlier processes whose completions are not stored yet.
        calls: The answers of earlier processes that all rollouts of a query share.
        unit: The unit of costs that an earlier process found.
        has_unit: Whether that was known when this run began.
        answered: Whether a run that differs in its metric at most had come to its end before this one began.
        about: What the first process of the run wrote of it, beside what it depends on; None for a run that begins.
        planned: The completions that earlier processes of the run planned for; None where the budget said it.
        proposals: The prompts that proposers had written before this run began, in their order.
        written: Those, and the ones that earlier processes of this run had written.
        generations: What earlier processes of this run got when they wished for prompts, by number.
    """

    def __init__(self) -> None:
        self.known: Mapping[Cell, Sequence[int]] = {}
        self.stored: Mapping[Cell, Sequence[int]] = {}
        self.own: Mapping[Cell, Sequence[int]] = {}
        self.spent = SpentRecord()
        self.taken_over = Spent()
        self.others = Spent()
        self.batches: tuple[BatchRecord, ...] = ()
        self.calls: tuple[CallRecord, ...] = ()
        self.unit: UnitRecord | None = None
        self.has_unit = False
        self.answered = False
        self.about: Mapping[str, Any] | None = None
        self.planned: PlannedRecord | None = None
        self.proposals: tuple[ProposalRecord, ...] = ()
        self.written: tuple[ProposalRecord, ...] = ()
        self.generations: Mapping[int, GenerationRecord] = {}

    def completions(self, cell: Cell, draws: Collection[int]) -> dict[int, CompletionRecord]:
        """Return those of these draws of a cell that are stored and that pulls can use, by number."""
        return {}

    def score(self, key: str, scorer: str) -> ScoreRecord | None:
        """Return the score that earlier processes stored for a completion, made by this code."""
        return None

    def verdict(self, key: str) -> VerdictRecord | None:
        """Return the answer of a judge or a writer that earlier processes stored."""
        return None

    def proposal(self, key: str) -> ProposalRecord | None:
        """Return a prompt that proposers of earlier processes wrote."""
        return None

    def rewrite(self, key: str) -> RewriteRecord | None:
        """Return what a rewriter of earlier processes made of a query."""
        return None

    @property
    def full(self) -> bool:
        """Whether the disk is full, so that nothing more should be asked for."""
        return False

    def check(self) -> None:
        """Raise StorageError where the disk is full. To be called once everything in flight is written."""

    def append(self, record: Record) -> None:
        """Store a record. When this returns, the death of the process no longer loses it."""
        self.extend([record])

    def extend(self, records: Sequence[Record], *, keep: bool = False) -> None:
        """Store several records that belong together, such as the completions of one pull.

        A process that is killed in between leaves a part of them, whose last line says that more should follow; the
        next start cuts it off. So all of them are stored or none, and a pull is asked for again as a whole, with its
        first seed.

        Args:
            records: In the order in which they are written.
            keep: Whether their completions can be looked up from now on, as those of earlier processes can.
        """

    def flush(self) -> None:
        """Make everything that was appended survive a power failure."""

    def close(self) -> None:
        """Flush, close the file and let another process in. Closing twice is fine."""

    def __enter__(self: L) -> L:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


class NullLedger(LedgerPort):
    """The ledger of a run without `log_dir`: it keeps nothing."""


def fingerprint_of(data: Any) -> str:
    """Return a hash of the facts that a run depends on. Secrets do not enter it."""
    text = json.dumps(without_secrets(jsonable(data)), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def without_secrets(value: Any) -> Any:
    """Return JSON data without the entries that look like keys, passwords or headers."""
    if isinstance(value, Mapping):
        return {str(k): without_secrets(v) for k, v in value.items() if not _SECRET.search(str(k))}
    if isinstance(value, (list, tuple)):
        return [without_secrets(v) for v in value]
    return value


class Ledger(LedgerPort):
    """The ledger of one run; opened by `Ledger.open`. Thread-safe.

    The records of earlier processes stay in the file and are read when they are looked up (`LedgerContents`). The
    records that this process appends are not kept, because the code that appends them has them already. So memory does
    not grow with the run.
    """

    def __init__(self, contents: LedgerContents, run: RunRecord, file: IO[bytes], lock: filelock.BaseFileLock):
        super().__init__()
        self.path = contents.path
        fingerprint = run.fingerprint
        began = next((at for at, r in contents.runs.items() if r.fingerprint == fingerprint), None)
        first = contents.run_of(fingerprint)
        self.stored = contents.usable()
        self.known = self.stored if began is None else contents.usable(before=began)
        self.own = {} if began is None else contents.usable(by=fingerprint)
        paid = contents.paid(fingerprint)
        self.taken_over = taken_over(contents) if began is None else paid.before.spent
        if began is not None:
            self.others = replace(taken_over(contents) - (paid.after.spent + paid.after.reserved), seconds=0.0)
        self.spent = SpentRecord(spent=self.taken_over) if began is None else paid.after
        self.batches = open_batches(contents.all(BatchRecord))
        self.calls = tuple(contents.all(CallRecord))
        self.unit, self.has_unit = unit_of(contents, run if first is None else first)
        self.answered = any(
            _but_for_metric(other.settings) == _but_for_metric(run.settings)
            and contents.paid(other.fingerprint, before=began).after.finished
            for at, other in contents.runs.items()
            if began is None or at < began
        )
        self.planned = next(reversed(contents.own(PlannedRecord, fingerprint)), None)
        self.proposals = tuple(contents.all(ProposalRecord, before=began))
        self.written = tuple(contents.all(ProposalRecord))
        self.generations = contents.generations(fingerprint)
        self._proposals = {r.key: r for r in (*self.written, *contents.own(ProposalRecord, fingerprint))}
        self.about = None if first is None else (first.settings or {}).get("about", {})
        self._contents = contents
        self._kept: dict[Cell, dict[int, CompletionRecord]] = {}
        self._file = file
        self._lock_file = lock
        self._unsynced = 0
        self._lock = threading.RLock()
        self._spare = self.path.with_name("ledger.spare")
        self._end = contents.size
        self._error: OSError | None = None  # of the last write that failed
        self._stuck = False  # that error was not got over

    @classmethod
    def open(
        cls,
        log_dir: str | os.PathLike[str],
        *,
        fingerprint: str,
        settings: Mapping[str, Any] | None = None,
        older: Callable[[], Older] | None = None,
    ) -> Ledger:
        """Create a ledger, resume a run of it, or begin another run in it.

        Args:
            log_dir: The run's directory; made if it does not exist.
            fingerprint: Hash that tells runs apart (`fingerprint_of`).
            settings: The hashed settings for people to read, and "about" the run; secrets are left out.
            older: Returns the run as version 1 of the format knew it; a ledger of that version is then rewritten once.

        Raises:
            LedgerLocked: Another process has it open.
            LedgerMismatch: Nothing in it can serve this run: another student, another model, another adapter.
            LedgerError: It is not a ledger, is of a newer version, or is damaged elsewhere than at its end.
            StorageError: The directory or a file in it cannot be written, or its disk is nearly full.
        """
        folder = Path(log_dir)
        path = folder / "ledger.jsonl"
        with storing(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        run = RunRecord(fingerprint=fingerprint, settings=without_secrets(jsonable(dict(settings or {}))))
        with storing(path, kept="Nothing was asked for or paid."), contextlib.ExitStack() as undo:
            lock = acquire(folder / "ledger.lock")
            undo.callback(lock.release)
            if older is not None:
                upgrade(path, older)
            file = undo.enter_context(path.open("ab", buffering=0))
            contents = read_contents(path)
            if contents.run_of(fingerprint) is None:
                check_serves(contents, run.settings or {})
            warn_of_servers(contents, run.settings or {})
            if file.tell() > contents.size:
                logger.warning("%s ended in half a record; it was cut off.", path.name)
                file.truncate(contents.size)
            ledger = cls(contents, run, file, lock)
            ledger._begin(run)
            undo.callback(ledger._spare.unlink, missing_ok=True)
            ledger._spare.write_bytes(os.urandom(_SPARE))
            undo.pop_all()
            return ledger

    def _begin(self, run: RunRecord) -> None:
        """Write the record behind which this run's records stand, unless it stands there already."""
        contents = self._contents
        fresh: list[Record] = []
        if not contents.header:
            self._write([{"kind": "header", "format": FORMAT, "version": VERSION}])
        if contents.run_of(run.fingerprint) is None:
            fresh = [run, self.spent]
        elif contents.run is not None and contents.run.fingerprint != run.fingerprint:
            fresh = [replace(run, settings=None)]
        if fresh:
            self.extend(fresh)
            self.flush()

    def extend(self, records: Sequence[Record], *, keep: bool = False) -> None:
        """Write records, all or none; see `LedgerPort.extend`."""
        self._write([encode_record(record) for record in records])
        for record in records if keep else ():
            if isinstance(record, CompletionRecord):
                self._kept.setdefault((record.prompt, record.query), {})[record.draw] = record

    def completions(self, cell: Cell, draws: Collection[int]) -> dict[int, CompletionRecord]:
        """Return those of these draws of a cell that are stored and that pulls can use, by number."""
        kept = {draw: record for draw, record in self._kept.get(cell, {}).items() if draw in draws}
        return self._contents.completions_of(cell, draws) | kept

    def score(self, key: str, scorer: str) -> ScoreRecord | None:
        """Return the score that earlier processes stored for a completion, made by this code."""
        return self._contents.last(ScoreRecord, key, scorer=scorer)

    def verdict(self, key: str) -> VerdictRecord | None:
        """Return the answer of a judge or a writer that earlier processes stored."""
        return self._contents.last(VerdictRecord, key)

    def proposal(self, key: str) -> ProposalRecord | None:
        """Return a prompt that proposers of earlier processes wrote, as this run had it written if it did."""
        return self._proposals.get(key)

    def rewrite(self, key: str) -> RewriteRecord | None:
        """Return what a rewriter of earlier processes made of a query."""
        return self._contents.last(RewriteRecord, key)

    def flush(self) -> None:
        """Make everything that was appended survive a power failure."""
        with self._lock, storing(self.path, kept=_KEPT):
            os.fsync(self._file.fileno())
            self._unsynced = 0

    @property
    def full(self) -> bool:
        """Whether the disk is full, so that nothing more should be asked for."""
        return self._error is not None

    def check(self) -> None:
        """Raise StorageError where the disk is full. To be called once everything in flight is written."""
        if self._error is not None:
            with storing(self.path, kept=_KEPT):
                raise self._error

    def close(self) -> None:
        """Flush, close the file and let another process in. Closing twice is fine."""
        with self._lock:
            if self._file.closed:
                return
            try:
                self.flush()
            finally:
                self._file.close()
                self._spare.unlink(missing_ok=True)
                self._lock_file.release()

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        last = len(records) - 1
        lines = b"".join(_line({**r, "more": True} if i < last else r) for i, r in enumerate(records))
        with self._lock:
            if self._file.closed:
                raise LedgerError(f"{self.path} is closed; open it again to write to it.")
            if self._stuck:
                self.check()
            try:
                self._put(lines)
            except OSError as error:
                self._error = error
                self._in_spare_room(lines)
            self._end += len(lines)
            self._unsynced += len(records)
            if self._unsynced >= _SYNC_EVERY:
                self.flush()

    def _put(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _in_spare_room(self, lines: bytes) -> None:
        """Write lines in the room that is kept for a full disk; what was written of them is cut off before.

        Raises:
            StorageError: That room is used up, or it was not for a lack of room.
        """
        try:
            self._file.truncate(self._end)
            self._spare.unlink()
            self._put(lines)
        except OSError:
            self._stuck = True
            self.check()
        logger.warning("%s: %s. What is in flight is still written; then the run stops.", self.path, self._error)


def taken_over(contents: LedgerContents) -> Spent:
    """Return what all runs of a file have paid, with the bounds of what was in flight when they were killed."""
    total = Spent()
    for fingerprint in {run.fingerprint: None for run in contents.runs.values()}:
        paid = contents.paid(fingerprint)
        total += paid.after.spent + paid.after.reserved - paid.before.spent
    return replace(total, seconds=0.0)


def _but_for_metric(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the facts of a run but for those that decide how its completions are scored and chosen from."""
    if settings is None:
        return None
    return {name: value for name, value in settings.items() if name not in ("metric", "edition", "about")}


def _unit_lms(run: RunRecord) -> str | None:
    lms = ((run.settings or {}).get("about") or {}).get("unit_lms")
    return lms if isinstance(lms, str) else None


def unit_of(contents: LedgerContents, run: RunRecord) -> tuple[UnitRecord | None, bool]:
    """Return the unit that runs with the same `Cost` and the student's LMs have found, and whether before this run.

    Runs that do not say which LMs those were count as well.
    """
    cost, lms = (run.settings or {}).get("cost"), _unit_lms(run)
    runs = {
        r.fingerprint: None
        for r in contents.runs.values()
        if r.settings and r.settings.get("cost") == cost and (None in (lms, _unit_lms(r)) or lms == _unit_lms(r))
    }
    units = [(name, unit) for name in runs for unit in contents.own(UnitRecord, name)]
    return (units[0][1], units[0][0] != run.fingerprint) if units else (None, False)


def open_batches(records: Iterable[BatchRecord]) -> tuple[BatchRecord, ...]:
    """Return the jobs that are not closed, each with its lines and the last state that was written.

    Raises:
        LedgerError: A job was written by a newer version of this package.
    """
    jobs: dict[str, BatchRecord] = {}
    for record in records:
        if record.version != BatchRecord.version:
            raise LedgerError(
                f"The ledger has a batch job of version {record.version}; this package knows version "
                f"{BatchRecord.version}. Use the package that wrote it, or another log_dir."
            )
        first = jobs.setdefault(record.tag, record)
        jobs[record.tag] = replace(first, state=record.state, job=record.job or first.job, at=record.at)
    return tuple(job for job in jobs.values() if job.state != "closed")


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 does not have, but JSON escapes have
        return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
