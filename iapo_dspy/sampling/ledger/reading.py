"""Reads a ledger's file: every line is checked once, and columns say where the record of each line stands.

The records themselves stay in the file until they are asked for. So a ledger of half a million completions takes tens
of megabytes of memory, and is open after one pass over its lines.
"""

from __future__ import annotations

import array
import functools
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_jsonable_python

from iapo_dspy.errors import LedgerError
from iapo_dspy.sampling.ledger.records import (
    FORMAT,
    KINDS,
    VERSION,
    Cell,
    CompletionRecord,
    GenerationRecord,
    Record,
    RunRecord,
    SpentRecord,
    check_line,
    decode_record,
    lines,
)
from iapo_dspy.sampling.ledger.upgrade import Older, is_older, rewrite

R = TypeVar("R", bound=Record)

_START = b'{"kind":"header","format":'
_LONGEST = 1 << 27  # bytes of a line, so that no file makes memory grow without end
_COMPLETION = list(KINDS.values()).index(CompletionRecord)
# What is known of each record: the number of its kind; of a completion, the number of its cell, that of its draw and
# whether it was lost to an error; of others, a hash of their key; where the line starts and how long it is.
_ROW = np.dtype([(name, np.int64) for name in ("kind", "cell", "draw", "lost", "key", "start", "length")])


class _TooDeepError(ValueError):
    """JSON of more levels than a record may have."""


class _Copy:
    """A file of this name that is there as long as this object."""

    def __init__(self, name: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="iapo_dspy-"))
        self.path = folder / name
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)


