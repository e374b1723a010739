r"""Answers in mathematical notation, read as a whole: numbers, formulas, units, lists, sets, intervals, relations.

An answer is read once. Comparing two read answers is then cheap, whatever they are. Structure, plain numbers and units
are read here. A formula is given to `math-verify`'s parser and to SymPy in a process that can be killed, which returns
its values at fixed points of its variables. Formulas with equal values there are one.
"""

from __future__ import annotations

import decimal
import itertools
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

from iapo_dspy.scoring.answers.text import unwrapped, visible
from iapo_dspy.scoring.bounded.process import FORMULAS, TooMuchWork, WorkError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Value = tuple[Decimal, Decimal]
Known = Mapping[str, tuple[Fraction | None, tuple[Value, ...]]]
_LONGEST = 1000  # characters
_DEEPEST = 12  # levels of brackets
_MOST_EXPONENT = 1000
_FEWEST_DIGITS = 3  # significant ones of a rounded number
_EXACT = Decimal("1e-45")  # relative: formulas are evaluated to 50 digits
_CONTEXT = decimal.Context(prec=80, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """A number, or a formula.

    Attributes:
        formula: LaTeX that waits for its values; empty where they are known.
        exact: The value of a rational number.
        values: Real and imaginary parts at some points, or at one for a constant.
        unit: The units that it is multiplied by, in one order; "" for none.
        factor: Of the unit, such as 1/100 for a percentage.
        rounded: The last decimal place of a number in decimals, such as 1/100 for 3.14; None for others.
    """

    formula: str = ""
    exact: Fraction | None = None
    values: tuple[Value, ...] = ()
    unit: str = ""
    factor: Fraction = Fraction(1)
    rounded: Fraction | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Several answers together.

    Attributes:
        kind: "set" for a set or a list, whose order says nothing; "union"; otherwise the brackets around a sequence.
        items: Its parts.
    """

    kind: str
    items: tuple[Form, ...]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """An equation, an inequality, or a chain of them.

    Attributes:
        parts: Sign and difference of the two sides of each.
        solved: What it says of a variable: a value, or an interval; None where it is not solved for one.
        of: That variable.
    """

    parts: tuple[tuple[str, Scalar], ...]
    solved: Form | None = None
    of: str = ""


Form = Scalar | Collection | Relation


class _NotRead(Exception):
    """This text is not mathematics as it is understood here."""


def read(text: str) -> Form | str:
    """Return an answer as it is compared: a form of mathematics, or its text where it is not such a form.

    It takes at most two seconds: a formula that needs longer stays text.
    """
    return _read(text) if len(text) <= _LONGEST else text  # long texts are not remembered


@lru_cache(maxsize=1 << 14)
def _read(text: str) -> Form | str:
    plain = unwrapped(_LEAD.sub("", unwrapped(visible(_LOWERED.sub(_lowered, text)))))
    letter = _CHOICE.fullmatch(plain)
    plain = letter[1] if letter else plain
    try:
        form = _answer(_tidy(plain), _DEEPEST)
        waiting = sorted({s.formula for s in _scalars(form) if s.formula})
        return _filled(form, dict(zip(waiting, _evaluated(waiting), strict=True))) if waiting else form
    except _NotRead:
        return plain


def _evaluated(formulas: Sequence[str]) -> list[tuple[Fraction | None, tuple[Value, ...]]]:
    try:
        found = FORMULAS.run("evaluate", formulas)
    except (TooMuchWork, WorkError) as exc:
        raise _NotRead from exc
    except OSError:
        logger.warning(
            "Formulas are compared as text: the process that reads them could not be started.", exc_info=True
        )
        raise _NotRead from None
    if None in found:
        raise _NotRead
    return [(_fraction(values), tuple((_decimal(a), _decimal(b)) for a, b in values)) for values in found]


def _fraction(values: Sequence[Sequence[str]]) -> Fraction | None:
    real, imaginary = values[0]
    return Fraction(real) if len(values) == 1 and imaginary == "0" and _RATIONAL.fullmatch(real) else None


def _decimal(text: str) -> Decimal:
    above, _, below = text.partition("/")
    return _CONTEXT.divide(Decimal(above), Decimal(below or 1))


def _scalars(form: Form) -> Iterator[Scalar]:
    if isinstance(form, Scalar):
        yield form
    elif isinstance(form, Collection):
        for item in form.items:
            yield from _scalars(item)
    else:
        yield from (difference for _, difference in form.parts)
        if form.solved is not None:
            yield from _scalars(form.solved)


def _filled(form: Form, known: Known) -> Form:
    """Return a form with the values of its formulas."""
    if isinstance(form, Scalar):
        return _valued(form, known)
    if isinstance(form, Collection):
        return replace(form, items=tuple(_filled(item, known) for item in form.items))
    parts = tuple((sign, _valued(difference, known)) for sign, difference in form.parts)
    return replace(form, parts=parts, solved=form.solved and _filled(form.solved, known))


def _valued(scalar: Scalar, known: Known) -> Scalar:
    if not scalar.formula:
        return scalar
    exact, values = known[scalar.formula]
    return replace(scalar, formula="", exact=exact, values=values)


# -- from text to structure

_RATIONAL = re.compile(r"-?\d+(/\d+)?")
_LEAD = re.compile(r"(?i)^(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?\s+")
_CHOICE = re.compile(r"(?:\\text\{)?\(?([A-Za-z])[).:]?\}?")
_GREEK = re.compile("[\u0391-\u03c9]")
_LOWERED = re.compile("[\u2080-\u2089]+")
_SYMBOLS = str.maketrans(
    {
        "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": r"\div ", "\u221a": r"\sqrt ",
        "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u222a": r"\cup ",
        "\u2208": r"\in ",
        "\u2205": r"\emptyset ", "\u00b1": r"\pm ", "\u00b0": r"^\circ ", "\u27e8": r"\langle ", "\u27e9": r"\rangle ",
    }
)  # fmt: skip
_TIDY = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"(?<![\\\d])\$(?!\s)([^$]+?)(?<!\s)\$(?!\d)", r"\1"),
        (r"\\(?:left|right|displaystyle|big|Big|bigl|bigr|limits)(?![A-Za-z])\.?", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:mathrm|text|textrm|mathbf|textbf|mathit)\s*\{\s*\(?([A-Za-z])\)?\s*\}", r"\1"),
        (r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*(and|or|,)\s*\}", r" \1 "),
        (r"(?<=\d)(?:\{,\}|\\[,;:! ]|\\,)(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\(?:[,;:! ]|q?quad(?![A-Za-z]))|~", " "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\*\*", "^"),
        (r"\*", r"\\cdot "),
        (r"\s+", " "),
    ]
]


def _lowered(found: re.Match[str]) -> str:
    return "_{" + "".join(str(unicodedata.digit(c)) for c in found[0]) + "}"


def _tidy(text: str) -> str:
    """Return a text with one notation where LaTeX, Unicode and plain text have several."""
    boxed = text.rfind("\\boxed{")
    if boxed >= 0:
        end = _closing(text, boxed + 6)
        text = text[boxed + 7 : end] if end is not None else text
    text = _GREEK.sub(_greek, text.translate(_SYMBOLS))
    for pattern, by in _TIDY:
        text = pattern.sub(by, text)
    text = text.strip()
    return text if _OPEN.search(text) else _THOUSANDS.sub(lambda m: re.sub("[ ,]", "", m[0]), text)


def _greek(found: re.Match[str]) -> str:
    name = unicodedata.name(found[0], "").split()
    if len(name) != 4:  # such as a letter with an accent
        return found[0]
    return "\\" + (name[3].lower() if name[1] == "SMALL" else name[3].title()) + " "


_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_OPEN = re.compile(r"[(\[{]|\\langle|\\begin")
_OPENING = {"(", "[", "{", "\\{", "\\langle", "\\begin"}
_CLOSING = {")", "]", "}", "\\}", "\\rangle", "\\end"}
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,/])")
_RELATION = re.compile(r"<=|>=|==?|<|>|\\(?:leqslant|geqslant|leq?|geq?|lt|gt|neq?|in)(?![A-Za-z])")
_LIST = re.compile(r",|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_COMMA = re.compile(r"[,;]")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_MATRIX = re.compile(r"\\begin\{([bp]?matrix|array)\}(?:\{[^{}]*\})?(.+)\\end\{\1\}")
_SIGNS = {"<=": "<=", ">=": ">=", "=": "=", "==": "=", "<": "<", ">": ">", "lt": "<", "gt": ">", "in": "in",
          "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=",
          "ne": "!=", "neq": "!="}  # fmt: skip
_EMPTY = {"\\emptyset", "\\varnothing", "\\{\\}", "{}"}
_VARIABLE = re.compile(r"[A-Za-z]|\\[A-Za-z]+")
_NAME = re.compile(
    r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_\w|_\{\w+\})?'*(?:\([A-Za-z](?:, ?[A-Za-z])*\))?|\([A-Za-z](?:, ?[A-Za-z])+\)"
)


def _closing(text: str, start: int) -> int | None:
    """Return the position of the token that closes the bracket at `start`."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        if depth == 0:
            return token.start()
    return None


def _split(text: str, at: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Return the parts of a text between separators outside of brackets, and the separators."""
    parts, found, start, depth, position = [], [], 0, 0, 0
    while position < len(text):
        separator = at.match(text, position) if depth == 0 else None
        if separator:
            parts.append(text[start:position].strip())
            found.append(separator[0])
            start = position = separator.end()
            continue
        token = _TOKEN.match(text, position)
        assert token is not None
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        position = token.end()
    return [*parts, text[start:].strip()], found


def _answer(text: str, depth: int) -> Form:
    text = text.strip()
    if not text or not depth or _CODE.fullmatch(text) or (_WORDS.fullmatch(text) and text not in _FUNCTIONS):
        raise _NotRead
    if text in _EMPTY:
        return Collection(kind="set", items=())
    number = _number(text)
    if number is not None:
        return number
    for reading in (_related, _listed, _united, _bracketed, _matrix, _both_signs):
        form = reading(text, depth - 1)
        if form is not None:
            return form
    return _scalar(text)


def _related(text: str, depth: int) -> Form | None:
    sides, found = _split(text, _RELATION)
    if not found or len(_split(text, _LIST)[0]) > 1:
        return None
    signs = [_SIGNS[f.lstrip("\\")] for f in found]
    if signs == ["in"]:
        return _answer(sides[1], depth)
    if "in" in signs or "" in sides:
        raise _NotRead
    if set(signs) == {"="} and _NAME.fullmatch(sides[0]):
        solved = _answer(sides[-1], depth)
        plain = _VARIABLE.fullmatch(sides[0]) and isinstance(solved, Scalar) and not solved.unit
        equation = (_difference("=", sides[0], sides[-1]),) if plain else ()
        return Relation(parts=equation, solved=solved, of=sides[0])
    parts = tuple(_difference(sign, *pair) for sign, pair in zip(signs, itertools.pairwise(sides), strict=True))
    return Relation(parts=parts, solved=_interval(sides, signs, depth))


def _difference(sign: str, left: str, right: str) -> tuple[str, Scalar]:
    if sign.startswith(">"):
        left, right, sign = right, left, sign.replace(">", "<")
    return sign, Scalar(formula=_formula(f"({left}) - ({right})"))


def _interval(sides: Sequence[str], signs: Sequence[str], depth: int) -> Form | None:
    """Return the interval that x < 1, 0 <= x or 0 < x <= 1 describes; None for other relations."""
    if all(s.startswith(">") for s in signs):
        sides, signs = sides[::-1], [s.replace(">", "<") for s in signs[::-1]]
    if not all(s.startswith("<") for s in signs):
        return None
    at = [i for i, side in enumerate(sides) if _VARIABLE.fullmatch(side)]
    if len(at) != 1 or len(sides) > 3 or (len(sides) == 3 and at != [1]):
        return None
    below, above = sides[: at[0]], sides[at[0] + 1 :]
    kind = ("[" if below and signs[0] == "<=" else "(") + ("]" if above and signs[-1] == "<=" else ")")
    low = _answer(below[0], depth) if below else Scalar(exact=Fraction(-1), unit=_INFINITY)
    high = _answer(above[0], depth) if above else Scalar(exact=Fraction(1), unit=_INFINITY)
    return Collection(kind=kind, items=(low, high))


def _listed(text: str, depth: int) -> Form | None:
    parts = _split(text, _LIST)[0]
    return None if len(parts) == 1 else Collection(kind="set", items=tuple(_answer(p, depth) for p in parts if p))


def _united(text: str, depth: int) -> Form | None:
    parts = _split(text, _UNION)[0]
    return None if len(parts) == 1 else Collection(kind="union", items=tuple(_answer(p, depth) for p in parts))


def _bracketed(text: str, depth: int) -> Form | None:
    first = _TOKEN.match(text)
    end = _closing(text, 0) if first is not None and first[0] in ("(", "[", "{", "\\{", "\\langle") else None
    if first is None or end is None or _TOKEN.fullmatch(text, end) is None:
        return None
    items = tuple(_answer(item, depth) for item in _split(text[first.end() : end], _COMMA)[0])
    if first[0] in "({" and len(items) == 1:
        return items[0]
    return Collection(kind="set" if first[0] in ("\\{", "{") else first[0] + text[end:], items=items)


def _matrix(text: str, depth: int) -> Form | None:
    found = _MATRIX.fullmatch(text)
    if found is None:
        return None
    rows = [row for row in re.split(r"\\\\", found[2]) if row.strip()]
    items = [Collection(kind="row", items=tuple(_answer(cell, depth) for cell in row.split("&"))) for row in rows]
    return Collection(kind="matrix", items=tuple(items))


def _both_signs(text: str, depth: int) -> Form | None:
    if len(_PLUS_MINUS.findall(text)) != 1:
        return None
    return Collection(kind="set", items=tuple(_answer(_PLUS_MINUS.sub(sign, text), depth) for sign in "+-"))


# -- numbers, units, formulas

_DIGITS = r"\d+(?:\.\d*)?|\.\d+"
_TIMES_TEN = r"\s*(?:[eE]|\\times\s*10\s*\^|\\cdot\s*10\s*\^)\s*\{?\s*([+-]?\d+)\s*\}?"
_NUMBER = re.compile(rf"([+-]?)\s*({_DIGITS})(?:{_TIMES_TEN})?")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_BASED = re.compile(r"([+-]?)(\w+)_\{?(\d+)\}?")
_PART = rf"[+-]?(?:{_DIGITS})"
_RATIO = re.compile(
    rf"([+-]?)\s*(?:(\d+)(?:\s+|(?=\\)))?(?:({_PART})\s*/\s*({_PART})"
    rf"|\\frac\s*\{{({_PART})\}}\s*\{{({_PART})\}}|\\frac\s*(\d)\s*(\d))"
)
# Dates, times, versions, telephone numbers and scores are not differences and quotients.
_CODE = re.compile(r"\d+(?:[-/.:]\d+){2,}|[\d\s().+]*\d[-:]\d[-:\d\s().]*")
_INFINITY = "\\infty"
_WORDS = re.compile(r"[A-Za-z]{2,}(?: [A-Za-z]+)*")  # "no" is not a product of n and o
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{3,}")
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp pi".split()
_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({'|'.join(sorted(_FUNCTIONS, key=len, reverse=True))})(?![a-zA-Z])")
_LATEX = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])abs\s*\(([^()]*)\)", r"|\1|"),
        (r"\\(?:mathrm|text|operatorname)\s*\{(sin|cos|tan|log|ln|exp)\}", r"\\\1"),
        (r"([\d.]+)\s*\^\s*\{?\s*\\circ\s*\}?", r"(\\frac{\1\\pi}{180})"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-?\d+)", r"^{\1}"),
        (r"\\frac\s*([^\s{\\])", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*([^\s{\\])", r"\1{\2}"),
        (r"\\sqrt\s*([^\s{\[\\]+)", r"\\sqrt{\1}"),
    ]
]
_ODD = re.compile(
    r"""['"&$?@#:`\n]|\\\\|(?<![\^_{\d])\d[\d.]*\s+\.?\d|\\(?:ldots|cdots|dots|text|mathrm|mathbb|operatorname)"""
)


def _number(text: str) -> Scalar | None:
    r"""Read a plain number: 3.14, 1e-7, 1/2, 1 1/2, \frac{1}{2}, 0.\overline{3}, 101_2, \infty."""
    if (found := _NUMBER.fullmatch(text)) is not None:
        power = int(found[3] or 0)
        if abs(power) > _MOST_EXPONENT:
            raise _NotRead
        value = Fraction(found[1] + found[2]) * _ten(power)
        places = len(found[2].partition(".")[2])
        return _exact(value, rounded=_ten(power - places) if "." in found[2] or power < 0 else None)
    if (found := _RATIO.fullmatch(text)) is not None:
        above, below = (Fraction(part) for part in found.groups()[2:] if part is not None)
        if not below:
            raise _NotRead
        return _exact((Fraction(found[2] or 0) + above / below) * (-1 if found[1] == "-" else 1))
    if (found := _REPEATING.fullmatch(text)) is not None:
        before, again = f"{found[2]}{found[3]}", found[4]
        value = (Fraction(int(before + again)) - int(before or 0)) / (10 ** len(found[3]) * (10 ** len(again) - 1))
        return _exact(-value if found[1] == "-" else value)
    if (found := _BASED.fullmatch(text)) is not None and found[2][0].isdigit() and 2 <= int(found[3][:3]) <= 36:
        try:
            return _exact(Fraction(int(found[1] + found[2], int(found[3]))))
        except ValueError:
            raise _NotRead from None
    sign = text.replace(" ", "").removesuffix(_INFINITY)
    if text.endswith(_INFINITY) and sign in ("", "+", "-"):
        return Scalar(exact=Fraction(f"{sign}1"), unit=_INFINITY)
    return None


def _ten(power: int) -> Fraction:
    large = int(10 ** abs(power))
    return Fraction(large) if power >= 0 else Fraction(1, large)


def _exact(value: Fraction, rounded: Fraction | None = None) -> Scalar:
    ratio = _CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator))
    return Scalar(exact=value, values=((ratio, Decimal(0)),), rounded=rounded)


