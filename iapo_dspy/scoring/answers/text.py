"""Texts that look the same, or say the same in another notation, are one text."""

from __future__ import annotations

import re
import unicodedata

# Soft hyphens, zero-width and bidirectional marks, invisible operators, variation selectors, fillers, controls.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
)
_UNSEEN = re.compile(f"(?<![\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])\u200d|[{_INVISIBLE}]")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),  # hyphens, the minus sign, the en dash
        **dict.fromkeys("\u2018\u2019\u201b", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        **dict.fromkeys("\u2044\u2215", "/"),
        "\u2236": ":",
        "\u066a": "%",
        "\u066b": ".",
        "\u066c": ",",
        "\u2800": " ",  # a blank pattern of Braille
    }
)
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a-\u207e\u207f\u2071"
_LOWERED = "\u2080-\u2089"
_RATIO = re.compile(f"(?<![{_RAISED}])([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)[/\u2044\u2215]([{_LOWERED}]+)")
_VULGAR = re.compile(r"[\u00bc-\u00be\u2150-\u215f\u2189]")
_POWER = re.compile(f"[{_RAISED}]+")
_BASE = re.compile(f"(?<=\\d)[{_LOWERED}]+|(?<=log)[{_LOWERED}]+")
_HALVES = re.compile("[\ud800-\udfff]")
_SQUARE = re.compile(r"[\u3300-\u33ff]")  # units in one character
_THIN = re.compile(r"(?<=\d)[\u2009\u202f](?=\d{3}(?!\d))")  # between thousands
_DIGIT = re.compile(r"(?![0-9])\d")  # of scripts that have their own
_MARKS = 30  # combining marks in a row: the Stream-Safe Text Format of Unicode (UAX 15) has no more


def visible(text: str) -> str:
    """Return a text as it is seen, in few characters: Unicode NFKC, but powers stay powers (10\u00b2 is 10^2, not 102).

    Invisible characters go; minus signs, hyphens and quotation marks become those of ASCII, and so do decimal digits of
    all scripts. Takes time in proportion to the length.
    """
    if text.isascii():
        return _UNSEEN.sub("", text)
    if _HALVES.search(text):  # where both halves of a character are there, they are one
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    text = _UNSEEN.sub("", _SQUARE.sub(_expanded, _THIN.sub("", text)))
    text = _RATIO.sub(lambda m: f"{_gap(m)}{_ascii(m[1])}/{_ascii(m[2])}", text)
    text = _VULGAR.sub(lambda m: _gap(m) + _ascii(m[0]), text)
    text = _POWER.sub(lambda m: _mark("^", m), text)
    text = _BASE.sub(lambda m: _mark("_", m), text)
    text = unicodedata.normalize("NFKC", stream_safe(text)).translate(_SIGNS)
    return _DIGIT.sub(lambda m: str(unicodedata.decimal(m[0])), text)


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_SIGNS)


def _expanded(found: re.Match[str]) -> str:
    """Return the characters that one stands for, as they are: a square metre has a power."""
    kind, *codes = unicodedata.decomposition(found[0]).split() or [""]
    return "".join(chr(int(code, 16)) for code in codes) if kind == "<square>" else found[0]


def _gap(found: re.Match[str]) -> str:
    """Return what separates a whole number from its fraction."""
    return " " if found.string[found.start() - 1 : found.start()].isdigit() else ""


def _mark(sign: str, found: re.Match[str]) -> str:
    digits = _ascii(found[0])
    return f"{sign}({digits})" if found.string[found.end() : found.end() + 1].isalnum() else sign + digits


def stream_safe(text: str) -> str:
    """Return a text with its long rows of combining marks interrupted: Unicode's normalisation is quadratic in them."""
    if len(text) <= _MARKS or not any(map(unicodedata.combining, text)):
        return text
    parts, row = [], 0
    for c in text:
        row = row + 1 if unicodedata.combining(c) else 0
        if row > _MARKS:
            parts.append("\u034f")
            row = 1
        parts.append(c)
    return "".join(parts)


_WRAPPED = re.compile(
    r"\*\*(?P<bold>[^*]+)\*\*|\$(?P<dollar>[^\s$](?:[^$]*[^\s$])?)\$|\\\((?P<round>.+)\\\)|\\\[(?P<square>.+)\\\]"
    r"|\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{(?P<braced>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\}",
    re.DOTALL,
)
_THOUSANDS = re.compile(r"([+-]?(?:[$\u20ac\u00a3\u00a5]\s?)?\d{1,3}(?:,\d{3})+)((?:\.\d+)?(?:\s?%|\s[a-z\s]+)?)")
_LABEL = re.compile(r"(?:\(([a-z])\)|([a-z])[).:])(?:\s+(.+))?", re.DOTALL)


def unwrapped(text: str) -> str:
    r"""Return a text without what only surrounds all of it: blanks, a final full stop, **bold**, $...$, \boxed{}."""
    for _ in range(10):
        before, text = text, text.strip()
        if text.endswith((".", "\u3002")) and not text.endswith(".."):
            text = text[:-1].rstrip()
        found = _WRAPPED.fullmatch(text)
        text = str(found[str(found.lastgroup)]) if found else text
        if text == before:
            break
    return text


def normalize_text(text: str) -> str:
    """Return the form in which two texts are compared by default.

    See `visible` for the characters and `unwrapped` for what surrounds them. Case is folded and runs of white space are
    one blank. A number by itself, or before a unit, has no thousands separators. Labels of choices are written in one
    way: "(B)", "B." and "B)" are B, and "(B) Paris" is "B) Paris". Other signs, digits and punctuation stay, because
    they decide numeric answers.
    """
    folded = " ".join(unwrapped(visible(text)).casefold().split()).replace(" %", "%")
    number = _THOUSANDS.fullmatch(folded)
    if number:
        return number[1].replace(",", "") + number[2]
    label = _LABEL.fullmatch(folded)
    if label:
        letter = label[1] or label[2]
        return f"{letter}) {label[3]}" if label[3] else letter
    return folded
