"""Ledgers of one student are merged by content; equal draws are one, and others of one number are numbered anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.errors import LedgerError, LedgerLocked, LedgerMismatch
from iapo_dspy.ledger import merge_ledgers
from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.records import (
    BatchRecord,
    CallRecord,
    CompletionRecord,
    GenerationRecord,
    ProposalRecord,
    Record,
    RewriteRecord,
    ScoreRecord,
    SpentRecord,
    VerdictRecord,
)
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage


def drawn(draw: int, text: str, first: int = 0) -> CompletionRecord:
    return CompletionRecord(prompt="p", query="q", draw=draw, first=first, text=text)


def written(folder: Path, *records: Record, fingerprint: str = "f", **about: Any) -> Path:
    with Ledger.open(folder, fingerprint=fingerprint, settings={"about": {"student": "S", **about}}) as ledger:
        ledger.extend(records)
    return folder


def test_draws_scores_verdicts_calls_and_spending_are_merged(tmp_path: Path) -> None:
    call = CallRecord(query="q", call="c", repeat=0, text="shared")
    one = written(
        tmp_path / "a", drawn(0, "x"), drawn(1, "y"), ScoreRecord(key="p/q/1", scorer="s", scores=[1.0]), call,
        SpentRecord(spent=Spent(requests=2, usd=0.5), finished=True),
    )  # fmt: skip
    other = written(
        tmp_path / "b", drawn(0, "x"), drawn(1, "z"), drawn(2, "w", first=1),
        ScoreRecord(key="p/q/1", scorer="s", scores=[0.0]), VerdictRecord(key="call/p/q/1/0", outputs=["no"]), call,
        SpentRecord(spent=Spent(requests=3, usd=0.25)), fingerprint="g",
    )  # fmt: skip
    before = [(folder / "ledger.jsonl").read_bytes() for folder in (one, other)]
    assert merge_ledgers(tmp_path / "into", one, other) == 4
    with Ledger.open(tmp_path / "into", fingerprint="new") as ledger:
        found = ledger.completions(("p", "q"), range(9))
        assert {draw: (r.text, r.first) for draw, r in found.items()} == {
            0: ("x", 0), 1: ("y", 0), 2: ("w", 3), 3: ("z", 0)
        }  # fmt: skip
        scores = [ledger.score(f"p/q/{draw}", "s") for draw in range(4)]
        assert [s and list(s.scores or ()) for s in scores] == [None, [1.0], None, [0.0]]
        assert ledger.verdict("call/p/q/3/0") == VerdictRecord(key="call/p/q/3/0", outputs=["no"])
        assert ledger.verdict("call/p/q/1/0") is None and ledger.calls == (call,)
        assert ledger.spent.spent == Spent(requests=5, usd=0.75)
    with Ledger.open(tmp_path / "into", fingerprint="f") as ledger:
        assert ledger.spent.finished and ledger.spent.spent == Spent(requests=2, usd=0.5)
    assert [(folder / "ledger.jsonl").read_bytes() for folder in (one, other)] == before


def test_a_query_has_one_rewrite_and_that_of_the_first_ledger_stays(tmp_path: Path) -> None:
    mine, theirs = (RewriteRecord(key="r/q", text=text) for text in ("mine", "theirs"))
    one = written(tmp_path / "a", drawn(0, "x"), mine)
    other = written(tmp_path / "b", drawn(0, "y"), theirs, RewriteRecord(key="r/p", failure="empty"))
    assert merge_ledgers(tmp_path / "into", one, other) == 2
    with Ledger.open(tmp_path / "into", fingerprint="new") as ledger:
        kept = ledger.rewrite("r/q")
        assert kept is not None and kept.text == "mine" and ledger.rewrite("r/z") is None
        failed = ledger.rewrite("r/p")
        assert failed is not None and (failed.text, failed.failure) == (None, "empty")


def test_what_is_there_already_is_not_merged_again(tmp_path: Path) -> None:
    spent = SpentRecord(spent=Spent(requests=2, usd=0.5))
    one = written(tmp_path / "a", drawn(0, "x"), drawn(1, "x"), ScoreRecord(key="p/q/0", scores=[1.0]), spent)
    assert merge_ledgers(tmp_path / "into", one) == 2
    whole = (tmp_path / "into" / "ledger.jsonl").read_bytes()
    assert merge_ledgers(tmp_path / "into", one, one) == 2
    assert (tmp_path / "into" / "ledger.jsonl").read_bytes() == whole
    # The same settings elsewhere with another LM seed are another run, whose spending counts, too.
    other = written(tmp_path / "b", drawn(0, "v"), SpentRecord(spent=Spent(requests=1, usd=0.25)))
    assert merge_ledgers(tmp_path / "into", other) == 3
    with Ledger.open(tmp_path / "into", fingerprint="new") as ledger:
        assert ledger.stored == {("p", "q"): [0, 1, 2]} and ledger.taken_over == Spent(requests=3, usd=0.75)


def test_proposals_are_merged_once(tmp_path: Path) -> None:
    one, two, three = (ProposalRecord(key=k, program="Predict", state={}, parents=["b"], read=["x"]) for k in "abc")
    reader = replace(one, read=["y"])  # of other questions, which confirm nothing either
    first = written(tmp_path / "a", drawn(0, "x"), one, two)
    generation = GenerationRecord(generation=0, proposals=["b", "c", "a"], parents=[[], [], [1]])
    second = written(tmp_path / "b", drawn(0, "x"), two, three, reader, generation, fingerprint="g")
    merge_ledgers(tmp_path / "into", first, second)
    with Ledger.open(tmp_path / "into", fingerprint="new") as ledger:
        assert ledger.proposals == (one, two, three, reader)
    with Ledger.open(tmp_path / "into", fingerprint="g") as ledger:
        assert ledger.generations == {0: generation} and ledger.proposal("b") == two


def test_equal_texts_without_a_seed_are_two_draws(tmp_path: Path) -> None:
    def timed(seconds: float, seed: int | None) -> CompletionRecord:
        return replace(drawn(0, "yes"), usage=Usage(completion_tokens=1, latency_s=seconds), seed=seed)

    for seed, count in ((None, 2), (7, 1)):
        into = tmp_path / f"into{seed}"
        one = written(tmp_path / f"a{seed}", timed(0.1, seed))
        other = written(tmp_path / f"b{seed}", timed(0.2, seed), fingerprint="g")
        assert merge_ledgers(into, one, other) == count
        assert merge_ledgers(into, one) == count, "its own copy is there already"


def test_what_cannot_be_merged_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    into, other = written(tmp_path / "into", drawn(0, "x")), written(tmp_path / "b", drawn(0, "y"), signature="a -> b")
    before = (into / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerMismatch, match=r"not of the same student. Different: signature \(new\)"):
        merge_ledgers(into, other)
    with pytest.raises(LedgerError, match="There is no ledger at"):
        merge_ledgers(into, tmp_path / "none")
    with pytest.raises(LedgerError, match="cannot be merged into itself"):
        merge_ledgers(into, into)
    waiting = written(tmp_path / "c", BatchRecord(tag="t", state="intended", lines=[{"id": "0"}]))
    with pytest.raises(LedgerError, match="waits for a batch job"):
        merge_ledgers(into, waiting)
    for folder in (into, tmp_path / "d"):
        with Ledger.open(folder, fingerprint="f"), pytest.raises(LedgerLocked):
            merge_ledgers(into, written(tmp_path / "e"), tmp_path / "d" if folder != into else tmp_path / "e")
    assert (into / "ledger.jsonl").read_bytes() == before
    assert not list(into.glob(".*"))
