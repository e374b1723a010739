"""Rows of a local file: JSON, JSON lines, comma- or tab-separated values, Parquet."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iapo_dspy.errors import ConfigurationError, one_line

Rows = list[Mapping[str, Any]]


def read_file(path: Path, *, columns: Sequence[str], headless: Sequence[str] = ()) -> Rows:
    """Return the rows of a file, by its suffix; an empty file has none.

    Args:
        path: The file.
        columns: Columns that are needed, for errors.
        headless: Columns of a `.tsv` or `.txt` file without a line of names. The first line is one of names where it
            has all of them.

    Raises:
        ConfigurationError: There is not such a file, its suffix is not known, or it is not what the suffix says.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None or (path.suffix.lower() == ".txt" and not headless):
        raise ConfigurationError(f"path={str(path)!r}: give a file with one of the suffixes {', '.join(SUFFIXES)}.")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        needed = ", ".join(map(repr, columns))
        raise ConfigurationError(f"path={str(path)!r} {what}: give a file with the columns {needed}.")
    try:
        return read(path, headless)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise ConfigurationError(f"path={str(path)!r} cannot be read: {one_line(exc)}.") from exc


def _json(path: Path, headless: Sequence[str]) -> Rows:
    text = path.read_text(encoding="utf-8-sig")
    found = _parsed(text, str(path)) if text.strip() else []
    if not isinstance(found, list):
        raise ConfigurationError(f"{path}: give a JSON list of objects, one a row; it is a {type(found).__name__}.")
    return [_object(row, f"{path}, row {number}") for number, row in enumerate(found, 1)]


def _json_lines(path: Path, headless: Sequence[str]) -> Rows:
    with path.open(encoding="utf-8-sig") as lines:
        named = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]
    return [_object(_parsed(line, where), where) for where, line in named if line.strip()]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ConfigurationError(f"{where} is not JSON: {one_line(exc)}.") from exc


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ConfigurationError(f"{where}: give an object, column -> value; this is a {type(row).__name__}.")
    return row


def _separated(path: Path, headless: Sequence[str]) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.reader(lines, "excel"))
    return _named(rows, path)


def _tabs(path: Path, headless: Sequence[str]) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline().rstrip("\r\n").split("\t")
        lines.seek(0)
        if headless and not {*headless} <= {*first}:
            return _plain(lines.read(), path, headless)
        rows = list(csv.reader(lines, "excel-tab"))
    return _named(rows, path)


def _plain(text: str, path: Path, columns: Sequence[str]) -> Rows:
    """Read lines of cells between tabs, in which a quotation mark is a character like any other."""
    found: Rows = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split("\t")
        if line.strip() and len(cells) != len(columns):
            raise ConfigurationError(
                f"{path}, line {number}: give {' TAB '.join(columns)} on each line, or a first line with the names of "
                f"the columns; this line has {len(cells)} cells."
            )
        if line.strip():
            found.append(dict(zip(columns, cells, strict=True)))
    return found


def _named(rows: list[list[str]], path: Path) -> Rows:
    if not rows:
        return []
    names, found = rows[0], list[Mapping[str, Any]]()
    for number, cells in enumerate(rows[1:], 1):
        if cells and len(cells) != len(names):
            raise ConfigurationError(f"{path}, row {number}: {len(cells)} cells, and the columns are {names}.")
        if cells:
            found.append(dict(zip(names, cells, strict=True)))
    return found


def _parquet(path: Path, headless: Sequence[str]) -> Rows:
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")  # they ship no types
    try:
        rows: Rows = parquet.read_table(path).to_pylist()
    except pa.ArrowException as exc:
        raise ConfigurationError(f"{path} is not a Parquet file: {one_line(exc)}.") from exc
    return rows


_READERS: dict[str, Callable[[Path, Sequence[str]], Rows]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _separated,
    ".tsv": _tabs,
    ".txt": _tabs,
    ".parquet": _parquet,
}
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of files that tasks read."""
