"""Reads a ledger's file: every line is checked once, and columns say where the record of each line stands.

The records themselves stay in the file until they are asked for. So a ledger of half a million completions takes tens
of megabytes of memory, and is open after one pass over its lines.
"""

from __future__ import annotations

import array
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_jsonable_python

from iapo_dspy.errors import LedgerError
from iapo_dspy.sampling.ledger.records import (
    KINDS,
    CompletionRecord,
    PullKey,
    Record,
    check_line,
    decode_record,
    lines,
)

R = TypeVar("R", bound=Record)

FORMAT = "iapo_dspy.ledger"
VERSION = 1
_START = b'{"kind":"header","format":'
_LONGEST = 1 << 27  # bytes of a line, so that no file makes memory grow without end
_NAMES = ("round", "position", "index")  # of a completion
_COMPLETION = list(KINDS.values()).index(CompletionRecord)
# What is known of each record: the number of its kind, its name, and where its line starts and how long it is.
_ROW = np.dtype([(name, np.int64) for name in ("kind", *_NAMES, "key", "start", "length")])


class _TooDeepError(ValueError):
    """JSON of more levels than a record may have."""


class StoredRecords(Sequence[R]):
    """Records that stay in a ledger's file and are read when they are asked for, by any thread.

    Args:
        path: The file.
        places: Where the line of each record starts, and its length in bytes [n].
    """

    def __init__(self, path: Path, places: NDArray[Any]) -> None:
        self._path = path
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
            return StoredRecords(self._path, self._places[index])
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


@dataclass(frozen=True, kw_only=True, eq=False)
class LedgerContents:
    """Everything that a ledger's file holds.

    Attributes:
        path: The file.
        header: Its first line; empty where there is none yet.
        size: Bytes of its whole groups of records.
        rows: One for each record, in the order of the file [n].
    """

    path: Path
    header: Mapping[str, Any]
    size: int
    rows: NDArray[Any]

    @property
    def records(self) -> StoredRecords[Record]:
        """Every record, in the order in which they were written."""
        return StoredRecords(self.path, self.rows)

    @property
    def about(self) -> Mapping[str, Any]:
        """Facts that the first process of the run wrote of it, beside those that it depends on."""
        found = (self.header.get("settings") or {}).get("about")
        return found if isinstance(found, Mapping) else {}

    def all(self, kind: type[R]) -> StoredRecords[R]:
        """Return every record of a kind, in the order in which they were written."""
        return StoredRecords(self.path, self._rows_of(kind))

    @property
    def completions(self) -> StoredRecords[CompletionRecord]:
        """Every completion in the order of rounds, positions and indices; of several with one name, the last."""
        return StoredRecords(self.path, self._completions)

    def completions_of(self, pull: PullKey) -> StoredRecords[CompletionRecord]:
        """Return the completions of a pull, as `completions` has them."""
        number = _number(*pull)
        first, end = np.searchsorted(self._pulls, (number, number + 1))
        return StoredRecords(self.path, self._completions[first:end])

    def last(self, kind: type[R], key: str) -> R | None:
        """Return the last record of a kind whose `key` is this one."""
        rows, wanted = self._by_key, hash(key)
        first, end = (int(np.searchsorted(rows["key"], wanted, side=side)) for side in ("left", "right"))
        found = StoredRecords[Any](self.path, rows[first:end])
        return next((r for r in reversed(found) if isinstance(r, kind) and getattr(r, "key", None) == key), None)

    def _rows_of(self, kind: type) -> NDArray[Any]:
        return np.asarray(self.rows[self.rows["kind"] == list(KINDS.values()).index(kind)])

    @functools.cached_property
    def _completions(self) -> NDArray[Any]:
        rows = self._rows_of(CompletionRecord)
        names = [rows[name] for name in _NAMES]
        order = np.lexsort(names[::-1])  # a stable sort: of equal names, the last one was written last
        equal = np.all([name[order][1:] == name[order][:-1] for name in names], axis=0)
        return np.asarray(rows[order[np.append(~equal, np.ones(min(len(rows), 1), dtype=bool))]])

    @functools.cached_property
    def _pulls(self) -> NDArray[np.int64]:
        return np.asarray(_number(self._completions["round"], self._completions["position"]))

    @functools.cached_property
    def _by_key(self) -> NDArray[Any]:
        return self.rows[np.argsort(self.rows["key"], kind="stable")]


def _number(round: Any, position: Any) -> Any:
    return round * 2**31 + position


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
                group.extend((kind, line["round"], line["position"], line["index"], 0, start, len(raw)))
            else:
                group.extend((kind, 0, 0, 0, hash(line["key"]) if "key" in line else 0, start, len(raw)))
        start += len(raw)
        if "more" not in line or not line["more"]:
            rows.extend(group)
            del group[:]
            size = start
    return LedgerContents(path=path, header=header, size=size, rows=np.frombuffer(rows, dtype=_ROW))


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
    settings = found.get("settings")
    if not isinstance(found.get("fingerprint"), str) or not isinstance(settings, Mapping | None):
        raise LedgerError(f"{path} is damaged at line 1: its `fingerprint` must be text, its `settings` an object.")


def read_ledger(log_dir: str | os.PathLike[str]) -> tuple[Mapping[str, Any], StoredRecords[Record]]:
    """Read a run's ledger without locking or changing it; the run may still be going on.

    Args:
        log_dir: The run's directory.

    Returns:
        The header, with the run's `settings`, and every whole record in the order in which it was written.

    Raises:
        LedgerError: There is none, it is not a ledger, is of a newer version, or is damaged elsewhere than at its end.
    """
    contents = contents_of(log_dir)
    return contents.header, contents.records


def contents_of(log_dir: str | os.PathLike[str]) -> LedgerContents:
    """Return everything that a run's ledger holds, as `read_ledger` does."""
    contents = read_contents(Path(log_dir) / "ledger.jsonl")
    _check_format(contents.header, contents.path)
    return contents