class StoredRecords(Sequence[R]):
    """Records that stay in a ledger's file and are read when they are asked for, by any thread.

    Args:
        path: The file.
        places: Where the line of each record starts, and its length in bytes [n].
        copy: Whatever must live as long as these for the file to be there.
    """

    def __init__(self, path: Path, places: NDArray[Any], *, copy: object = None) -> None:
        self._path = path
        self._copy = copy
        self._places = places[["start", "length"]]

    def __len__(self) -> int:
        """Return n."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> StoredRecords[R]: ...

    def __getitem__(self, index: int | slice) -> R | StoredRecords[R]:
        """Read one record; of a slice, none yet."""
        if isinstance(index, slice):
            return StoredRecords(self._path, self._places[index], copy=self._copy)
        return next(iter(StoredRecords[R](self._path, self._places[[index]])))

    def __iter__(self) -> Iterator[R]:
        """Read the records one after the other.

        Raises:
            LedgerError: The lines are not there any more.
        """
        if not len(self):
            return
        try:
            with self._path.open("rb") as file:
                for start, length in self._places.tolist():
                    file.seek(start)
                    yield decode_record(_parsed(file.read(length)))  # type: ignore[misc]  # its kind is known
        except (OSError, ValueError, TypeError) as error:
            raise LedgerError(f"{self._path} was changed while it was read ({error}). Run again.") from error


@dataclass(frozen=True, kw_only=True)
class Paid:
    """The spending of a run at its start, which other runs had paid, and at its end."""

    before: SpentRecord
    after: SpentRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class LedgerContents:
    """Everything that a ledger's file holds.

    Attributes:
        path: The file.
        header: Its first line; empty where there is none yet.
        size: Bytes of its whole groups of records.
        rows: One for each record, in the order of the file [n].
        ids: The prompts and queries of the cells; their numbers are their positions.
        copy: The copy that the file is, which is removed with the last object that reads it.
    """

    path: Path
    header: Mapping[str, Any]
    size: int
    rows: NDArray[Any]
    ids: Sequence[str] = ()
    copy: _Copy | None = None

    @property
    def records(self) -> StoredRecords[Record]:
        """Every record, in the order in which they were written."""
        return self._stored(self.rows)

    @functools.cached_property
    def runs(self) -> Mapping[int, RunRecord]:
        """The record of each run that begins or goes on, by the position of the record."""
        return dict(
            zip(np.flatnonzero(self.rows["kind"] == _kind(RunRecord)).tolist(), self.all(RunRecord), strict=True)
        )

    @property
    def run(self) -> RunRecord | None:
        """The run that wrote last, with its settings; None before the first one."""
        last = max(self.runs, default=None)
        return None if last is None else self.run_of(self.runs[last].fingerprint)

    def run_of(self, fingerprint: str) -> RunRecord | None:
        """Return the first record of a run; None where it has not begun."""
        return next((run for run in self.runs.values() if run.fingerprint == fingerprint), None)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The facts that the last run depends on."""
        return (self.run.settings if self.run is not None else None) or {}

    @property
    def about(self) -> Mapping[str, Any]:
        """Facts that the first process of the last run wrote of it, beside those that it depends on."""
        found = self.settings.get("about")
        return found if isinstance(found, Mapping) else {}

    def all(self, kind: type[R], *, before: int | None = None) -> StoredRecords[R]:
        """Return every record of a kind, those before a position only, in the order in which they were written."""
        rows = self.rows[:before]
        return self._stored(rows[rows["kind"] == _kind(kind)])

    def own(self, kind: type[R], fingerprint: str) -> StoredRecords[R]:
        """Return every record of a kind that a run has written, in their order."""
        return self._stored(self.rows[self._own(fingerprint) & (self.rows["kind"] == _kind(kind))])

    def generations(self, fingerprint: str) -> dict[int, GenerationRecord]:
        """Return the generations of prompts that a run got, by number.

        An empty one after which the run has drawn nothing is left out: it may be asked for again.
        """
        mine = self._own(fingerprint)
        places = np.flatnonzero(mine & (self.rows["kind"] == _kind(GenerationRecord)))
        last = np.flatnonzero(mine & (self.rows["kind"] == _COMPLETION)).max(initial=-1)
        found: StoredRecords[GenerationRecord] = self._stored(self.rows[places])
        return {r.generation: r for at, r in zip(places.tolist(), found, strict=True) if r.proposals or at < last}

    def paid(self, fingerprint: str, *, before: int | None = None) -> Paid:
        """Return the spending of a run, by the records before a position."""
        mine = self._own(fingerprint)[:before] & (self.rows["kind"][:before] == _kind(SpentRecord))
        found: StoredRecords[SpentRecord] = self._stored(self.rows[:before][mine])
        return Paid(before=found[0], after=found[-1]) if len(found) else Paid(before=SpentRecord(), after=SpentRecord())

    @property
    def completions(self) -> StoredRecords[CompletionRecord]:
        """Every completion, in the order in which they were written; of several with one name, the last."""
        return self._stored(self.rows[np.sort(self._last())])

    def completions_of(self, cell: Cell, draws: Collection[int]) -> dict[int, CompletionRecord]:
        """Return those of these draws of a cell that later pulls can use (`usable`), by number."""
        number = self._numbers.get(cell)
        if number is None:
            return {}
        rows = self._usable
        rows = rows[slice(*np.searchsorted(rows["cell"], (number, number + 1)))]
        rows = rows[np.isin(rows["draw"], list(draws))]
        return {r.draw: r for r in self._stored(rows)}

    def usable(self, *, before: int | None = None, by: str | None = None) -> dict[Cell, list[int]]:
        """Return the draws that later pulls can use, ascending, by cell.

        A completion that was lost to an error is drawn again, unless its run had come to its end: then it is part of
        the run's results.

        Args:
            before: Count records before this position only. Default: all of them.
            by: Count those of the run with this fingerprint only. Default: those of all runs.
        """
        index = self._standing(before)
        rows = self.rows[index if by is None else index[self._own(by)[index]]]
        cells, starts = np.unique(rows["cell"], return_index=True)
        draws = np.split(rows["draw"], starts[1:]) if len(cells) else []
        names = [(self.ids[cell >> 31], self.ids[cell & (2**31 - 1)]) for cell in cells.tolist()]
        return {name: some.tolist() for name, some in zip(names, draws, strict=True)}

    def last(self, kind: type[R], key: str, **wanted: str) -> R | None:
        """Return the last record of a kind whose `key` is this one, and whose other fields are as wanted."""
        rows, number = self._by_key, hash(key)
        first, end = (int(np.searchsorted(rows["key"], number, side=side)) for side in ("left", "right"))
        found = (r for r in reversed(self._stored(rows[first:end])) if isinstance(r, kind))
        wanted = {"key": key, **wanted}
        return next((r for r in found if all(getattr(r, name) == value for name, value in wanted.items())), None)

    def _stored(self, rows: NDArray[Any]) -> StoredRecords[Any]:
        return StoredRecords(self.path, rows, copy=self.copy)

    def _own(self, fingerprint: str) -> NDArray[np.bool_]:
        """Tell which rows a run has written [n]."""
        mine = np.array([False, *(run.fingerprint == fingerprint for run in self.runs.values())])
        return np.asarray(mine[self._segment(np.arange(len(self.rows)))])

    def _segment(self, index: NDArray[Any]) -> NDArray[Any]:
        """Return how many run records stand before rows, or are these rows."""
        return np.searchsorted(np.array(list(self.runs), dtype=np.int64), index, side="right")

    def _last(self, before: int | None = None) -> NDArray[Any]:
        """Return the positions of the completions in the order of cells and draws; of equal names, the last."""
        rows = self.rows[:before]
        index = np.flatnonzero(rows["kind"] == _COMPLETION)
        cell, draw = rows["cell"][index], rows["draw"][index]
        order = np.lexsort((draw, cell))  # a stable sort: of equal names, the last one was written last
        equal = (cell[order][1:] == cell[order][:-1]) & (draw[order][1:] == draw[order][:-1])
        return np.asarray(index[order[np.append(~equal, np.ones(min(len(index), 1), dtype=bool))]])

    def _standing(self, before: int | None = None) -> NDArray[Any]:
        index = self._last(before)
        lost = self.rows["lost"][index] > 0
        if lost.any():
            ended = np.zeros(len(self.runs) + 1, dtype=bool)
            for i, run in enumerate(self.runs.values()):
                ended[i + 1] = self.paid(run.fingerprint, before=before).after.finished
            index = index[~lost | ended[self._segment(index)]]
        return index

    @functools.cached_property
    def _usable(self) -> NDArray[Any]:
        return np.asarray(self.rows[self._standing()])

    @functools.cached_property
    def _numbers(self) -> dict[Cell, int]:
        return {
            (self.ids[cell >> 31], self.ids[cell & (2**31 - 1)]): cell
            for cell in np.unique(self._usable["cell"]).tolist()
        }

    @functools.cached_property
    def _by_key(self) -> NDArray[Any]:
        return self.rows[np.argsort(self.rows["key"], kind="stable")]