def _scalar(text: str) -> Scalar:
    """Read a number or a formula, and its unit."""
    money = _MONEY.fullmatch(text)
    what, unit = (f"{money[1]}{money[3]}", money[2]) if money else (text, "")
    found = _WITH_UNIT.fullmatch(what)
    if found is not None and _is_unit(found["unit"], found["what"]):
        what, unit = found["what"].strip(), f"{unit} {found['unit']}"
    factor, units = units_of(unit) if unit else (Fraction(1), "")
    number = _number(what) or Scalar(formula=_formula(what))
    return replace(number, factor=factor, unit=units)


def _formula(text: str) -> str:
    """Return LaTeX as the parser takes it.

    Raises:
        _NotRead: It is prose, or has a notation that the parser takes for another one.
    """
    for pattern, by in _LATEX:
        text = pattern.sub(by, text)
    text = _FUNCTION.sub(r"\\\1 ", text)
    text = re.sub(rf"(?<![\w.])({_DIGITS})[eE]([+-]?\d{{1,3}})(?![\w.])", r"(\1 \\cdot 10^{\2})", text)
    text = re.sub(r"\d+\.\d*|\.\d+", lambda m: _as_fraction(m[0]), text)
    if _WORD.search(text) or _ODD.search(text):
        raise _NotRead
    return text


