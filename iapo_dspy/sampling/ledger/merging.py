"""Merges ledgers: what several runs of one student have paid for, apart from each other, becomes one evidence."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from iapo_dspy.errors import LedgerError, LedgerMismatch, storing, whole_file
from iapo_dspy.sampling.ledger.ledger import open_batches
from iapo_dspy.sampling.ledger.lock import acquire
from iapo_dspy.sampling.ledger.reading import LedgerContents, read_contents
from iapo_dspy.sampling.ledger.records import (
    FORMAT,
    VERSION,
    BatchRecord,
    CallRecord,
    Cell,
    CompletionRecord,
    ProposalRecord,
    Record,
    RewriteRecord,
    RunRecord,
    ScoreRecord,
    VerdictRecord,
    encode_record,
)
from iapo_dspy.sampling.ledger.upgrade import differences, is_older

_SAME = ("student", "signature", "adapter", "around")


def merge_ledgers(into: str | os.PathLike[str], *sources: str | os.PathLike[str]) -> int:
    """Put what other ledgers of the same student hold into one, as if one run had paid for all of it.

    Completions are the same where prompt, query and number of the draw are, and all of their content, and, where no
    seed was sent, their tokens and latency; others of one number get the next free one. Scores, verdicts, rewrites,
    prompts that proposers wrote and the answers that pipelines share come along, and what the runs have spent adds up.
    All ledgers are locked meanwhile. The sources stay as they are, and `into` is written as a whole or not at all.

    Args:
        into: The `log_dir` to merge into; made if it does not exist.
        sources: The `log_dir`s whose ledgers are merged into it.

    Returns:
        The number of completions in `into`.

    Raises:
        LedgerLocked: A run is using one of them.
        LedgerMismatch: They are of different students, signatures or adapters; the message says which.
        LedgerError: There is no ledger, it cannot be read, is of an older version, or waits for a batch job.
        StorageError: `into` cannot be written.
    """
    target, folders = Path(into), [Path(source) for source in sources]
    path = target / "ledger.jsonl"
    with storing(path, kept="The ledger is as it was."), contextlib.ExitStack() as stack:
        target.mkdir(parents=True, exist_ok=True)
        found = []
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            if folder == target.resolve():
                raise LedgerError(f"{folder} cannot be merged into itself. Give other directories.")
            if not (folder / "ledger.jsonl").is_file():
                raise LedgerError(f"There is no ledger at {folder / 'ledger.jsonl'}. Give the log_dir of a run.")
            stack.callback(acquire(folder / "ledger.lock").release)
            found.append(_contents(folder / "ledger.jsonl"))
        stack.callback(acquire(target / "ledger.lock").release)
        mine = _contents(path) if path.is_file() and path.stat().st_size else None
        _check_same([*([mine] if mine is not None else []), *found])
        part = stack.enter_context(whole_file(path))
        merger = _Merger(mine)
        with part.open("wb") as file:
            if mine is None:
                file.write(_line({"kind": "header", "format": FORMAT, "version": VERSION}))
            else:
                with path.open("rb") as old:
                    shutil.copyfileobj(old, file)
                file.truncate(mine.size)
                file.seek(mine.size)
            for contents in found:
                file.writelines(_line(encode_record(record)) for record in merger.records(contents))
            file.flush()
            os.fsync(file.fileno())
        return len(read_contents(part).completions)


def _contents(path: Path) -> LedgerContents:
    if is_older(path):
        raise LedgerError(f"{path} was written by an older version. Start its run again once, which rewrites it.")
    contents = read_contents(path)
    if open_batches(contents.all(BatchRecord)):
        raise LedgerError(
            f"{path} waits for a batch job. Start its run again to finish it, or stop it: "
            f"iapo_dspy.ledger.cancel_batches({str(path.parent)!r})."
        )
    return contents


def _check_same(ledgers: Iterable[LedgerContents]) -> None:
    """Refuse ledgers of different students.

    Raises:
        LedgerMismatch: They are; the message says what differs.
    """
    first: tuple[Path, dict[str, Any]] | None = None
    for contents in ledgers:
        known = {name: contents.about[name] for name in _SAME if name in contents.about}
        first = first or (contents.path, known)
        if known != first[1]:
            raise LedgerMismatch(
                f"{contents.path} and {first[0]} are not of the same student. Different: "
                f"{'; '.join(differences(first[1], known))}. Merge ledgers of one student only."
            )


class _Merger:
    """Knows what is merged already, and numbers what comes."""

    def __init__(self, mine: LedgerContents | None) -> None:
        self._drawn: dict[Cell, dict[int, bytes]] = {}
        self._keys: set[tuple[str, ...]] = set()
        self._runs: dict[str, list[LedgerContents]] = {}
        if mine is None:
            return
        for r in mine.completions:
            self._drawn.setdefault((r.prompt, r.query), {})[r.draw] = _content(r)
        for record in mine.records:
            if (key := _key(record)) is not None:
                self._keys.add(key)
            if isinstance(record, RunRecord):
                self._runs.setdefault(record.fingerprint, [mine])

    def records(self, contents: LedgerContents) -> Iterator[Record]:
        """Return what a ledger adds, in its order."""
        draws = self._numbered(contents)
        names = {run.fingerprint: self._name(run.fingerprint, contents) for run in contents.runs.values()}
        for fingerprint in names:
            self._runs.setdefault(fingerprint, []).append(contents)
        counted, before = True, frozenset(self._keys)
        for record in contents.records:
            if isinstance(record, RunRecord):
                name = names[record.fingerprint]
                counted = name is not None
                if name is not None:
                    yield replace(record, fingerprint=name)
            elif isinstance(record, CompletionRecord):
                new, fresh = draws[record.prompt, record.query, record.draw]
                if fresh:
                    first, _ = draws.get((record.prompt, record.query, record.first), (new, True))
                    yield replace(record, draw=new, first=first)
            elif not isinstance(record, BatchRecord) and (counted or _key(record) is not None):
                moved = _moved(record, draws)
                key = _key(moved)
                if key not in before:  # of several of one ledger, the last one counts there, too
                    yield moved
                if key is not None:
                    self._keys.add(key)

    def _numbered(self, contents: LedgerContents) -> dict[tuple[str, str, int], tuple[int, bool]]:
        """Return the number of each completion here, and whether it is not here yet."""
        found: dict[tuple[str, str, int], tuple[int, bool]] = {}
        theirs: dict[Cell, dict[int, bytes]] = {}
        for r in contents.completions:
            theirs.setdefault((r.prompt, r.query), {})[r.draw] = _content(r)
        for cell, drawn in theirs.items():
            here = self._drawn.setdefault(cell, {})
            free = itertools.count(max(here.keys() | drawn.keys()) + 1)
            for draw, content in sorted(drawn.items()):
                same = here.get(draw) == content
                found[cell[0], cell[1], draw] = (draw, not same) if same or draw not in here else (next(free), True)
            here.update({found[cell[0], cell[1], draw][0]: content for draw, content in drawn.items()})
        return found

    def _name(self, fingerprint: str, contents: LedgerContents) -> str | None:
        """Return the name of a run here; None for one that is here already, as where ledgers have one origin."""
        before = self._runs.get(fingerprint, [])
        if any(other.paid(fingerprint) == contents.paid(fingerprint) for other in before):
            return None
        return f"{fingerprint}+{len(before)}" if before else fingerprint


def _moved(record: Any, draws: dict[tuple[str, str, int], tuple[int, bool]]) -> Any:
    """Return a record under the new number of its completion, where it belongs to one."""
    if not isinstance(record, (ScoreRecord, VerdictRecord)):
        return record
    parts = record.key.split("/")
    at = len(parts) - 3 - isinstance(record, VerdictRecord)  # a call stands before it, and a count behind it
    if at < 0 or not parts[at + 2].isdecimal():
        return record
    new = draws.get((parts[at], parts[at + 1], int(parts[at + 2])))
    if new is None:
        return record
    parts[at + 2] = str(new[0])
    return replace(record, key="/".join(parts))


def _key(record: object) -> tuple[str, ...] | None:
    """Return what tells apart records that need to be there only once; None for others."""
    if isinstance(record, ScoreRecord):
        return ("score", record.key, record.scorer)
    if isinstance(record, VerdictRecord):
        return ("verdict", record.key)
    if isinstance(record, RewriteRecord):
        return ("rewrite", record.key)
    if isinstance(record, ProposalRecord):
        return ("proposal", record.key, *record.read)
    if isinstance(record, CallRecord):
        return ("call", record.query, record.call, str(record.repeat))
    return None


def _content(record: CompletionRecord) -> bytes:
    """Return a digest of what was drawn.

    A request that was sent twice with one seed is one draw. Without a seed, equal texts are of one draw only where they
    took the same tokens and the same time.
    """
    drawn = [record.text, record.fields, record.inner, record.failure, record.error, record.seed]
    if record.seed is None:
        drawn.append(asdict(record.usage))
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).digest()[:16]


def _line(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
