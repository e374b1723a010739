"""Rows of our own in the columns of each task's data, and files of them in every format."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

FOLDER = Path(__file__).parents[2] / "fixtures" / "tasks"


def fixture(task: str) -> Path:
    """Return the file of a task's rows."""
    return FOLDER / f"{task.replace('/', '_')}.jsonl"


def rows_of(task: str) -> list[dict[str, Any]]:
    """Return a task's rows."""
    return [json.loads(line) for line in fixture(task).read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows by the file's suffix."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), dialect="excel-tab" if path.suffix == ".tsv" else "excel")
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, dict) else v for k, v in r.items()} for r in rows)
    return path
