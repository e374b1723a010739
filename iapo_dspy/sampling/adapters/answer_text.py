"""Reads an answer out of plain text: a line, a label or a number. What is not clear is not read."""

from __future__ import annotations

import decimal
import enum
import functools
import itertools
import re
import types
import typing
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dspy


class Unreadable(ValueError):
    """The text holds no answer, or more than one."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An answer in a text.

    Attributes:
        value: The answer: a text, or the value of a label.
        start: Where it stands: a position in the text, in characters.
    """

    value: Any
    start: int


@dataclass(frozen=True, kw_only=True)
class Label:
    """One value of a field that has finitely many.

    Attributes:
        value: The value.
        texts: How it may be written; the first of them is what the LM is asked for.
    """

    value: Any
    texts: tuple[str, ...]


def bare(annotation: Any) -> Any:
    """Return a field's type without `Annotated` and without "or None"."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return bare(args[0])
    if origin in (typing.Union, types.UnionType):
        others = [a for a in args if a is not type(None)]
        return bare(others[0]) if len(others) == 1 else annotation
    return annotation


def is_text(annotation: Any) -> bool:
    """Tell whether a field takes any text."""
    kind = bare(annotation)
    if kind in (Any, object, dspy.Reasoning):
        return True
    return isinstance(kind, type) and issubclass(kind, str) and not issubclass(kind, enum.Enum)


def labels_of(annotation: Any) -> tuple[Label, ...]:
    """Return the labels of a Literal, an Enum or a bool; none for other types."""
    kind = bare(annotation)
    if typing.get_origin(kind) is typing.Literal:
        return tuple(Label(value=v, texts=_texts(v)) for v in typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(Label(value=v, texts=_texts(v)) for v in kind)
    if kind is bool:
        return Label(value=True, texts=("True", "Yes")), Label(value=False, texts=("False", "No"))
    return ()


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, enum.Enum):
        return tuple(dict.fromkeys([str(value.value), value.name]))
    return (str(value),)


def read_line(text: str, name: str, *, last: bool) -> Found:
    """Return the first or the last line that says something, without decoration and without "Answer:" before it.

    Args:
        text: The completion.
        name: Of the field, which may stand before the answer as "answer" may.
        last: Whether the last line is the answer.

    Raises:
        Unreadable: There is none.
    """
    lines = [Found(value=line, start=start) for start, line in _lines(text, name) if line]
    if not lines:
        raise Unreadable("The completion has no line with an answer")
    return lines[-1 if last else 0]


def _lines(text: str, name: str) -> Iterator[tuple[int, str]]:
    for match in re.finditer(r"[^\r\n]+", text):
        yield match.start(), _tidy(match.group(), name)


def _tidy(line: str, name: str) -> str:
    line = _unwrap(line.strip())
    if line.startswith("```"):
        return ""
    if lead := _lead(name).match(line):
        line = _unwrap(line[lead.end() :].strip())
    if line.endswith(".") and line.count(".") == 1:  # a full stop, and not "U.S." or "..."
        line = line[:-1]
    return _unwrap(line)


_PAIRS = tuple(
    re.compile(pattern)
    for pattern in (
        *(rf"{re.escape(mark)}((?:(?!{re.escape(mark)}).)+){re.escape(mark)}" for mark in ("**", "__", *"*_`\"'")),
        "“([^“”]+)”",
        "\u2018([^\u2018\u2019]+)\u2019",
        r"\\boxed\{([^{}]+)\}",
        r"<(?:\w+)>([^<>]+)</\w+>",
    )
)


def _unwrap(text: str) -> str:
    """Take emphasis, quotes and tags off that stand around the whole text."""
    while True:
        inside = next((m.group(1).strip() for pattern in _PAIRS if (m := pattern.fullmatch(text))), None)
        if not inside:
            return text
        text = inside


@functools.lru_cache(maxsize=256)
def _lead(name: str) -> re.Pattern[str]:
    """Return the pattern of what may stand before an answer: "Answer:", "The final answer is", "label =" and so on."""
    words = "|".join(["answer", *sorted({_loose(name), _loose(name.replace("_", " "))})])
    return re.compile(
        r"(?<![^\W_])(?:(?:so|thus|therefore|hence),?\s+)?(\*{0,3}|_{1,2})(?:the\s+)?(?:(?:final|correct|right)\s+)?"
        rf"(?:{words})(?:\s{{1,3}}is\b\s{{0,3}}[:=]?|\s{{0,3}}(?:\1)?\s{{0,3}}[:=])\s{{0,3}}(?:\1)?\s*",
        re.IGNORECASE,
    )


_END_OF_SENTENCE = re.compile(r"[.!?;](?=\s|$)|[\r\n]")
_STRONG_MARK = re.compile(r"\\boxed\{|####\s*")


def _after(text: str, starts: Iterable[int], matches: Sequence[Found]) -> list[list[Found]]:
    """Return the matches behind a mark, to the end of its sentence, for each sentence with a mark."""
    ends = [*(m.start() for m in _END_OF_SENTENCE.finditer(text)), len(text)]
    first: dict[int, int] = {}
    for start in sorted(starts):
        first.setdefault(ends[bisect_left(ends, start)], start)
    places = [f.start for f in matches]
    return [list(matches[bisect_left(places, start) : bisect_left(places, end)]) for end, start in first.items()]


def _choose(text: str, name: str, matches: Sequence[Found], *, last: bool, what: str) -> Found:
    """Return the answer among all labels or numbers of a text, in order.

    Those that the text calls its answer come first. Several that differ are no answer, except that reasoning names
    many things before the last one.

    Raises:
        Unreadable: There is none, or there are several.
    """
    marks = (m.end() for pattern in (_lead(name), _STRONG_MARK) for m in pattern.finditer(text))
    marked = list(itertools.chain.from_iterable(_after(text, marks, matches)[-1 if last else 0 :]))
    if marked and len({_key(f.value) for f in marked}) == 1:
        return marked[-1]
    if not matches:
        raise Unreadable(f"No {what} in {_shown(text)}")
    if not last and len(seen := list(dict.fromkeys(_key(f.value) for f in matches))) > 1:
        raise Unreadable(f"More than one {what} in {_shown(text)}: {', '.join(seen[:4])}")
    return matches[-1]


def _key(value: Any) -> str:
    return repr(value.name if isinstance(value, enum.Enum) else value)


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 80 else f"{flat[:80]}...")


def read_label(text: str, labels: Sequence[Label], name: str, *, last: bool) -> Found:
    """Return the label that a text gives as its answer.

    The first line, if it is a label and nothing else; else the only label that occurs in the text as a word. Case,
    decoration, and `_` or `-` for a space do not matter, unless labels differ in nothing else.

    Args:
        text: The completion.
        labels: Of the field; at least one.
        name: Of the field.
        last: Whether the text reasons: then the answer is the last label in it.

    Raises:
        Unreadable: There is no label, or there are several, or the answer is "not" that label.
    """
    return _label_reader(tuple(labels))(text, name, last)


@functools.lru_cache(maxsize=256)
def _label_reader(labels: tuple[Label, ...]) -> Callable[[str, str, bool], Found]:
    written = [(text, label.value) for label in labels for text in label.texts if text.strip()]
    loose = sum(len({_folded(text) for text in label.texts}) for label in labels) == len(
        {_folded(t) for t, _ in written}
    )
    fold = _folded if loose else str.strip
    values = {fold(text): value for text, value in reversed(written)}
    pattern = re.compile("|".join(_word(t, loose) for t in sorted({t for t, _ in written}, key=len, reverse=True)))

    def read(text: str, name: str, last: bool) -> Found:
        lines = [(start, line) for start, line in _lines(text, name) if line]
        for start, line in lines[-1:] if last else lines[:1]:
            for form in (line, line.strip(_AROUND)):
                if fold(form) in values:
                    return Found(value=values[fold(form)], start=start)
        found = _choose(
            text,
            name,
            [Found(value=values[fold(m.group())], start=m.start()) for m in pattern.finditer(text)],
            last=last,
            what="label",
        )
        if _NOT.search(text[max(found.start - 40, 0) : found.start]):
            raise Unreadable(f"{_shown(text)} says what the label is not")
        return found

    return read


_AROUND = " \t*_`\"'“”\u2018\u2019<>[](){}.,:;!?#"
_NOT = re.compile(
    r"(?:\b(?:not|never|neither|nor|non)|n['\u2019]t)(?:\s+(?:an?|the|really|very|quite|so))?[\s*_\"'`-]+$", re.I
)


def _folded(text: str) -> str:
    return re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", text.strip().casefold())


def _loose(text: str) -> str:
    """Return the pattern of a text with any white space, `_` and `-` for each other."""
    parts = [re.escape(part) for part in re.split(r"[\s_-]+", text)]
    return r"[\s_-]+".join(parts) if all(parts) else re.escape(text)


def _word(text: str, loose: bool) -> str:
    """Return the pattern of a label as a word of a sentence."""
    if len(text) == 1 and text.isalpha():  # "a good film" is not answer A, and "I think" is not answer I
        pattern = rf"{text}(?!\s+(?!(?:is|or|and)\b)[a-z])" if text in "AI" else text
    else:
        pattern = f"(?i:{_loose(text)})" if loose else re.escape(text)
    before = r"(?<!\w)" + (r"(?<!\d[.,])(?<!-)" if text[:1].isdigit() else "")
    after = r"(?!\w)" + (r"(?![.,]\d)" if text[-1:].isdigit() else "")
    return f"{before}{pattern}{after}"


_NUMBER = re.compile(
    r"(?<![\w.])(?<!\d,)(?<!frac\{)(?<!\}\{)(?P<sign>[-+\u2212])?\s?[$€£¥]?\s?(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"(?P<power>[eE][-+]?\d+)?(?P<below>\s?/\s?\d+)?(?P<percent>\s?%)?(?!\w)(?![.,]\d)"
)
_MOST_DIGITS = 40


def read_number(text: str, name: str, *, last: bool) -> Found:
    """Return the number that a text gives as its answer, as canonical text: "1,234.50" is "1234.5".

    Currency signs are left out; a fraction and a percentage stay what they are ("3/4", "50%"). The answer is the only
    number of the first line, or what "the answer is" or the only "=" stands before, or the only number of the text.

    Args:
        text: The completion.
        name: Of the field.
        last: Whether the text reasons: then the answer is the last number in it.

    Raises:
        Unreadable: There is no number, or there are several.
    """
    for start, line in [(s, found) for s, found in _lines(text, name) if found][-1 if last else 0 :][:1]:
        if whole := _NUMBER.fullmatch(line.strip(" $")) or _NUMBER.fullmatch(line):
            return Found(value=_canonical(whole), start=start)
    matches = [Found(value=_canonical(m), start=m.start("number")) for m in _NUMBER.finditer(text)]
    try:
        return _choose(text, name, matches, last=last, what="number")
    except Unreadable:
        equal = (m.end() for m in re.finditer("=", text))
        after = list(itertools.chain.from_iterable(_after(text, equal, matches)))
        if last or len({f.value for f in after}) != 1:
            raise
        return after[-1]


def _canonical(match: re.Match[str]) -> str:
    sign = "-" if match["sign"] in ("-", "\u2212") else ""
    number = decimal.Decimal(f"{sign}{match['number'].replace(',', '')}{match['power'] or ''}")
    if abs(number.adjusted()) > _MOST_DIGITS:
        raise Unreadable(f"{match.group()[:40]!r} has more than {_MOST_DIGITS} digits")
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    below = re.sub(r"\s", "", match["below"] or "")
    return ("0" if digits == "-0" else digits) + below + ("%" if match["percent"] else "")