def _as_fraction(text: str) -> str:
    value = Fraction(text)
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"


_UNIT_WORD = (
    r"(?:\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{[^{}]*\}|\^\s*\{?\s*\\circ\s*\}?\s*[CFK]?|\\?[%$]|[\u20ac\u00a3\u00a5]|[A-Za-z\u00b5]+)"
    r"(?:\s*\^\s*(?:\d|\{-?\d\}))?"
)
_WITH_UNIT = re.compile(
    rf"(?P<what>.*?(?:[\d)}}\]|]|\\pi))\s*(?P<unit>{_UNIT_WORD}(?:(?:\s*/\s*|\s*\\cdot\s*|\s){_UNIT_WORD}){{0,3}})"
)
_MONEY = re.compile(r"([+-]?)\s*(\\?\$|[\u20ac\u00a3\u00a5]|USD|EUR|GBP)\s*([\d.].*)")
_ANGLE = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
_SUM = re.compile(r"[^\s(\[{^/*]\s*[+-]")


def _is_unit(unit: str, what: str) -> bool:
    """Tell whether what follows a number or a formula is a unit, and not a part of the formula."""
    plain = re.sub(
        r"\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{[^{}]*\}|\^\s*\{?\s*\\circ\s*\}?\s*[CFK]?", "", unit
    )
    words = re.findall(r"[A-Za-z\u00b5]+", plain.replace("\\cdot", ""))
    if "\\circ" in unit and _ANGLE.search(what):
        return False
    if any(w in _FUNCTIONS or w == "sqrt" for w in words) or (words and _SUM.search(what)):
        return False
    simple = _number(what.strip()) is not None
    return all((w in _UNITS and (simple or len(w) > 1)) or len(w) > 2 for w in words)


