"""A ledger of version 1 is rewritten by content as a whole or not at all, and only where its positions are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.errors import LedgerError, LedgerMismatch
from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.sampling.ledger.records import CompletionRecord
from iapo_dspy.sampling.ledger.upgrade import Older

FACTS = {"student": "S", "prompts": "P", "examples": "X", "lms": "L", "adapter": "A"}
OLDER = Older(
    facts=FACTS, known_as="old", fingerprint="new", prompts=["p0", "p1"], queries=["q0", "q1"], labels=["l0", "l1"]
)


def drawn(round: int, position: int, index: int, cell: tuple[int, int], **more: Any) -> dict[str, Any]:
    name = {"round": round, "position": position, "index": index, "prompt": cell[0], "query": cell[1]}
    return {"kind": "completion", **name, "text": f"{round}/{position}/{index}", **more}


LINES = [
    {"kind": "header", "format": "iapo_dspy.ledger", "version": 1, "fingerprint": "old",
     "settings": {**FACTS, "about": {"n_prompts": 2, "n_queries": 2}}},
    drawn(1, 0, 0, (0, 1)),
    {**drawn(0, 1, 0, (0, 1)), "more": True},
    drawn(0, 1, 1, (0, 1)),
    drawn(0, 0, 0, (1, 0)),
    {"kind": "score", "key": "1/0/0", "scorer": "s", "scores": [1.0]},
    {"kind": "verdict", "key": "call/0/1/1/3", "outputs": ["yes"]},
    {"kind": "call", "query": 1, "call": "c", "repeat": 0},
    {"kind": "batch", "tag": "t", "state": "intended", "version": 1,
     "lines": [{"pull": [2, 0], "prompt": 0, "query": 1, "indices": [0, 1], "tokens": 5}]},
    {"kind": "spent", "requests": 3, "finished": True},
]  # fmt: skip


def write(folder: Path, lines: list[dict[str, Any]], end: str = "") -> bytes:
    path = folder / "ledger.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path.read_bytes()


@pytest.mark.parametrize("end", ["", json.dumps({**drawn(5, 0, 0, (0, 0)), "more": True}) + "\n", '{"kind":"comp'])
def test_every_record_gets_its_name_by_content(tmp_path: Path, end: str) -> None:
    before = write(tmp_path, LINES, end)
    with Ledger.open(tmp_path, fingerprint="new", older=lambda: OLDER) as ledger:
        found = ledger.completions(("p0", "q1"), range(9))
        assert {draw: (r.text, r.first) for draw, r in found.items()} == {
            0: ("0/1/0", 0), 1: ("0/1/1", 0), 2: ("1/0/0", 2)
        }  # fmt: skip
        assert ledger.stored == {("p0", "q1"): [0, 1, 2], ("p1", "q0"): [0]} and ledger.known == {}
        score, verdict = ledger.score("p0/q1/2", "s/l1"), ledger.verdict("call/p0/q1/1/3")
        assert score is not None and not score.calibrates and verdict is not None and list(verdict.outputs) == ["yes"]
        assert [r.query for r in ledger.calls] == ["q1"] and ledger.spent.finished and ledger.about is not None
        (job,) = ledger.batches
        assert job.lines == [{"tokens": 5, "prompt": "p0", "query": "q1", "first": 3, "draws": [3, 4], "id": "2-0-0"}]
    assert (tmp_path / "ledger.v1.jsonl").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.jsonl", "ledger.lock", "ledger.v1.jsonl"]
    with Ledger.open(tmp_path, fingerprint="another", older=lambda: OLDER) as ledger:  # it is rewritten once
        assert ledger.known == {("p0", "q1"): [0, 1, 2], ("p1", "q0"): [0]} and ledger.spent.spent.requests == 3


def test_a_run_that_would_ask_otherwise_today_is_another_one(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    with Ledger.open(tmp_path, fingerprint="new", older=lambda: replace(OLDER, fingerprint=None)) as ledger:
        assert ledger.about is None and sum(map(len, ledger.known.values())) == 4


def test_other_candidates_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    before = write(tmp_path, LINES)
    other = replace(OLDER, facts={**FACTS, "prompts": "Q"})
    with pytest.raises(LedgerMismatch, match=r'older version.*Different: prompts \(was "P", is "Q"\)'):
        Ledger.open(tmp_path, fingerprint="new", older=lambda: other)
    for line in ({"kind": "completion", "round": "0"}, drawn(0, -1, 0, (0, 0))):
        write(tmp_path, [*LINES, line])
        with pytest.raises(LedgerError, match="damaged"):
            Ledger.open(tmp_path, fingerprint="new", older=lambda: OLDER)
    assert before == write(tmp_path, LINES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.jsonl", "ledger.lock"]


def test_it_is_read_without_a_change_and_with_made_up_names(tmp_path: Path) -> None:
    before = write(tmp_path, LINES)
    contents = contents_of(tmp_path)
    assert next(iter(contents.all(CompletionRecord))).key == "prompt-0/query-1/2"
    assert contents.about["prompts"] == ["prompt-0", "prompt-1"] and len(contents.completions) == 4
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.jsonl"]
