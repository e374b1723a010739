"""Recordings on disk: one `.npz` or one `.parquet` file, versioned.

Format 1 of `.npz`: the arrays of the recording under their own names, `kind` ("vote" or "best-of") and `version`. Files
without `kind` and `version` are read by the names of their arrays. `overhead` is there only where it is not zero,
and `parts` where the recording has them.

Format 1 of `.parquet`: one row for each (prompt, query), prompt after prompt, with the columns `prompt`, `query`,
`probs` (list of A or M numbers) and, for "best-of", `outcomes` (list of M * K numbers, outcome after outcome). The
other arrays are JSON in the schema's metadata under the key `iapo_dspy.recording`, with `kind`, `version`, and shapes.

Format 2 of both is format 1 with the completions (`Draws`) or a card, or both. With the completions, `probs` are left
out, because they follow: `outcome`, `tokens`, `finish` [P, X, S], `prompt_tokens` [P, X], `failures` [P, F] and the
lists of texts `endings` and `causes`; in Parquet, arrays of prompts and queries are columns. `card` is JSON text. Whole
numbers take as few bytes as the largest one needs. Recordings without both are written as format 1, and equal
recordings as equal bytes.
"""

from __future__ import annotations

import importlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.environments.recorded.drawn import Draws
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.errors import ConfigurationError, one_line, storing, whole_file

VERSION = 2
LARGEST = 1 << 30
"""Bytes that the arrays of a file may take unless the caller allows more."""
_NUMBERS = ("DOUBLE", "FLOAT", "INT32", "INT64")  # of Parquet; booleans, texts and decimals have no place here
_KINDS: dict[str, type[Recording]] = {"vote": VotingRecording, "best-of": BestOfRecording}
_KEY = b"iapo_dspy.recording"
_FIELDS = {
    "vote": ("probs", "answers", "cost", "cost_weights", "credit", "overhead", "parts"),
    "best-of": ("outcomes", "probs", "cost", "weights", "overhead", "parts"),
}
_OPTIONAL = ("credit", "overhead", "parts")
_DRAWN = tuple(f.name for f in fields(Draws))
_TEXTS = ("endings", "causes")
_TABLES = ("probs", "outcomes", "outcome", "tokens", "prompt_tokens", "finish")
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
        StorageError: The file cannot be written; one that was there is as it was.
        ImportError: `.parquet` without pyarrow.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".parquet"):
        raise ConfigurationError(f"Cannot write {path.name}: a recording is a .npz or a .parquet file.")
    kind = next((name for name, known in _KINDS.items() if isinstance(recording, known)), None)
    if kind is None:
        raise ConfigurationError(f"Cannot write a {type(recording).__name__}: only the two known kinds have a format.")
    arrays = {name: getattr(recording, name) for name in _FIELDS[kind]}
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    if not arrays["overhead"].any():
        del arrays["overhead"]
    drawn, card = recording.drawn, recording.card
    if drawn is not None:
        del arrays["probs"]
        arrays |= {name: _small(getattr(drawn, name)) for name in _DRAWN}
    if card:
        arrays["card"] = np.array(json.dumps(card, sort_keys=True))
    version = np.array(VERSION if drawn is not None or card else 1)
    with storing(path), whole_file(path) as part:
        if path.suffix == ".npz":
            np.savez_compressed(part, kind=np.array(kind), version=version, **arrays)
        else:
            _save_parquet({"kind": np.array(kind), "version": version, **arrays}, part)


