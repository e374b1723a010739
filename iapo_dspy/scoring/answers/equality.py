"""When two answers are one: within a tolerance, by mathematics, or as the user says."""

from __future__ import annotations

import decimal
import fractions
import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.scoring.answers.normalize import Normalize, answer_key, normalize_answer, plain_text
from iapo_dspy.scoring.user_functions import misfit, name_of

Equality = Callable[[Any, Any], bool]
"""`equal(a, b) -> bool` on two normalised answers; it need not be transitive."""

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_MOST_PAIRS = 1 << 16
_NUMBERS = (int, float, decimal.Decimal, fractions.Fraction, np.integer, np.floating)


# Ledgers keep a hash of this function, docstring included: other code makes resumed runs score again.
def number_of(value: Any) -> float | None:
    """Return a value as a number; None if it is none. A string may have blanks, thousands separators, a final stop."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip().replace("\N{MINUS SIGN}", "-").rstrip(".")
        text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
        try:
            return float(text)
        except ValueError:
            return None
    return float(value) if isinstance(value, _NUMBERS) else None


@dataclass(frozen=True, kw_only=True)
class Close:
    """An equality for votes: numbers are one answer where |a - b| <= max(absolute, relative * max(|a|, |b|)).

    Text that is a number is compared as one; lists, tuples and dictionaries item by item; anything else by its key.

    Args:
        absolute: Largest difference, >= 0.
        relative: Largest difference as a share of the larger number, >= 0. The larger of both limits counts.

    Raises:
        ConfigurationError: A limit is negative or not finite, or both are 0.
    """

    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        for name in ("absolute", "relative"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigurationError(f"close({name}={value!r}): give a finite number >= 0.")
            object.__setattr__(self, name, float(value))
        if not (self.absolute or self.relative):
            raise ConfigurationError("close(): give absolute=..., relative=..., or both; both are 0.")

    def __call__(self, a: Any, b: Any) -> bool:
        """Compare two answers."""
        x, y = number_of(a), number_of(b)
        if x is not None and y is not None:
            return x == y or abs(x - y) <= max(self.absolute, self.relative * max(abs(x), abs(y)))
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            return len(a) == len(b) and all(self(v, w) for v, w in zip(a, b, strict=True))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            return a.keys() == b.keys() and all(self(a[k], b[k]) for k in a)
        return answer_key(a, lambda v: v) == answer_key(b, lambda v: v)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `saved_equality` reads back."""
        return {"kind": "close", "absolute": self.absolute, "relative": self.relative}


close = Close

_LONGEST_FORMULA = 300
_COMMAND = re.compile(r"\\[A-Za-z]+|\b(?:sin|cos|tan|log|exp|sqrt|abs|mod)\b")
_WORD = re.compile(r"[^\W\d_]{3,}")
_TOWER = re.compile(r"(\^|\*\*)\s*[({\s]*[\w.]+[)}\s]*(\^|\*\*)|(\^|\*\*)\s*[({]*\s*\d{4,}|\d{3,}\s*!|!\s*!")


