"""Recordings on disk: one `.npz` or one `.parquet` file, versioned.

Format 1 of `.npz`: the arrays of the recording under their own names, `kind` ("vote" or "best-of") and `version`. Files
without `kind` and `version` are read by the names of their arrays. `overhead` is there only where it is not zero.

Format 1 of `.parquet`: one row for each (prompt, query), prompt after prompt, with the columns `prompt`, `query`,
`probs` (list of A or M numbers) and, for "best-of", `outcomes` (list of M * K numbers, outcome after outcome). The
other arrays are JSON in the schema's metadata under the key `iapo_dspy.recording`, with `kind`, `version`, and shapes.
"""

from __future__ import annotations

import importlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.errors import ConfigurationError, one_line

VERSION = 1
_KINDS: dict[str, type[Recording]] = {"vote": VotingRecording, "best-of": BestOfRecording}
_KEY = b"iapo_dspy.recording"
_FIELDS = {
    "vote": ("probs", "answers", "cost", "cost_weights", "credit", "overhead"),
    "best-of": ("outcomes", "probs", "cost", "weights", "overhead"),
}
_OPTIONAL = ("credit", "overhead")
_TABLES = ("probs", "outcomes")
_NEEDED = "Needed are the arrays of a recording, as `save` writes them: " + "; ".join(
    f"{kind}: {', '.join(f'{n} (optional)' if n in _OPTIONAL else n for n in names)}" for kind, names in _FIELDS.items()
)
# Errors of zipfile, zlib, numpy, json and pyarrow on files that are cut, damaged or something else.
_BROKEN = (
    *(ValueError, OSError, EOFError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError),
    *(MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error),
)


def save(recording: Recording, path: str | Path) -> None:
    """Write a recording; the suffix, `.npz` or `.parquet`, says how.

    Raises:
        ConfigurationError: Another suffix, or another kind of recording.
        ImportError: `.parquet` without pyarrow.
    """
    path = Path(path)
    kind = next((name for name, known in _KINDS.items() if isinstance(recording, known)), None)
    if kind is None:
        raise ConfigurationError(f"Cannot write a {type(recording).__name__}: only the two known kinds have a format.")
    arrays = {name: getattr(recording, name) for name in _FIELDS[kind]}
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    if not arrays["overhead"].any():
        del arrays["overhead"]
    if path.suffix == ".npz":
        np.savez_compressed(path, kind=np.array(kind), version=np.array(VERSION), **arrays)
    elif path.suffix == ".parquet":
        _save_parquet(kind, arrays, path)
    else:
        raise ConfigurationError(f"Cannot write {path.name}: a recording is a .npz or a .parquet file.")


def load(path: str | Path) -> Recording:
    """Read a recording that `save` wrote, or an `.npz` with the same arrays.

    Raises:
        ConfigurationError: The file is missing, is not a recording, or is of a later version.
        ImportError: `.parquet` without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"There is no recording at {path}.")
    try:
        if path.suffix == ".parquet":
            return _build(_load_parquet(path), path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return _build({name: archive[name] for name in archive.files}, path)
    except _BROKEN as error:
        if isinstance(error, ConfigurationError) and path.name in str(error):
            raise
        raise ConfigurationError(f"{path.name} is not a recording: {one_line(error)}. {_NEEDED}") from error


def _build(data: Mapping[str, NDArray[Any]], path: Path) -> Recording:
    kind = str(data.get("kind", "best-of" if "outcomes" in data else "vote"))
    number = data.get("version", np.array(VERSION))
    if number.shape != () or number.dtype.kind not in "iu":
        raise ConfigurationError(f"{path.name}: `version` must be one whole number.")
    if number != VERSION or kind not in _FIELDS:
        raise ConfigurationError(f"{path.name} is a recording of kind {kind!r}, version {number}; known is {VERSION}.")
    fields = {name: data[name] for name in _FIELDS[kind] if name in data}
    unknown = sorted(set(data) - {*_FIELDS[kind], "kind", "version"})
    if unknown:
        raise ConfigurationError(f"{path.name} has arrays that no {kind!r} recording has: {unknown}.")
    missing = [name for name in _FIELDS[kind] if name not in fields and name not in _OPTIONAL]
    if missing:
        raise ConfigurationError(f"{path.name} lacks the arrays {missing} of a {kind!r} recording.")
    return _KINDS[kind](**fields)


def _save_parquet(kind: str, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    pa, parquet = _pyarrow()
    prompt, query = (axis.reshape(-1) for axis in np.indices(arrays["probs"].shape[:2]))
    lists = {name: list(arrays[name].reshape(len(query), -1)) for name in _TABLES if name in arrays}
    about = {
        "kind": kind,
        "version": VERSION,
        "shapes": {name: arrays[name].shape for name in lists},
        "arrays": {name: array.tolist() for name, array in arrays.items() if name not in lists},
    }
    table = pa.table({"prompt": prompt, "query": query, **lists})
    parquet.write_table(table.replace_schema_metadata({_KEY: json.dumps(about)}), path)


def _load_parquet(path: Path) -> dict[str, NDArray[Any]]:
    pa, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigurationError(f"{path.name} is not a recording: {error}") from error
    metadata = (table.schema.metadata or {}).get(_KEY)
    if metadata is None:
        raise ConfigurationError(f"{path.name} is not a recording: its schema lacks the key {_KEY.decode()}.")
    about = json.loads(metadata)
    data: dict[str, NDArray[Any]] = {name: np.array(values) for name, values in about["arrays"].items()}
    data["kind"], data["version"] = np.array(about["kind"]), np.array(about["version"])
    n_prompts, n_queries = about["shapes"]["probs"][:2]
    order = _order(table, n_prompts, n_queries, path)
    for name, shape in about["shapes"].items():
        column = table.column(name).combine_chunks()
        width = math.prod(shape[2:])
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if list(shape[:2]) != [n_prompts, n_queries] or (lengths != width).any():
            raise ConfigurationError(f"{path.name}: every row of {name} must hold {width} numbers.")
        data[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)[order].reshape(shape)
    return data


def _order(table: Any, n_prompts: int, n_queries: int, path: Path) -> NDArray[Any]:
    # Tools that sort or filter Parquet keep the metadata, so that only the cells themselves say where rows belong.
    prompt, query = table.column("prompt").to_numpy(), table.column("query").to_numpy()
    for cell, n in ((prompt, n_prompts), (query, n_queries)):
        if cell.dtype.kind not in "iu" or (cell < 0).any() or (cell >= n).any():
            raise ConfigurationError(f"{path.name}: `prompt` and `query` must be whole numbers in range(P), range(X).")
    number = prompt.astype(np.int64) * n_queries + query.astype(np.int64)
    order = np.argsort(number, kind="stable")
    if len(number) != n_prompts * n_queries or (number[order] != np.arange(len(number))).any():
        raise ConfigurationError(
            f"{path.name} must have one row for each of {n_prompts} * {n_queries} (prompt, query): some are missing "
            "or there twice."
        )
    return order


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("Parquet recordings need pyarrow: pip install pyarrow") from error