def load(path: str | Path, *, largest: int = LARGEST) -> Recording:
    """Read a recording that `save` wrote, or an `.npz` with the same arrays.

    Args:
        path: The file.
        largest: Bytes that its arrays may take in memory. The file's headers say how many that is, so a small file that
            unpacks to a huge one is refused before anything is unpacked.

    Raises:
        ConfigurationError: The file is missing, is not a recording, is too large, or is of a later version.
        StorageError: It cannot be read.
        ImportError: `.parquet` without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"There is no recording at {path}.")
    try:
        if path.suffix == ".parquet":
            return _build(_load_parquet(path, largest), path)
        with path.open("rb") as file:
            _check_size(_unpacked(file), largest, path)
            with np.load(file, allow_pickle=False) as archive:
                return _build({name: archive[name] for name in archive.files}, path)
    except _BROKEN as error:
        if isinstance(error, ConfigurationError) and path.name in str(error):
            raise
        if isinstance(error, PermissionError | IsADirectoryError):
            with storing(path, "read"):
                raise
        raise ConfigurationError(f"{path.name} is not a recording: {one_line(error)}. {_NEEDED}") from error


def _small(values: Any) -> NDArray[Any]:
    """Return whole numbers in as few bytes as the largest one needs, and texts as an array of texts."""
    if isinstance(values, tuple):
        return np.array(values, dtype=np.str_)
    array = np.asarray(values)
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    return array.astype(np.min_scalar_type(high if low >= 0 else min(low, -high - 1)))


def _check_size(unpacked: int, largest: int, path: Path) -> None:
    if unpacked > largest:
        raise ConfigurationError(
            f"{path.name} would take {unpacked:,} bytes in memory, and {largest:,} are allowed. If you trust the file: "
            f"load(path, largest={unpacked})."
        )


def _unpacked(file: IO[bytes]) -> int:
    """Return the bytes that the arrays of an `.npz` take, by the headers of the archive and of each array.

    Raises:
        ValueError: A header says another size than the archive: NumPy would believe it.
    """
    total = 0
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            total += info.file_size
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                if dtype.hasobject or math.prod(shape) * dtype.itemsize + member.tell() != info.file_size:
                    raise ValueError(f"{info.filename} has {info.file_size} bytes, and its shape is {shape} of {dtype}")
    file.seek(0)
    return total


def _build(data: Mapping[str, NDArray[Any]], path: Path) -> Recording:
    kind = str(data.get("kind", "best-of" if "outcomes" in data else "vote"))
    number = data.get("version", np.array(1))
    if number.shape != () or number.dtype.kind not in "iu":
        raise ConfigurationError(f"{path.name}: `version` must be one whole number.")
    if not 1 <= number <= VERSION or kind not in _FIELDS:
        raise ConfigurationError(
            f"{path.name} is a recording of kind {kind!r}, version {number}; known are versions 1 to {VERSION}."
        )
    more = {*_DRAWN, "card"} if number > 1 else set()
    unknown = sorted(set(data) - {*_FIELDS[kind], "kind", "version", *more})
    if unknown:
        raise ConfigurationError(f"{path.name} has arrays that no {kind!r} recording has: {unknown}.")
    known: dict[str, Any] = {name: data[name] for name in _FIELDS[kind] if name in data}
    drawn, needed = any(name in data for name in _DRAWN), [n for n in _FIELDS[kind] if n not in _OPTIONAL]
    missing = [n for n in [*needed, *(_DRAWN if drawn else ())] if n not in data and not (drawn and n == "probs")]
    if missing:
        raise ConfigurationError(f"{path.name} lacks the arrays {missing} of a {kind!r} recording.")
    if drawn:
        parts: dict[str, Any] = {name: data[name] for name in _DRAWN}
        for name in _TEXTS:
            if parts[name].ndim != 1 or (parts[name].size and parts[name].dtype.kind != "U"):
                raise ConfigurationError(f"{path.name}: `{name}` must be a list of texts.")
            parts[name] = tuple(parts[name].tolist())
        known["drawn"] = Draws(**parts)
        known.setdefault("probs", known["drawn"].law(_outcomes(known)))
    if "card" in data:
        known["card"] = json.loads(str(data["card"]))
        if not isinstance(known["card"], dict):
            raise ConfigurationError(f"{path.name}: `card` must be a JSON object.")
    return _KINDS[kind](**known)


def _outcomes(known: Mapping[str, Any]) -> int:
    """Return M of a recording that has its completions instead of `probs`."""
    most = int(known["drawn"].outcome.max()) + 1
    if "outcomes" in known:
        return max(most, int(known["outcomes"].shape[2]))
    return max(most, int(known["answers"].max(initial=0)) + 1)


def _save_parquet(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    pa, parquet = _pyarrow()
    cells = arrays["outcome" if "outcome" in arrays else "probs"].shape[:2]
    prompt, query = (axis.reshape(-1) for axis in np.indices(cells))
    lists = {name: list(arrays[name].reshape(len(query), -1)) for name in _TABLES if name in arrays}
    about = {
        "kind": str(arrays["kind"]),
        "version": int(arrays["version"]),
        "shapes": {name: arrays[name].shape for name in lists},
        "arrays": {n: array.tolist() for n, array in arrays.items() if n not in (*lists, "kind", "version")},
    }
    table = pa.table({"prompt": prompt, "query": query, **lists})
    parquet.write_table(table.replace_schema_metadata({_KEY: json.dumps(about)}), path)


def _load_parquet(path: Path, largest: int) -> dict[str, NDArray[Any]]:
    pa, parquet = _pyarrow()
    try:
        about = parquet.read_metadata(path)
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        if wrong := sorted({c.path_in_schema for c in columns if c.physical_type not in _NUMBERS}):
            raise ConfigurationError(f"{path.name} is not a recording: its columns {wrong} are not numbers.")
        # Not `total_uncompressed_size`: equal values take next to nothing there, and eight bytes each in memory.
        _check_size(8 * (about.serialized_size + sum(c.num_values for c in columns)), largest, path)
        table = parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigurationError(f"{path.name} is not a recording: {error}") from error
    metadata = (table.schema.metadata or {}).get(_KEY)
    if metadata is None:
        raise ConfigurationError(f"{path.name} is not a recording: its schema lacks the key {_KEY.decode()}.")
    about = json.loads(metadata)
    data: dict[str, NDArray[Any]] = {name: np.array(values) for name, values in about["arrays"].items()}
    data["kind"], data["version"] = np.array(about["kind"]), np.array(about["version"])
    n_prompts, n_queries = about["shapes"]["outcome" if "outcome" in about["shapes"] else "probs"][:2]
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
