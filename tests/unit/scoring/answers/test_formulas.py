r"""Mathematics is read as a whole, and no answer takes long."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from iapo_dspy import math_equal
from iapo_dspy.scoring.answers.formulas import Collection, Scalar, read, units_of
from iapo_dspy.scoring.bounded import process as module
from iapo_dspy.scoring.bounded.process import FORMULAS
from tests.unit.scoring.answers.test_text import ROWS

MATH = math_equal()

HOSTILE = [  # the first few are in the fast tier
    "(1000000)!",
    "{" * 140 + "1" + "}" * 140,
    "(x+y+z+w)^{999}",
    "1e999999999",
    "x" * 10**6,
    "((99)!)!",
    "(((9)!)!)!",
    r"\binom{10000000}{5000000}",
    "(" * 140 + "1" + ")" * 140,
    r"\frac{1}{" * 60 + "2" + "}" * 60,
    "(x+y+z+w)^{999999999}",
    "9^9^9^9^9",
    "9^{9^{9^{9}}}",
    "2**99999999",
    "10000!",
    "((10)!)!!",
    "1+" * 400 + "1",
    "1.5 \\times 10^{99999999}",
    "0." + "9" * 900,
    "7" * 999,
    "1_" + "9" * 300,
    "$" * 500,
    "\\" * 999,
    "-" * 999,
    ",1" * 499,
    "1 " * 499,
    "a b c " * 150,
    "3 cm cm cm cm cm cm" * 50,
    r"\int_0^{\infty} e^{-x^{2}} \sin(x^{x}) dx",
    r"\sum_{k=1}^{10^{9}} \frac{1}{k^{3}}",
    r"\prod_{k=1}^{10^{8}} k",
    r"\sin(" * 40 + "x" + ")" * 40,
    "\u221a" * 900,
    "\ud83d" * 900,
]


@pytest.mark.parametrize(("kind", "verdict", "one", "other"), ROWS)
def test_the_table_of_pairs(kind: str, verdict: str, one: str, other: str) -> None:
    assert (MATH(one, other), MATH(other, one)) == (verdict[1] == "=",) * 2


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("-1,234.50", Fraction(-2469, 2), ""),
        (r"1.5 \times 10^{-3}", Fraction(3, 2000), ""),
        (r"2\frac{3}{4}", Fraction(11, 4), ""),
        (r"0.1\overline{6}", Fraction(1, 6), ""),
        ("101_{2}", Fraction(5), ""),
        ("12.5%", Fraction(1, 8), ""),
        ("$3$ km", Fraction(3000), "m"),
        ("-$5", Fraction(-5), "$"),
        ("90 km/h", Fraction(25), "m s^-1"),
        (r"9.8 \text{ m}/\text{s}^2", Fraction(49, 5), "m s^-2"),
        ("3 red apples", Fraction(3), "apple red"),
        ("The answer is: **7**.", Fraction(7), ""),
    ],
)
def test_numbers_are_exact_and_have_units(text: str, value: Fraction, unit: str) -> None:
    found = read(text)
    assert isinstance(found, Scalar) and found.exact is not None
    assert (found.exact * found.factor, found.unit) == (value, unit)


def test_a_decimal_number_may_be_the_rounding_of_another() -> None:
    assert MATH("0.333333", "1/3") and MATH("0.333333", "0.3333333") and MATH("3.141593", r"\pi")
    assert not MATH("0.33333", "1/3") and math_equal(digits=5)("0.33333", "1/3")
    assert not MATH("3.141592", r"\pi")  # not its rounding
    assert not MATH("0.000000", "1/30000000") and not MATH("0.0000003", "1/3000000")  # too few digits are left
    assert not MATH("333333/1000000", "1/3")


def test_lists_within_and_fields_that_are_lists() -> None:
    assert MATH(["1/2", {"a": 4}], ("0.5", {"a": "4.0"})) and not MATH(["1/2"], ["1/2", "1/2"])
    found = read(r"\{(1,2), [3,4)\}")
    assert isinstance(found, Collection) and found.kind == "set" and [item.kind for item in found.items] == ["()", "[)"]  # type: ignore[union-attr]
    assert MATH(r"\{(1,2), [3,4)\}", r"\{[3,4), (1,2)\}")


def test_units_are_counted_in_base_units() -> None:
    assert units_of("kg") == (Fraction(1000), "g") and units_of("square cm") == (Fraction(1, 10**4), "m^2")
    assert units_of("m/s") == units_of(r"\text{m} \cdot \text{s}^{-1}") == (Fraction(1), "m s^-1")


def test_without_another_process_formulas_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMULAS, "_idle", [])
    monkeypatch.setattr(module, "_WORKER", module._WORKER.with_name("missing.py"))
    assert math_equal()(r"\sqrt{7} + y", r"\sqrt{7} + y ") and not MATH(r"y + \sqrt{7}", r"\sqrt{7} + y")
    assert MATH("1/2", "0.5")  # a number needs none


@pytest.mark.parametrize(
    "text", [pytest.param(t, id=str(i), marks=[pytest.mark.slow] * (i > 4)) for i, t in enumerate(HOSTILE)]
)
def test_no_answer_takes_more_than_two_seconds(text: str) -> None:
    MATH("x+0", "x+1")  # the process is there
    start = time.perf_counter()
    assert not MATH(text, "7.5") and not MATH("x+7.5", text) and MATH(text, text)
    assert time.perf_counter() - start < 3  # two, and what a busy machine adds
