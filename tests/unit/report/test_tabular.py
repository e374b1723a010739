"""Tables in a terminal."""

import pytest

from iapo_dspy.report.tabular import Line, Table, as_text, cut


def test_columns_are_aligned_and_long_texts_are_cut_in_one_line() -> None:
    table = Table(
        columns=("preference", "N", "instruction"),
        rows=(Line(cells=("thrifty", "4", "Add the\nnumbers step by step.")), Line(cells=("", "16", "Answer."))),
        numbers=frozenset({"N"}),
        title="Two arms",
        notes=("a remark",),
    )
    assert as_text(table, longest=20) == (
        "Two arms\n"
        "preference   N  instruction\n"
        "------------------------------------\n"
        "thrifty      4  Add the numbers s...\n"
        "            16  Answer.\n"
        "a remark"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("12345", "12345"),
        ("123456", "12..."),
        ("1 \n 3", "1 3"),
        ("12 4567", "12..."),
        ("  1", "  1"),
        ("  12345", "  ..."),
    ],
)
def test_a_text_is_cut_to_its_length(text: str, shown: str) -> None:
    assert cut(text, 5) == shown


def test_rows_must_have_the_columns() -> None:
    with pytest.raises(ValueError, match="'too', 'many'"):
        Table(columns=("one",), rows=(Line(cells=("too", "many")),))
    with pytest.raises(ValueError, match="other"):
        Table(columns=("one",), rows=(), numbers=frozenset({"other"}))
