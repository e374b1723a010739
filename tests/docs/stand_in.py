"""The servers that the pages name, played by one on loopback: an LM that adds, judges and writes."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from scripted_writer import wanted_fields

from iapo_dspy.demo.tasks import ADDITION_STYLES
from tests.support.loopback import Loopback, chat

WRITTEN = [texts[-1] for style, texts in ADDITION_STYLES.items() if style not in ("default", "rough", "left")]
FIXED = {"verdict": "7", "score": "7", "good": "True", "rating": "4"}


def answer(body: dict[str, Any], index: int) -> str:
    """Fill in each field that is asked for: a sum for a question, seven for a verdict, an instruction for a writer."""
    form, fields = wanted_fields(body["messages"])
    question = str(body["messages"][-1]["content"])
    if form == "text":
        return f"```\n{_filled('instruction', question, index)}\n```"
    filled = {name: _filled(name, question, index) for name in fields}
    return json.dumps(filled) if form == "json" else chat(**filled)


def _filled(name: str, question: str, index: int) -> str:
    numbers = re.findall(r"(\d+) \+ (\d+)", question)
    if name == "answer" and numbers:
        a, b = (int(n) for n in numbers[-1])
        return str(a + b + random.Random(a * 7919 + b * 104_729 + index).choice((0, 0, 0, 10)))
    if name == "better":
        return _better(question, sum(int(n) for n in numbers[-1]))
    if "instruction" in name:
        return WRITTEN[index % len(WRITTEN)]
    return FIXED.get(name, f"{name} {index % 3}")


def _better(question: str, total: int) -> str:
    """Compare two answers with the sum, as a judge does that can add."""
    one, two = (re.search(rf"{place}_answer ## \]\]\n(\d+)", question) for place in ("first", "second"))
    errors = [abs(int(found[1]) - total) if found else 10**6 for found in (one, two)]
    return "tie" if errors[0] == errors[1] else "first" if errors[0] < errors[1] else "second"


def stand_in() -> Loopback:
    """Return the server, as a context manager."""
    return Loopback(answer, obeys=True)
