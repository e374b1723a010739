"""When two answers are one: within a tolerance, by mathematics, or as the user says."""

from __future__ import annotations

import contextlib
import decimal
import fractions
import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.scoring.answers.formulas import read, same
from iapo_dspy.scoring.answers.normalize import Normalize, answer_key, plain_text
from iapo_dspy.scoring.answers.text import normalize_text, visible
from iapo_dspy.scoring.bounded.process import FORMULAS
from iapo_dspy.scoring.user_functions import misfit, name_of

Equality = Callable[[Any, Any], bool]
"""`equal(a, b) -> bool` on two normalised answers; it need not be transitive."""

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_MOST_PAIRS = 1 << 16
_NUMBERS = (int, float, Decimal, fractions.Fraction, np.integer, np.floating)
_CONTEXT = decimal.Context(prec=50, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


# Ledgers keep a hash of this function, docstring included: other code makes resumed runs score again.
def number_of(value: Any) -> float | None:
    """Return a value as a number; None if it is none. A string may have blanks, thousands separators, a final stop."""
    number = _decimal(value)
    return None if number is None else float(number)


def _decimal(value: Any) -> Decimal | None:
    """Return a value as a number, exactly: large whole numbers differ although their floats are one."""
    if isinstance(value, str):
        text = visible(value).strip()
        text = text[:-1] if text.endswith(".") and not text.endswith("..") else text
        text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text.replace("_", "x")  # 101_2 is no number
        try:
            return Decimal(text)
        except decimal.InvalidOperation:
            return None
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    if isinstance(value, fractions.Fraction):
        return _CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator))
    if isinstance(value, (Decimal, int, np.integer)):
        return Decimal(value if isinstance(value, Decimal) else int(value))
    return Decimal(repr(float(value)))


def _itemwise(a: Any, b: Any, equal: Equality) -> bool | None:
    """Compare lists, tuples and dictionaries item by item; None for anything else."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(equal(v, w) for v, w in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return None


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
        x, y = _decimal(a), _decimal(b)
        if x is not None and y is not None:
            if not (x.is_finite() and y.is_finite()):
                return not x.is_nan() and x == y
            limit = max(
                Decimal(repr(self.absolute)),
                _CONTEXT.multiply(Decimal(repr(self.relative)), max(x.copy_abs(), y.copy_abs())),
            )
            return _CONTEXT.subtract(x, y).copy_abs() <= limit
        items = _itemwise(a, b, self)
        return answer_key(a, lambda v: v) == answer_key(b, lambda v: v) if items is None else items

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `saved_equality` reads back."""
        return {"kind": "close", "absolute": self.absolute, "relative": self.relative}


close = Close


@dataclass(frozen=True, kw_only=True)
class MathEqual:
    r"""An equality for votes by which equal mathematics is one answer: 1/2, 0.5 and \frac{1}{2}, in LaTeX or plain.

    An answer is read as a whole, see `formulas`: numbers exactly, with their units (3 cm is 0.03 m, and neither is 3 m;
    50 % is 0.5, and is not 50), formulas of any variables by Hugging Face's `math-verify`, lists and sets in any order,
    points and intervals with their brackets, matrices, equations and inequalities. Dates, times and telephone numbers
    are not differences. Text that is not mathematics is compared as `normalize_text` has it. Lists and dictionaries are
    compared item by item. It is not transitive: x = 5 and y = 5 are both 5.

    Formulas are worked on in a process that is killed where one of them takes more than about two seconds or 500 MB.
    Such an answer is compared as text.

    Args:
        digits: A number in decimals is also equal to the number that it is the rounding of, where it has so many
            decimal places or more, >= 1: 0.333333 is 1/3, and 0.33 is not.

    Raises:
        ConfigurationError: `digits` is not such a number, or the library is missing: `pip install 'iapo_dspy[math]'`.
    """

    digits: int = 6

    def __post_init__(self) -> None:
        if isinstance(self.digits, bool) or not isinstance(self.digits, int) or self.digits < 1:
            raise ConfigurationError(f"math_equal(digits={self.digits!r}): give a whole number >= 1.")
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigurationError("math_equal needs Hugging Face's math-verify: pip install 'iapo_dspy[math]'.")
        with contextlib.suppress(OSError):  # then formulas stay text, with a warning
            FORMULAS.prepare()  # its modules take a second to load

    @property
    def normalize(self) -> Normalize:
        """Formulas keep their case and their symbols."""
        return plain_text

    def __call__(self, a: Any, b: Any) -> bool:
        """Compare two answers."""
        items = _itemwise(a, b, self)
        if items is not None:
            return items
        one, other = (v if isinstance(v, str) else str(answer_key(v, lambda w: w)) for v in (a, b))
        if one.strip() == other.strip():
            return True
        first, second = read(one), read(other)
        if isinstance(first, str) or isinstance(second, str):
            letters = isinstance(first, str) and isinstance(second, str) and len(first) == len(second) == 1
            return first == second if letters else normalize_text(one) == normalize_text(other)
        return same(first, second, self.digits)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `saved_equality` reads back."""
        return {"kind": "math", "digits": self.digits}


math_equal = MathEqual


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