def _kind(kind: type) -> int:
    return list(KINDS.values()).index(kind)


def read_contents(path: Path) -> LedgerContents:
    """Read a ledger's file without locking or changing it.

    Raises:
        LedgerError: It cannot be read, it is not a ledger, is of a newer version, or is damaged elsewhere than at its
            end; the message says in which line.
    """
    try:
        if not path.is_file():
            raise LedgerError(f"There is no ledger at {path}. Give the log_dir of a run.")
        with path.open("rb") as file:
            return _read(file, path)
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error.strerror}). Give the log_dir of a run.") from error


def _read(file: IO[bytes], path: Path) -> LedgerContents:
    header: Mapping[str, Any] = {}
    rows, group = array.array("q"), array.array("q")
    ids: dict[str, int] = {}
    start = size = number = 0
    validate, kinds = lines().validate_json, {name: i for i, name in enumerate(KINDS)}
    while raw := file.readline(_LONGEST):
        number += 1
        try:
            line = validate(raw) if header else _parsed(raw)
        except ValueError:  # it is damaged, of a kind of later versions, or its text needs a slower parser
            line = None
        if line is None or raw[-1:] != b"\n" or not isinstance(line, dict):
            line = _looked_at(raw, file, path, number, start, header)
            if line is None:
                break
        if not header:
            header = line
            _check_format(header, path)
        elif (kind := kinds.get(line["kind"])) is not None:
            if kind == _COMPLETION:
                prompt, query = (ids.setdefault(line[name], len(ids)) for name in ("prompt", "query"))
                lost = line.get("error", False) and line.get("text") is None
                group.extend((kind, prompt << 31 | query, line["draw"], lost, 0, start, len(raw)))
            else:
                group.extend((kind, 0, 0, 0, hash(line["key"]) if "key" in line else 0, start, len(raw)))
        start += len(raw)
        if "more" not in line or not line["more"]:
            rows.extend(group)
            del group[:]
            size = start
    return LedgerContents(path=path, header=header, size=size, rows=np.frombuffer(rows, dtype=_ROW), ids=list(ids))


