"""The report of a run: one HTML file that holds its data, its charts and its scripts, and asks the network for nothing.

The charts are drawn by Plotly (extra `report`), whose script is written into the file. Each has a table of its numbers
below it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template

from iapo_dspy.report.html import notes_html, table_html
from iapo_dspy.report.page_data import PageData, PagePrompt, Row
from iapo_dspy.report.tabular import Line, Table


def page_html(data: PageData) -> str:
    """Return the page.

    Raises:
        ImportError: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("A report needs Plotly: pip install 'iapo_dspy[report]'.") from error
    crossed = [crossings(view.reward) for view in data.views]
    content = {**data.to_dict(), "crossings": crossed}
    return _asset("page.html").substitute(
        title=escape(data.title),
        style=_asset("page.css").template,
        plotly=get_plotlyjs(),
        script=_asset("page.js").template,
        data=_as_script(content),
        policy=table_html(data.policy),
        views=_options([view.name for view in data.views]),
        axes=_options([axis.title for axis in data.axes]),
        last=len(data.views[0].weights) - 1,
        many_views="" if len(data.views) > 1 else "hidden",
        crossings=_crossings(data, crossed),
        deceptive=notes_html(data.deceptive or ("None was found.",)),
        remarks=notes_html(data.remarks),
        rounds=_rounds(data),
        spent=table_html(_pairs("Spent", data.spent)),
        failures=_failures(data),
        prompts="".join(_prompt(i, prompt, data) for i, prompt in enumerate(data.prompts)),
        larger=table_html(data.larger),
        confidence=_reliability(data),
        no_confidence="" if data.reliability else "hidden",
    )


def crossings(reward: Sequence[Row]) -> tuple[tuple[int, int, int], ...]:
    """Return where the prompt that leads by task reward changes with N.

    Args:
        reward: Estimated task reward [P, N]; None without evidence.

    Returns:
        (N from which the new prompt leads, the prompt before, the new prompt), by ascending N. A prompt that is as good
        as the leader does not take its place.
    """
    found, leader = [], None
    for n, column in enumerate(zip(*reward, strict=True), start=1):
        known = [-math.inf if value is None else value for value in column]
        best = max(known)
        if best == -math.inf or (leader is not None and known[leader] == best):
            continue
        first = known.index(best)
        if leader is not None:
            found.append((n, leader, first))
        leader = first
    return tuple(found)


def changes(before: str, after: str) -> tuple[tuple[str, str], ...]:
    """Return how a text became another one, word by word: runs of words that are "same", "gone" or "new"."""
    old, new = before.split(), after.split()
    found: list[tuple[str, str]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("same", " ".join(old[a:b])))
            continue
        found += [("gone", " ".join(old[a:b]))] if b > a else []
        found += [("new", " ".join(new[c:d]))] if d > c else []
    return tuple(found)


def _asset(name: str) -> Template:
    return Template((resources.files(__package__) / "assets" / name).read_text(encoding="utf-8"))


def _as_script(content: object) -> str:
    """Return JSON that ends no script element, whatever texts are in it."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _options(names: Sequence[str]) -> str:
    return "".join(f"<option value='{i}'>{escape(name)}</option>" for i, name in enumerate(names))


def _pairs(title: str, rows: Mapping[str, str]) -> Table:
    return Table(columns=(title, ""), rows=tuple(Line(cells=(k, v)) for k, v in rows.items()), numbers=frozenset([""]))


def _crossings(data: PageData, crossed: Sequence[Sequence[tuple[int, int, int]]]) -> str:
    told = []
    for view, found in zip(data.views, crossed, strict=True):
        where = f"{view.name}: " if len(data.views) > 1 else ""
        for n, before, after in found:
            told.append(
                f"{where}From N={n} on, prompt {after} ({data.prompts[after].label}) is ahead of prompt {before} "
                f"({data.prompts[before].label})."
            )
    return notes_html(told or ["The same prompt leads at every N."])


def _rounds(data: PageData) -> str:
    if data.rounds is None:
        return notes_html(["The rounds of this run were not kept."])
    rows = [(str(i), str(r.prompts), f"{r.pulls:,}", f"{r.completions:,}") for i, r in enumerate(data.rounds, start=1)]
    columns = ("Round", "Prompts alive", "Pulls", "Completions")
    table = Table(columns=columns, rows=tuple(Line(cells=row) for row in rows), numbers=frozenset(columns))
    return table_html(table)


def _reliability(data: PageData) -> str:
    columns = ("Preference", "Confidence", "Right", "Calls")
    rows = [
        (found.name, f"{confidence:.3f}", f"{right:.3f}", f"{count:,}")
        for found in data.reliability
        for confidence, right, count in zip(found.confidence, found.right, found.count, strict=True)
    ]
    table = Table(columns=columns, rows=tuple(Line(cells=row) for row in rows), numbers=frozenset(columns[1:]))
    said = notes_html([f"{found.name}: {found.error}." for found in data.reliability])
    return f"{said}<details><summary>The same numbers as a table</summary>{table_html(table)}</details>"


def _failures(data: PageData) -> str:
    failures = data.failures
    if failures is None:
        return notes_html(["The failures of this run were not kept."])
    if not failures.total:
        return notes_html([f"None of {failures.completions:,} completions failed."])
    said = f"{failures.total:,} of {failures.completions:,} completions failed; they were paid for and count as wrong."
    causes = Table(
        columns=("Times", "Cause, with an example of its message"),
        rows=tuple(Line(cells=(f"{count:,}", cause)) for cause, count in failures.causes),
        numbers=frozenset(["Times"]),
    )
    worst = sorted((-(p.failed or 0.0), i) for i, p in enumerate(data.prompts))
    shares = Table(
        columns=("Failed", "Unreadable", "Prompt"),
        rows=tuple(
            Line(cells=(f"{-share:.1%}", _percent(data.prompts[i].unreadable), f"{i}: {data.prompts[i].label}"))
            for share, i in worst
            if share
        ),
        numbers=frozenset(["Failed", "Unreadable"]),
    )
    examples = Table(
        columns=("Prompt", "Text that could not be read", "Cause"),
        rows=tuple(Line(cells=cells) for cells in failures.examples),
        numbers=frozenset(["Prompt"]),
    )
    tables = [causes, *(table for table in (shares, examples) if table.rows)]
    return notes_html([said]) + "".join(map(table_html, tables))


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"{share:.1%}"


def _prompt(number: int, prompt: PagePrompt, data: PageData) -> str:
    rest = "; ".join(filter(None, [prompt.model, prompt.decoding, prompt.adapter, prompt.origin]))
    parts = []
    for name, text in prompt.instructions.items():
        before = data.student.get(name)
        head = f"<h4>{escape(name)}</h4>" if len(prompt.instructions) > 1 else ""
        shown = f"<pre class='text'>{escape(text)}</pre>"
        if before is not None and before != text:
            tags = {"same": "span", "gone": "del", "new": "ins"}
            words = " ".join(f"<{tags[k]}>{escape(t)}</{tags[k]}>" for k, t in changes(before, text))
            shown += f"<p class='diff'><b>Against the student's:</b> {words}</p>"
        elif before is not None:
            shown += "<p class='diff'>The same as the student's.</p>"
        parts.append(head + shown)
    summary = f"<summary>{number}: {escape(prompt.label)}</summary>"
    return f"<details class='prompt'>{summary}<p class='rest'>{escape(rest)}</p>{''.join(parts)}</details>"
