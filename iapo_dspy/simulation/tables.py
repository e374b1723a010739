"""Tables of simulations, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DETAILS = (  # key, head, digits
    ("acr", "ACR", 4), ("sem", "SEM", 4), ("spent", "spent", 0), ("regret", "regret", 4),
    ("best_arm", "P(best arm)", 3), ("completions", "samples a call", 1), ("waves", "waves", 2),
    ("compound", "compound", 2), ("escalates", "second stage", 3), ("abstains", "abstains", 3),
    ("bias", "bias", 3), ("coverage", "coverage", 2), ("half_width", "+-", 3),
)  # fmt: skip


_COMPOUND = ("compound", "escalates", "abstains")


def acr_table(summary: Mapping[str, Any]) -> str:
    """Return mean ACR by algorithm (rows) and budget (columns)."""
    budgets = list(dict.fromkeys(r["budget"] for r in summary["results"]))
    names = list(dict.fromkeys(r["algorithm"] for r in summary["results"]))
    acr = {(r["algorithm"], r["budget"]): r["acr"] for r in summary["results"]}
    rows = [[name, *(_number(acr[name, b], 4) for b in budgets)] for name in names]
    references = summary["references"]
    rows += [["best train policy", _number(references["train_best"], 4)], ["oracle", _number(references["oracle"], 4)]]
    return _table(["ACR", *(f"{b:,}" for b in budgets)], rows)


def details_table(summary: Mapping[str, Any]) -> str:
    """Return every number of every (algorithm, budget); those of compound arms only where there are some."""
    compound = any(r["compound"] for r in summary["results"])
    details = [d for d in _DETAILS if compound or d[0] not in _COMPOUND]
    rows = [
        [r["algorithm"], f"{r['budget']:,}", *(_number(r[key], digits) for key, _, digits in details)]
        for r in summary["results"]
    ]
    return _table(["algorithm", "budget", *(head for _, head, _ in details)], rows)


def generations_table(summary: Mapping[str, Any]) -> str:
    """Return the completions that the prompts of each generation took, where they joined during the run."""
    rows = [
        [
            *(r["algorithm"], f"{r['budget']:,}", f"{number} ({g['prompts']} prompts)", _number(g["chosen"], 2)),
            *(_number(g[key], 1) for key in ("completions", "put_aside", "most_put_aside")),
        ]
        for r in summary["results"]
        for number, g in enumerate(r.get("generations", ()), start=1)
    ]
    head = ["algorithm", "budget", "generation", "chosen", "completions each", "put aside after", "at most"]
    return _table(head, rows)


def significance_table(summary: Mapping[str, Any]) -> str:
    """Return the paired tests, significant pairs marked with a star."""
    rows = [
        [
            f"{t['budget']:,}",
            f"{t['first']} - {t['second']}",
            f"{t['difference']:+.4f}",
            f"{t['p']:.2g}",
            "*" if t["significant"] else "",
        ]
        for t in summary["tests"]
    ]
    return _table(["budget", "pair", "difference", "p", ""], rows)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    full = [[*row, *[""] * (len(head) - len(row))] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in full) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in full
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