def _units() -> dict[str, tuple[Fraction, str]]:
    """Return unit -> its size and its base."""
    table: dict[str, tuple[Fraction, str]] = {}
    bases = {"m": "meter metre", "g": "gram gramme", "l L": "liter litre", "s": "second", "W": "watt", "V": "volt",
             "N": "newton", "J": "joule", "Hz": "hertz", "Pa": "pascal", "A": "ampere", "B": "byte"}  # fmt: skip
    sizes = {"": ("", 0), "k": ("kilo", 3), "c": ("centi", -2), "m": ("milli", -3), "M": ("mega", 6), "d": ("deci", -1)}
    for short, long in bases.items():
        base = short.split()[0]
        for prefix, (word, power) in sizes.items():
            table |= {prefix + s: (_ten(power), base) for s in short.split()}
            table |= {word + name: (_ten(power), base) for name in long.split()}
    table |= {w: (Fraction(60), "s") for w in ("min", "mins", "minute")}
    table |= {w: (Fraction(3600), "s") for w in ("h", "hr", "hrs", "hour")}
    table |= {w: (Fraction(86400), "s") for w in ("d", "day")} | {w: (Fraction(1), "s") for w in ("sec", "secs")}
    table |= {w: (_ten(n), "") for w, n in (("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9))}
    table |= {w: (Fraction(1, 100), "") for w in ("%", "percent", "percentage", "pct")}
    for name, words in {"$": "USD dollar", "\u20ac": "EUR euro", "\u00a3": "GBP", "\u00a5": "JPY yen", "degree": "deg",
                        "ft": "foot feet", "inch": "in inches", "lb": "lbs", "oz": "ounce",
                        "mile": "mi"}.items():  # fmt: skip
        table |= {w: (Fraction(1), name) for w in (name, *words.split())}
    return table


_UNITS = _units()


@lru_cache(maxsize=1024)
def units_of(text: str) -> tuple[Fraction, str]:
    """Return the size of a unit in base units, and these in one order: km/h is 1000/3600 of "m s^-1"."""
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", " degree", text)
    text = re.sub(r"\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\(?=[%$])|\{|\}", "", text.replace("\\cdot", " "))
    factor, powers, times, exponent = Fraction(1), dict[str, int](), 1, 1
    for token in re.findall(r"/|[^\s/^]+(?:\s*\^\s*-?\d)?", text):
        name, _, power = (part.strip() for part in token.partition("^"))
        if name in ("/", "per"):
            times = -1
        elif name in ("square", "sq", "cubic"):
            exponent = 3 if name == "cubic" else 2
        else:
            size, base = _unit(name)
            n = times * exponent * int(power or 1)
            factor, times, exponent = factor * size**n, 1, 1
            powers[base] = powers.get(base, 0) + n
    return factor, " ".join(f"{b}^{n}" if n != 1 else b for b, n in sorted(powers.items()) if n and b)


def _unit(name: str) -> tuple[Fraction, str]:
    name = name.rstrip(".")
    for known in (name, name.lower(), name.lower().removesuffix("s")) if len(name) > 2 else (name,):
        if known in _UNITS:
            return _UNITS[known]
    return Fraction(1), name.lower().removesuffix("s") if len(name) > 3 else name


# -- equality


def same(one: Form, other: Form, digits: int) -> bool:
    """Tell whether two answers are one.

    Args:
        one: An answer.
        other: Another one.
        digits: A number in decimals is taken for a rounded one from so many decimal places on.
    """
    if isinstance(one, Relation) and isinstance(other, Relation):
        if one.parts and len(one.parts) == len(other.parts) and _matched(one.parts, other.parts, _same_relation):
            return True
        return one.of == other.of and bool(one.solved and other.solved and same(one.solved, other.solved, digits))
    if isinstance(one, Relation):
        return one.solved is not None and same(one.solved, other, digits)
    if isinstance(other, Relation):
        return same(other, one, digits)
    if isinstance(one, Scalar) and isinstance(other, Scalar):
        return _same_scalar(one, other, digits)
    one, other = (
        form if isinstance(form, Collection) else Collection(kind="set", items=(form,)) for form in (one, other)
    )
    if one.kind != other.kind or len(one.items) != len(other.items):
        return False
    if one.kind in ("set", "union"):
        return _matched(one.items, other.items, lambda a, b: same(a, b, digits))
    return all(same(a, b, digits) for a, b in zip(one.items, other.items, strict=True))


def _matched(some: Sequence[T], others: Sequence[T], equal: Callable[[T, T], bool]) -> bool:
    left = list(others)
    for item in some:
        found = next((i for i, candidate in enumerate(left) if equal(item, candidate)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_scalar(one: Scalar, other: Scalar, digits: int) -> bool:
    if one.unit != other.unit:
        return False
    if one.exact is not None and other.exact is not None and one.exact * one.factor == other.exact * other.factor:
        return True
    if _rounds(one, other, digits) or _rounds(other, one, digits):
        return True
    if one.exact is not None and other.exact is not None:
        return False
    size = max(len(one.values), len(other.values))
    pairs = zip(_scaled(one, size), _scaled(other, size), strict=True)
    return all(_near(a, b) for a, b in pairs)


def _rounds(short: Scalar, long: Scalar, digits: int) -> bool:
    """Tell whether the first number is the second one, rounded to the decimal places that it is written with."""
    if short.rounded is None or short.exact is None or len(long.values) != 1 or long.values[0][1]:
        return False
    step, value = short.rounded * short.factor, short.exact * short.factor
    if short.rounded > Fraction(1, 10**digits) or abs(value) < step * 10 ** (_FEWEST_DIGITS - 1):
        return False
    if long.rounded is not None and long.rounded * long.factor >= step:
        return False  # the other one is not longer
    exact = long.exact if long.exact is not None else Fraction(long.values[0][0])
    return abs(exact * long.factor - value) <= step / 2


def _scaled(scalar: Scalar, size: int) -> list[Value]:
    factor = _CONTEXT.divide(Decimal(scalar.factor.numerator), Decimal(scalar.factor.denominator))
    values = [(_CONTEXT.multiply(a, factor), _CONTEXT.multiply(b, factor)) for a, b in scalar.values]
    return values * size if len(values) == 1 else values


def _near(one: Value, other: Value) -> bool:
    most = max(part.copy_abs() for part in (*one, *other))
    return all(
        _CONTEXT.subtract(a, b).copy_abs() <= _CONTEXT.multiply(_EXACT, most) for a, b in zip(one, other, strict=True)
    )


def _same_relation(one: tuple[str, Scalar], other: tuple[str, Scalar]) -> bool:
    """Tell whether two relations hold at the same points: one difference is a multiple of the other's."""
    (sign, left), (other_sign, right) = one, other
    if sign != other_sign:
        return False
    size = max(len(left.values), len(right.values))
    a, b = _scaled(left, size), _scaled(right, size)
    at = next((k for k in range(size) if a[k][0] and b[k][0]), None)
    if at is None or any(part for _, part in (*a, *b)):
        return False
    ratio = _CONTEXT.divide(a[at][0], b[at][0])
    if "<" in sign and ratio < 0:
        return False
    return all(_near(x, (_CONTEXT.multiply(y[0], ratio), y[1])) for x, y in zip(a, b, strict=True))
