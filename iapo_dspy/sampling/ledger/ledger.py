"""Keeps everything that was paid for on disk before it is used: versioned JSON lines in `log_dir/ledger.jsonl`.

The first line names the format and the run that the file belongs to; every other line is one record. A process that is
killed may leave half a record at the end; the next start cuts it off. A lock keeps a second process out. It is a lock
of the operating system, so it ends with the process that holds it.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

import filelock

from iapo_dspy.errors import LedgerError, LedgerMismatch, storing
from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.sampling.ledger.lock import acquire
from iapo_dspy.sampling.ledger.reading import FORMAT, VERSION, LedgerContents, read_contents
from iapo_dspy.sampling.ledger.records import (
    BatchRecord,
    CallRecord,
    CompletionRecord,
    PlannedRecord,
    PullKey,
    Record,
    ScoreRecord,
    SpentRecord,
    UnitRecord,
    VerdictRecord,
    encode_record,
)

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
        spent: The spending of earlier processes of the run.
        batches: The batch jobs of earlier processes whose completions are not stored yet.
        calls: The answers of earlier processes that all rollouts of a query share.
        unit: The unit of costs that an earlier process found.
        about: What the first process of the run wrote of it, beside what it depends on; None without a file.
        planned: The completions that earlier processes planned for; None where the budget said it.
    """

    def __init__(self) -> None:
        self.spent = SpentRecord()
        self.batches: tuple[BatchRecord, ...] = ()
        self.calls: tuple[CallRecord, ...] = ()
        self.unit: UnitRecord | None = None
        self.about: Mapping[str, Any] | None = None
        self.planned: PlannedRecord | None = None

    def completions(self, pull: PullKey) -> tuple[CompletionRecord, ...]:
        """Return the completions of a pull that earlier processes stored, in their order."""
        return ()

    @property
    def stored(self) -> Sequence[CompletionRecord]:
        """Every completion that earlier processes stored, in the order of rounds and positions."""
        return ()

    def score(self, key: str) -> ScoreRecord | None:
        """Return the score that earlier processes stored for an answer."""
        return None

    def verdict(self, key: str) -> VerdictRecord | None:
        """Return the answer of a judge that earlier processes stored."""
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
    """Return a hash of a run's student, candidates, data and settings. Secrets do not enter it."""
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

    def __init__(self, contents: LedgerContents, file: IO[bytes], lock: filelock.BaseFileLock):
        super().__init__()
        self.path = contents.path
        self.spent = next(reversed(contents.all(SpentRecord)), self.spent)
        self.batches = open_batches(contents.all(BatchRecord))
        self.calls = tuple(contents.all(CallRecord))
        self.unit = next(reversed(contents.all(UnitRecord)), None)
        self.planned = next(reversed(contents.all(PlannedRecord)), None)
        self.about = contents.about
        self._contents = contents
        self._kept: dict[PullKey, dict[int, CompletionRecord]] = {}
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
    ) -> Ledger:
        """Create the ledger of a run, or resume it.

        Args:
            log_dir: The run's directory; made if it does not exist.
            fingerprint: Hash that tells runs apart (`fingerprint_of`).
            settings: The hashed settings for people to read; secrets are left out.

        Raises:
            LedgerLocked: Another process has it open.
            LedgerMismatch: It belongs to another run.
            LedgerError: It is not a ledger, is of a newer version, or is damaged elsewhere than at its end.
            StorageError: The directory or a file in it cannot be written, or its disk is nearly full.
        """
        folder = Path(log_dir)
        path = folder / "ledger.jsonl"
        with storing(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        plain = without_secrets(jsonable(dict(settings or {})))
        header = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "settings": plain}
        with storing(path, kept="Nothing was asked for or paid."), contextlib.ExitStack() as undo:
            lock = acquire(folder / "ledger.lock")
            undo.callback(lock.release)
            file = undo.enter_context(path.open("ab", buffering=0))
            contents = read_contents(path)
            if contents.header:
                _check_header(contents.header, header, path)
            if file.tell() > contents.size:
                logger.warning("%s ended in half a record; it was cut off.", path.name)
                file.truncate(contents.size)
            ledger = cls(contents if contents.header else replace(contents, header=header), file, lock)
            if not contents.header:
                ledger._write([{"kind": "header", **header}])
                ledger.flush()
            undo.callback(ledger._spare.unlink, missing_ok=True)
            ledger._spare.write_bytes(os.urandom(_SPARE))
            undo.pop_all()
            return ledger

    def extend(self, records: Sequence[Record], *, keep: bool = False) -> None:
        """Write records, all or none; see `LedgerPort.extend`."""
        self._write([encode_record(record) for record in records])
        for record in records if keep else ():
            if isinstance(record, CompletionRecord):
                self._kept.setdefault(record.pull, {})[record.index] = record

    def completions(self, pull: PullKey) -> tuple[CompletionRecord, ...]:
        """Return the completions of a pull that earlier processes stored, in their order."""
        found = {record.index: record for record in self._contents.completions_of(pull)} | self._kept.get(pull, {})
        return tuple(found[index] for index in sorted(found))

    @property
    def stored(self) -> Sequence[CompletionRecord]:
        """Every completion that earlier processes stored, in the order of rounds and positions."""
        return self._contents.completions

    def score(self, key: str) -> ScoreRecord | None:
        """Return the score that earlier processes stored for an answer."""
        return self._contents.last(ScoreRecord, key)

    def verdict(self, key: str) -> VerdictRecord | None:
        """Return the answer of a judge that earlier processes stored."""
        return self._contents.last(VerdictRecord, key)

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


def _check_header(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    if found.get("fingerprint") != wanted["fingerprint"]:
        differing = "; ".join(_differences(found.get("settings") or {}, wanted["settings"]))
        raise LedgerMismatch(
            f"{path} belongs to another run. Different: {differing or 'student, candidates or data'}. "
            "Choose another log_dir, or undo the changes to resume."
        )


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            label = f"{name}.{key}" if name else str(key)
            if key not in old or key not in new:
                found.append(f"{label} ({'new' if key in new else 'gone'})")
            else:
                found += _differences(old[key], new[key], label)
        return found
    return [] if old == new else [f"{name} (was {_short(old)}, is {_short(new)})"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