@dataclass(frozen=True, kw_only=True)
class MathEqual:
    r"""An equality for votes by which equal mathematics is one answer: 1/2, 0.5 and \frac{1}{2}, in LaTeX or plain.

    Hugging Face's `math-verify` parses and compares them. Its timeouts rest on signals, which only the main thread has,
    so they are off. Texts that could keep it busy for long (formulas of more than 300 characters, towers of powers,
    huge exponents and factorials) are compared as text instead, and so are texts that it cannot parse.

    Args:
        digits: Decimal places to which numbers are compared, >= 1.

    Raises:
        ConfigurationError: `digits` is not such a number, or the library is missing: `pip install 'iapo_dspy[math]'`.
    """

    digits: int = 6

    def __post_init__(self) -> None:
        if isinstance(self.digits, bool) or not isinstance(self.digits, int) or self.digits < 1:
            raise ConfigurationError(f"math_equal(digits={self.digits!r}): give a whole number >= 1.")
        _math_verify()

    @property
    def normalize(self) -> Normalize:
        """Formulas keep their case and their symbols."""
        return plain_text

    def __call__(self, a: Any, b: Any) -> bool:
        """Compare two answers; equal where either of them verifies the other."""
        one, other = str(a).strip(), str(b).strip()
        if one == other:
            return True
        first, second = _formula(one), _formula(other)
        if not first or not second:
            return bool(normalize_answer(one) == normalize_answer(other))
        settings = {"float_rounding": self.digits, "timeout_seconds": None, "raise_on_error": False}
        verify = _math_verify().verify
        return bool(verify(first, second, **settings) or verify(second, first, **settings))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `saved_equality` reads back."""
        return {"kind": "math", "digits": self.digits}


math_equal = MathEqual


def _math_verify() -> Any:
    try:
        return importlib.import_module("math_verify")
    except ImportError as exc:
        raise ConfigurationError("math_equal needs Hugging Face's math-verify: pip install 'iapo_dspy[math]'.") from exc


@lru_cache(maxsize=4096)  # each formula is compared with many others
def _formula(text: str) -> Any:
    """Return a text as `math-verify` reads it; empty for a text that is not a formula, or takes too long to work on."""
    if len(text) > _LONGEST_FORMULA or _TOWER.search(text):
        return []
    marked = any(sign in text for sign in ("$", "\\boxed", "\\(", "\\["))
    # Between dollar signs words are products of letters, and "listen" is "silent".
    bare = not marked and not _WORD.search(_COMMAND.sub(" ", text))
    parses = (
        _math_verify().parse(t, parsing_timeout=None, raise_on_error=False) for t in [f"${text}$"] * bare + [text]
    )
    return next(filter(None, parses), [])


def equality_of(what: str, equal: Equality | None, tolerance: float | None) -> Equality | None:
    """Return the equality that a vote's arguments ask for; None for equal keys.

    Raises:
        ConfigurationError: Both are given, or one cannot be used.
    """
    if equal is not None and tolerance is not None:
        raise ConfigurationError(f"{what}: give tolerance=... or equal=..., not both.")
    if tolerance is not None:
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 < tolerance < math.inf:
            raise ConfigurationError(f"{what}: tolerance is {tolerance!r}; give a finite number > 0, or leave it out.")
        return Close(absolute=tolerance)
    if equal is None:
        return None
    if not callable(equal):
        raise ConfigurationError(f"{what}: equal must be callable as equal(a, b) -> bool, got {equal!r}.")
    found = misfit(equal)
    if found is not None:
        raise ConfigurationError(f"{what}: equal{found} must be callable as equal(a, b) -> bool.")
    return equal


def describe_equality(equal: Equality | None) -> dict[str, Any] | str | None:
    """Return an equality as JSON data: built-in ones completely, a user's by name."""
    if isinstance(equal, (Close, MathEqual)):
        return equal.to_dict()
    return None if equal is None else name_of(equal)


def saved_equality(data: Any) -> Equality | None:
    """Read a built-in equality from the data that `describe_equality` wrote."""
    if data is None:
        return None
    if data["kind"] == "close":
        return Close(absolute=data["absolute"], relative=data["relative"])
    return MathEqual(digits=data["digits"])


@dataclass(frozen=True)
class KeyedAnswer:
    """A normalised answer with its key; answers of one key are one."""

    key: str
    value: Any = field(default=None, compare=False)


class Pairs:
    """Remembers which pairs of answers are equal: a comparison may be slow, and the same answers come again and again.

    Args:
        equal: Compares the values of two answers.
    """

    def __init__(self, equal: Equality) -> None:
        self._equal = equal
        self._same = lru_cache(maxsize=_MOST_PAIRS)(lambda leader, other: bool(equal(leader.value, other.value)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy without the remembered pairs, which cannot be pickled."""
        return Pairs, (self._equal,)

    def __call__(self, leader: KeyedAnswer, other: KeyedAnswer) -> bool:
        """Compare two answers.

        Raises:
            Exception: The user's function raised it.
        """
        with contained():
            return self._same(leader, other)
