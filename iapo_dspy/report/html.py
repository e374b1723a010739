"""The HTML that notebooks show. Every text is escaped, and colours are the notebook's own, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from iapo_dspy.report.tabular import Table, cut

_LONGEST = 80  # characters of a cell; a longer text unfolds
_CELL = "padding:0.25em 0.7em;vertical-align:top;border-bottom:1px solid rgba(128,128,128,0.3);"


def table_html(table: Table) -> str:
    """Return a table as HTML. A long cell shows its beginning, and unfolds to the whole text.

    Args:
        table: The table; no text in it is taken as HTML.
    """
    right = [title in table.numbers for title in table.columns]
    head = "".join(_cell("th", title, _align(r)) for title, r in zip(table.columns, right, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell('td', c, _align(r, row.strong)) for c, r in zip(row.cells, right, strict=True))}</tr>"
        for row in table.rows
    )
    title = f"<caption style='text-align:left;font-weight:600'>{escape(table.title)}</caption>" if table.title else ""
    return (
        f"<div style='overflow-x:auto'><table style='border-collapse:collapse;color:inherit'>{title}"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes_html(table.notes)}</div>"
    )


def notes_html(notes: Sequence[str]) -> str:
    """Return remarks as small paragraphs."""
    return "".join(f"<p style='margin:0.3em 0;font-size:0.9em'>{escape(note)}</p>" for note in notes)


def _align(right: bool, strong: bool = False) -> str:
    return f"text-align:{'right' if right else 'left'};{'white-space:nowrap;' if right else ''}" + (
        "font-weight:600;" if strong else ""
    )


def _cell(tag: str, text: str, style: str) -> str:
    """Return one cell; a text that is cut or has several lines is there as a whole, too."""
    shown = escape(text)
    if len(text) > _LONGEST or "\n" in text:
        whole = f"<div style='white-space:pre-wrap;max-width:48em'>{shown}</div>"
        shown = f"<details><summary>{escape(cut(text, _LONGEST))}</summary>{whole}</details>"
    scope = " scope='col'" if tag == "th" else ""
    indent = len(text) - len(text.lstrip(" "))
    style += f"padding-left:{0.7 + 0.6 * indent:.2g}em;" if indent else ""
    return f"<{tag}{scope} style='{_CELL}{style}'>{shown}</{tag}>"
