"""Tables in a notebook."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.report.html import table_html
from iapo_dspy.report.tabular import Line, Table


class Reader(HTMLParser):
    """Reads the tags and the texts of HTML, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


texts = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r"), min_size=1)


@given(title=texts, cell=texts, note=texts)
def test_no_text_is_taken_as_html(title: str, cell: str, note: str) -> None:
    plain = Reader(table_html(Table(columns=("a",), rows=(Line(cells=("b",)),), title="c", notes=("d",))))
    read = Reader(table_html(Table(columns=("a",), rows=(Line(cells=(cell,)),), title=title, notes=(note,))))
    assert set(read.tags) - set(plain.tags) <= {"details", "summary"}
    shown = "".join(read.texts)
    assert title in shown
    assert cell in shown
    assert note in shown


def test_a_long_text_unfolds_to_the_whole() -> None:
    instruction = "Think step by step.\n" * 20
    read = Reader(table_html(Table(columns=("instruction",), rows=(Line(cells=(instruction,)),))))
    assert read.tags.count("details") == 1
    assert instruction in read.texts
    assert ("Think step by step. " * 4)[:77].rstrip() + "..." in read.texts


def test_numbers_are_aligned_to_the_right_and_rows_stand_out() -> None:
    table = Table(
        columns=("arm", "N"),
        rows=(Line(cells=("chosen", "8"), strong=True), Line(cells=("student", "1"))),
        numbers=frozenset({"N"}),
    )
    shown = table_html(table)
    assert shown.count("font-weight:600") == 2  # the two cells of the first row
    assert shown.count("text-align:right") == 3
    assert shown.count("color:") == shown.count("color:inherit") == 1  # light and dark notebooks have their own


def test_an_indented_cell_is_indented() -> None:
    lines = (Line(cells=("chosen",)), Line(cells=("  student",)))
    assert table_html(Table(columns=("arm",), rows=lines)).count("padding-left:1.9em") == 1
