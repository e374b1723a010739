"""Observations and other arrays as JSON data: columns of numbers as text, packed."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic_core import to_json

from iapo_dspy.preferences import RESOURCES
from iapo_dspy.types import FloatArray, Observations, Pulls

MOST = 2**31 - 1  # of any whole number in a saved policy
_LARGEST = 1 << 28  # bytes of unpacked text; five million completions of evidence fill it
_SAME = "used"  # stands for a column of `once` that is that of `used`: single requests take all of it once
_CLOCK = 6  # significant digits of seconds
_LOGPROBS = 5  # significant digits of logprobs


def plain(data: Any) -> Any:
    """Return numbers, dataclasses and the like as plain JSON data; NaN and infinities, which JSON lacks, as words."""
    return json.loads(to_json(data, inf_nan_mode="strings"))


def packed(data: Any) -> str:
    """Return JSON data as one line of text: compressed by zlib, in base64."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode())).decode()


def unpacked(text: str) -> Any:
    """Read text that `packed` wrote.

    Raises:
        ValueError: It is something else, or is longer than any that a run writes.
    """
    if not isinstance(text, str):
        raise ValueError(f"packed numbers must be text, not {type(text).__name__}")
    reader = zlib.decompressobj()
    try:
        found = reader.decompress(base64.b64decode(text, validate=True), _LARGEST)
    except zlib.error as error:
        raise ValueError(f"packed numbers cannot be unpacked: {error}") from error
    if not reader.eof:
        raise ValueError(f"packed numbers end too early, or unpack to more than {_LARGEST:,} bytes")
    return json.loads(found)


def written(values: np.ndarray[Any, Any], digits: int = 9) -> str:
    """Write numbers as text: DSPy writes one element of an array a line, which would be a line a number."""
    return " ".join(f"{v:.{digits}g}" for v in values.ravel().tolist())


def numbers(text: str, dtype: type, shape: tuple[int, ...] = (-1,)) -> np.ndarray[Any, Any]:
    """Read text that `written` wrote.

    Raises:
        ValueError: It has other numbers than those of the type and the shape.
    """
    values = np.array(text.split(), dtype=float)
    if dtype is np.int64 and not ((np.abs(values) <= MOST) & (values == np.floor(values))).all():
        raise ValueError(f"{text[:40]!r} must be whole numbers up to {MOST}")
    return values.astype(dtype).reshape(shape)


def dumped(observations: Observations) -> dict[str, Any]:
    """Return observations as JSON data, a column each."""
    pulls, score = observations.pulls, observations.score
    overhead = {"overhead": written(observations.overhead)} if observations.overhead.any() else {}
    taken: dict[str, dict[str, str]] = {}
    if observations.used is not None and observations.once is not None:
        used, once = _columns(observations.used), _columns(observations.once)
        taken = {"used": used, "once": {r: _SAME if used.get(r) == text else text for r, text in once.items()}}
    return {
        "prompt": written(pulls.prompt),
        "query": written(pulls.query),
        "size": written(pulls.size),
        "label": written(observations.label),
        "score": [written(column) for column in score.T],
        "cost": written(observations.cost),
        **overhead,
        **taken,
        **({} if observations.logprob is None else {"logprob": written(observations.logprob, _LOGPROBS)}),
    }


def loaded(data: Mapping[str, Any]) -> Observations:
    """Read data that `dumped` wrote.

    Raises:
        KeyError, TypeError, ValueError: The data are damaged.
    """
    used, once = data.get("used"), data.get("once")
    if used is not None and once is not None:
        once = {r: used[r] if text == _SAME else text for r, text in once.items()}
    pulls = Pulls(*(numbers(data[k], np.int64) for k in ("prompt", "query", "size")))
    return Observations(
        pulls=pulls,
        label=numbers(data["label"], np.int64),
        score=np.stack([numbers(column, np.float64) for column in data["score"]], axis=1),
        cost=numbers(data["cost"], np.float64),
        overhead=numbers(data["overhead"], np.float64) if "overhead" in data else np.zeros(len(pulls)),
        used=_rows(used, len(pulls)),
        once=_rows(once, len(pulls)),
        logprob=numbers(data["logprob"], np.float64) if "logprob" in data else None,
    )


def rounded(observations: Sequence[Observations]) -> tuple[Observations, ...]:
    """Return the observations as they would be read back, so that a loaded program solves exactly like this one.

    Seconds are shortened to microseconds or so: clocks tell no more, and noise cannot be packed.
    """
    return tuple(loaded(dumped(replace(o, used=_shortened(o.used), once=_shortened(o.once)))) for o in observations)


def check_ranges(observations: Observations, n_prompts: int, n_queries: int) -> None:
    """Refuse numbers that no run can have measured.

    Raises:
        ValueError: One is out of its range.
    """
    pulls, label = observations.pulls, observations.label
    bounds = {"prompt": (pulls.prompt, n_prompts), "query": (pulls.query, n_queries), "label": (label + 1, MOST)}
    for name, (values, end) in bounds.items():
        if ((values < 0) | (values >= end)).any():
            raise ValueError(f"{name} has {values.min()} to {values.max()}, which must be below {end}")
    costs = (observations.cost, observations.overhead, observations.used, observations.once)
    if any(c is not None and ((c < 0) | np.isinf(c)).any() for c in costs) or np.isinf(observations.score).any():
        raise ValueError("costs must be finite and >= 0, and scores finite")
    if observations.logprob is not None and ((observations.logprob > 0) | np.isinf(observations.logprob)).any():
        raise ValueError("logprobs must be finite and <= 0")


def _shortened(values: FloatArray | None) -> FloatArray | None:
    if values is None:
        return None
    seconds = RESOURCES.index("seconds")
    short = np.array(values)
    short[:, seconds] = numbers(written(values[:, seconds], _CLOCK), np.float64)
    return short


def _columns(values: FloatArray) -> dict[str, str]:
    """Write the columns [B, R] that have anything in them, by the names of their resources."""
    return {name: written(column) for name, column in zip(RESOURCES, values.T, strict=True) if column.any()}


def _rows(columns: Mapping[str, str] | None, length: int) -> FloatArray | None:
    """Read data that `_columns` wrote."""
    if columns is None:
        return None
    found = [numbers(columns[r], np.float64) if r in columns else np.zeros(length) for r in RESOURCES]
    return np.stack(found, axis=1)