def _looked_at(
    raw: bytes, file: IO[bytes], path: Path, number: int, start: int, header: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a line that is sound after all; None for the half record that a killed process left at the end.

    Raises:
        LedgerError: The line is damaged; the message says where.
    """
    problem, torn = "it is not an object", True
    if raw.endswith(b"\n"):
        try:
            line = _parsed(raw)
            if isinstance(line, dict):
                torn = False
                check_line(line)
                return line
        except ValueError as error:
            problem, torn = str(error), torn and not isinstance(error, _TooDeepError)
    if not header and not raw.startswith(_START[: len(raw)]):
        raise LedgerError(f"{path} is not a ledger of this package. Choose another log_dir.")
    if torn and len(raw) < _LONGEST and file.readline(_LONGEST)[-1:] != b"\n":
        return None
    raise LedgerError(
        f"{path} is damaged at line {number} (byte {start}), not only at its end: {problem}. Repair that line, or move "
        "the file away, then run again."
    )


def _parsed(raw: bytes) -> Any:
    """Return the JSON value of a line.

    Raises:
        ValueError: It is not JSON, or is nested too deep to be read.
    """
    try:
        return from_json(raw)
    except ValueError:
        pass  # it knows neither half a surrogate pair nor more than 200 levels
    try:
        value = json.loads(raw)
    except RecursionError:
        raise _TooDeepError("it is nested too deep") from None
    try:
        to_jsonable_python(value)  # it counts levels
    except ValueError:
        raise _TooDeepError("it is nested too deep") from None
    return value


def _check_format(found: Mapping[str, Any], path: Path) -> None:
    if found.get("format") != FORMAT:
        raise LedgerError(f"{path} is not a ledger of this package. Choose another log_dir.")
    if found.get("version") != VERSION:
        raise LedgerError(
            f"{path} has version {found.get('version')!r}; this package writes version {VERSION}. "
            "Use the package that wrote it, or another log_dir."
        )


def read_ledger(log_dir: str | os.PathLike[str]) -> tuple[Mapping[str, Any], StoredRecords[Record]]:
    """Read a ledger without locking or changing it; a run may still be going on.

    Args:
        log_dir: The run's directory.

    Returns:
        The settings of the run that wrote last, and every whole record in the order in which it was written.

    Raises:
        LedgerError: There is none, it is not a ledger, is of another version, or is damaged elsewhere than at its end.
    """
    contents = contents_of(log_dir)
    return contents.settings, contents.records


def contents_of(log_dir: str | os.PathLike[str], older: Callable[[], Older] | None = None) -> LedgerContents:
    """Return everything that a ledger holds, as `read_ledger` does.

    One of version 1 is read from a copy that is written for it, with the names that `older` returns where it is given.

    Raises:
        LedgerMismatch: It is of version 1, and has other candidates, examples, LMs or another adapter than `older`.
    """
    path = Path(log_dir) / "ledger.jsonl"
    if is_older(path):
        copy = _Copy(path.name)
        rewrite(path, copy.path, None if older is None else older())
        return replace(read_contents(copy.path), copy=copy)
    contents = read_contents(path)
    _check_format(contents.header, contents.path)
    return contents
