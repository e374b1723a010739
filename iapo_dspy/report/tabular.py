"""Tables of plain text cells, and their form in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table.

    Attributes:
        cells: One text per column, as it is shown. The last column may hold a long text: it is cut where it is shown.
        strong: Whether the row stands out.
    """

    cells: tuple[str, ...]
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with remarks below it.

    Attributes:
        columns: Their titles, one for each cell of a row.
        rows: The rows, from top to bottom.
        numbers: The columns that are aligned to the right.
        title: One line above the table.
        notes: Remarks below it, one a line.
    """

    columns: tuple[str, ...]
    rows: tuple[Line, ...]
    numbers: frozenset[str] = frozenset()
    title: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [row.cells for row in self.rows if len(row.cells) != len(self.columns)]
        if wrong or not self.numbers <= set(self.columns):
            raise ValueError(f"Rows must have the columns {self.columns}; got {wrong or sorted(self.numbers)}.")


def as_text(table: Table, *, longest: int = 60) -> str:
    """Return a table for a terminal, with aligned columns.

    Args:
        table: The table.
        longest: Characters of a cell at most, >= 4.
    """
    lines = [[cut(cell, longest) for cell in cells] for cells in (table.columns, *(row.cells for row in table.rows))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [title in table.numbers for title in table.columns]
    shown = ["  ".join(_aligned(line, widths, right)).rstrip() for line in lines]
    rule = "-" * max(map(len, shown))
    return "\n".join([*([table.title] if table.title else []), shown[0], rule, *shown[1:], *table.notes])


def cut(text: str, longest: int) -> str:
    """Return a text in one line of so many characters at most, indented as it is; dots stand for what is left out."""
    indent, line = " " * (len(text) - len(text.lstrip(" "))), " ".join(text.split())
    room = longest - len(indent)
    return indent + (line if len(line) <= room else line[: room - 3].rstrip() + "...")


def _aligned(line: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
