"""Scores: read from the value that a metric returns, and kept with a completion."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError, ScoreError
from iapo_dspy.sampling.ledger.digests import digest
from iapo_dspy.sampling.lm.params import generation_params
from iapo_dspy.scoring.user_functions import name_of

Metric = Callable[..., Any]
"""`metric(example, prediction, trace=None) -> bool | float | dspy.Prediction(score=..., feedback=...)`."""

_LONGEST_FEEDBACK = 2000  # characters


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One completion as the algorithm sees it.

    Attributes:
        answer: Key of the answer that it votes for; None where there is no vote.
        scores: One score per column of the strategy (K), its objectives first; when deployed, the label-free ones. None
            for a completion that could not be read.
        failure: Why it failed, in one line; None if it did not. With scores, the metric could not score it: it takes
            part as it does when deployed, where there is no metric, and is worth the metric's lowest value.
        error: True where an exception, rather than the text of the completion, made it fail.
        value: The answer itself, for strategies that compare answers by more than their keys; never stored.
        feedback: What the metric said of it beside the score; only proposers read it.
        compared: Verdicts on it by the name of the objective that compares (`comparisons.Comparison`), as plain data;
            None where there are none.
    """

    answer: str | None = None
    scores: tuple[float, ...] | None = None
    failure: str | None = None
    error: bool = False
    value: Any = field(default=None, compare=False, repr=False)
    feedback: str | None = field(default=None, compare=False, repr=False)
    compared: Mapping[str, Sequence[Any]] | None = field(default=None, compare=False, repr=False)

    @property
    def usable(self) -> bool:
        """Whether it takes part in a call."""
        return self.failure is None or self.scores is not None


def check_bounds(bounds: tuple[float, float], what: str) -> tuple[float, float]:
    """Return the bounds as floats.

    Raises:
        ConfigurationError: They are not two finite numbers in ascending order.
    """
    try:
        low, high = (float(b) for b in bounds)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigurationError(
            f"{what}: bounds must be two finite numbers (low, high) with low < high, got {bounds!r}."
        )
    return low, high


def as_score(value: Any, *, what: str, bounds: tuple[float, float] | None = (0.0, 1.0)) -> float:
    """Read the value of a metric or objective as a score within its bounds.

    Args:
        value: A bool, a number, or a `dspy.Prediction` with a `score`.
        what: Name of the function that returned it, for the message.
        bounds: Lowest and highest score, both allowed; None takes any finite number.

    Raises:
        ScoreError: Anything else, NaN and infinities included.
    """
    if isinstance(value, dspy.Prediction):
        if "score" not in value:
            raise ScoreError(f"{what} returned a Prediction without a `score`; return dspy.Prediction(score=...).")
        value = value.score
    if not isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        raise ScoreError(f"{what} returned {value!r} ({type(value).__name__}); it must return a bool or a number.")
    score = float(value)
    if bounds is None:
        if not math.isfinite(score):
            raise ScoreError(f"{what} returned {score}; a score must be a finite number.")
        return score
    low, high = bounds
    if not low <= score <= high:  # also catches NaN
        raise ScoreError(
            f"{what} returned {score}; scores must lie in [{low:g}, {high:g}]. Rescale it, or set `bounds`."
        )
    return score


class Heard:
    """A metric that is listened to: it does as the metric does, and keeps the feedback that came with a score."""

    def __init__(self, metric: Metric) -> None:
        self.__qualname__ = name_of(metric)
        self._metric = metric
        self.feedback: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Ask the metric."""
        value = self._metric(*args, **kwargs)
        said = value.get("feedback") if isinstance(value, dspy.Prediction) else None
        if isinstance(said, str) and said.strip():
            self.feedback = said.strip()[:_LONGEST_FEEDBACK]
        return value


def function_digest(*parts: Any) -> str:
    """Return a hash of functions' own code and of plain values, the same in every process.

    The values that a function holds are hashed too: those of its closure, its defaults, the arguments of a
    `functools.partial`, and the attributes of a callable object or of a method's object. The code of functions that it
    calls by global names, and global values, have no part in it.

    Of a callable dataclass, as the built-in objectives are, the fields that are compared are hashed.
    """
    found = hashlib.sha256()
    for part in parts:
        found.update(_describe(part).encode(errors="surrogatepass"))
        found.update(b"|")
    return found.hexdigest()[:16]


def _describe(part: Any, inside: tuple[int, ...] = ()) -> str:
    if part is None or isinstance(part, (str, int, float, tuple)):
        return repr(part)
    function = inspect.unwrap(part) if callable(part) else part
    inner = getattr(function, "func", None)  # functools.partial
    if inner is not None:
        given = [function.args, sorted(function.keywords.items())]
        values = [*function.args, *function.keywords.values()]
        if not all(v is None or isinstance(v, (str, int, float)) for v in values):
            given = [[*map(_held, function.args)], [(k, _held(v)) for k, v in given[1]]]
        return f"{_describe(inner, inside)}{given[0]!r}{given[1]!r}"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    owner = getattr(function, "__self__", function)
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    described = f"{name}:{_code(code)}" if code is not None else str(name)
    if id(function) in inside:  # it holds itself
        return described
    inside = (*inside, id(function))
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        compared = [(f.name, _describe(getattr(function, f.name))) for f in dataclasses.fields(function) if f.compare]
        described += repr(compared)
    elif held := [(n, _held(v, inside)) for n, v in _values(function, owner)]:
        described += repr(held)
    return described


def _values(function: Any, owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function, and the object that it is or belongs to, hold by name. A default of None says nothing."""
    plain = isinstance(function, types.FunctionType)
    if plain:
        captured = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        yield from ((name, cell.cell_contents) for name, cell in captured if _filled(cell))
        defaults = enumerate(function.__defaults__ or ())
        yield from ((str(i), value) for i, value in defaults if value is not None)
        yield from sorted((k, v) for k, v in (function.__kwdefaults__ or {}).items() if v is not None)
    owned = callable(function) and (owner is function) != plain  # a callable object, or a method of one
    if owned and not isinstance(owner, (type, types.ModuleType, dspy.BaseLM)) and not is_program(owner):
        yield from sorted(getattr(owner, "__dict__", {}).items(), key=lambda item: item[0])


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # the name has no value yet
        return False


def is_program(value: Any) -> bool:
    """Tell whether a value is a program of DSPy."""
    return hasattr(value, "named_predictors") and not isinstance(value, type)


def _held(value: Any, inside: tuple[int, ...] = ()) -> str:
    """Describe a value that a function holds: LMs and programs by what they ask, not by their history."""
    if isinstance(value, dspy.BaseLM):
        return digest([value.model, generation_params(value.kwargs)])
    if is_program(value):
        states = {name: {**p.dump_state(), "lm": None} for name, p in value.named_predictors()}
        return digest([type(value).__qualname__, states])
    if isinstance(value, types.ModuleType):
        return value.__name__
    if callable(value):
        return _describe(value, inside)
    return digest(value)


def _code(code: Any) -> str:
    constants = [_code(c) if hasattr(c, "co_code") else _constant(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{constants}{code.co_names}{code.co_varnames}"


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
