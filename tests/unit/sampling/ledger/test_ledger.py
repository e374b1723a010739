"""The ledger keeps what was stored through crashes, and refuses files that are damaged or of another run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.errors import LedgerError, LedgerLocked, LedgerMismatch
from iapo_dspy.sampling.ledger.ledger import Ledger, LedgerPort, NullLedger, fingerprint_of, open_batches
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import (
    BatchRecord,
    CompletionRecord,
    GenerationRecord,
    ProposalRecord,
    ScoreRecord,
    SpentRecord,
    UnitRecord,
)
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage

ROOT = Path(__file__).parents[4]


def record(index: int, pull: tuple[int, int] = (0, 0), **changes: Any) -> CompletionRecord:
    fields = {"answer": f"a{index}"}
    base: dict[str, Any] = {
        "text": f"text {index}\nnext",
        "fields": fields,
        "usage": Usage(completion_tokens=2.5),
        "seed": 7,
    }
    return CompletionRecord(prompt=f"p{pull[0]}", query=f"q{pull[1]}", draw=index, first=0, **{**base, **changes})


def found(ledger: LedgerPort, pull: tuple[int, int] = (0, 0)) -> tuple[CompletionRecord, ...]:
    """The completions of a cell, in the order of their draws."""
    return tuple(record for _, record in sorted(ledger.completions((f"p{pull[0]}", f"q{pull[1]}"), range(9)).items()))


def cells(log_dir: Path) -> list[tuple[str, str]]:
    return [(r.prompt, r.query) for r in read_ledger(log_dir)[1] if isinstance(r, CompletionRecord)]


def test_what_was_stored_comes_back(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "run", fingerprint="f", settings={"seed": 0}) as ledger:
        ledger.extend(
            [record(1), record(0, failure="E: x", fields=None, error=True), record(0, (1, 0), usage=Usage(usd=0.25))]
        )
        ledger.append(ScoreRecord(key="4|a0", scores=[1.0, 0.5]))
        ledger.append(ScoreRecord(key="4|a1", failure="ValueError: no"))
        assert found(ledger) == ()  # who appended it has it
    with Ledger.open(tmp_path / "run", fingerprint="f") as ledger:
        first, second = found(ledger)
        assert (first, second) == (record(0, failure="E: x", fields=None, error=True), record(1))
        assert found(ledger, (1, 0)) == (record(0, (1, 0), usage=Usage(usd=0.25)),)
        assert found(ledger, (9, 9)) == () and ledger.known == {}
        assert ledger.stored == {("p0", "q0"): [0, 1], ("p1", "q0"): [0]}
        score = ledger.score("4|a0", "")
        assert score is not None and list(score.scores or ()) == [1.0, 0.5]
        assert ledger.score("4|a1", "") == ScoreRecord(key="4|a1", failure="ValueError: no")
        assert ledger.score("4|a1", "another metric") is None and ledger.score("other", "") is None
        ledger.append(record(1, (1, 0)))
    with Ledger.open(tmp_path / "run", fingerprint="f") as ledger:
        assert len(found(ledger, (1, 0))) == 2


def test_records_that_belong_together_are_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.extend([record(0), record(1)])
    path = tmp_path / "ledger.jsonl"
    before = path.read_bytes()
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.extend([record(i, (0, 1)) for i in range(3)])
    whole = path.read_bytes()
    for end in range(len(before) + 1, len(whole)):  # killed after any byte
        path.write_bytes(whole[:end])
        assert cells(tmp_path) == [("p0", "q0")] * 2
        assert path.read_bytes() == whole[:end]  # reading changes nothing
        with Ledger.open(tmp_path, fingerprint="f") as ledger:
            assert found(ledger, (0, 1)) == () and len(found(ledger)) == 2
        assert path.read_bytes() == before
    path.write_bytes(whole)
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert [r.draw for r in found(ledger, (0, 1))] == [0, 1, 2]


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger at"):
        read_ledger(tmp_path)
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(LedgerError, match="not a ledger of this package"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("torn", [b'{"kind":"completion","pro', b"\xff\xfe", b'{"kind":"completion"}', b"\n", b"12\n"])
def test_a_torn_end_is_cut_off(tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.append(record(0))
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with caplog.at_level(logging.WARNING), Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert found(ledger) == (record(0),)
        assert path.read_bytes() == whole
        ledger.append(record(1))
    assert "half a record" in caplog.text
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert len(found(ledger)) == 2


def test_every_possible_tear_is_repaired(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.append(record(0))
        ledger.append(record(1, text="ü" * 20))
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for length in [*range(0, len(whole), 7), *ends, *(end - 1 for end in ends), len(whole)]:
        path.write_bytes(whole[:length])
        with Ledger.open(tmp_path, fingerprint="f") as ledger:
            assert len(found(ledger)) == max(sum(end <= length for end in ends) - 3, 0)  # header, run, spent


def test_damage_in_the_middle_is_not_repaired_silently(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.extend([record(0), record(1)])
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{broken\n", *lines[4:]]))
    with pytest.raises(LedgerError, match="line 4"):
        Ledger.open(tmp_path, fingerprint="f")
    with pytest.raises(LedgerError, match="line 4"):  # and the lock was given back
        Ledger.open(tmp_path, fingerprint="f")


def settings(**about: Any) -> dict[str, Any]:
    return {"seed": 0, "about": {"student": "S", "models": ["a"], "prompts": ["p0"], "queries": ["q0", "q1"], **about}}


def test_another_run_finds_what_was_paid_for_and_the_first_one_is_what_it_was(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f", settings=settings()) as ledger:
        ledger.append(SpentRecord(spent=Spent(requests=1, completion_tokens=5, usd=0.5, seconds=9.0)))
        ledger.append(record(0))
        ledger.append(record(1, text=None, error=True))  # lost: it is drawn again
        ledger.append(UnitRecord(cost=2.0, queries=1))
    with Ledger.open(tmp_path, fingerprint="g", settings=settings(prompts=["p0", "p1"])) as ledger:
        assert ledger.about is None and ledger.known == ledger.stored == {("p0", "q0"): [0]}
        assert ledger.spent.spent == ledger.taken_over == Spent(requests=1, completion_tokens=5, usd=0.5)  # no seconds
        assert ledger.has_unit and ledger.unit == UnitRecord(cost=2.0, queries=1)
        ledger.append(SpentRecord(spent=Spent(requests=3, usd=1.5), reserved=Spent(usd=0.25)))
        ledger.append(record(1))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with Ledger.open(tmp_path, fingerprint="f", settings=settings()) as ledger:
        assert ledger.about == settings()["about"] and ledger.known == {} and ledger.stored == {("p0", "q0"): [0, 1]}
        assert (ledger.spent.spent.usd, ledger.spent.spent.seconds) == (0.5, 9.0) and not ledger.has_unit
        assert (ledger.others.requests, ledger.others.usd) == (2, 1.25)
        ledger.append(SpentRecord(spent=Spent(requests=2, usd=0.75, seconds=10.0), finished=True))
    assert (tmp_path / "ledger.jsonl").read_bytes().startswith(before)
    with Ledger.open(tmp_path, fingerprint="g") as ledger:
        assert ledger.known == {("p0", "q0"): [0]} and ledger.spent.spent == Spent(requests=3, usd=1.5)
    with Ledger.open(tmp_path, fingerprint="h", settings=settings()) as ledger:  # 0.75 by the one, 1.25 by the other
        assert ledger.taken_over.usd == pytest.approx(2.0) and ledger.taken_over.requests == 4


def test_a_completion_that_was_lost_in_a_finished_run_stays_lost(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.extend([record(0, text=None, error=True), SpentRecord(finished=True)])
    for fingerprint in ("g", "f"):
        with Ledger.open(tmp_path, fingerprint=fingerprint) as ledger:
            assert ledger.stored == {("p0", "q0"): [0]}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"student": "T", "prompts": ["p9"]}, r'student \(was "S", is "T"\)'),
        ({"models": ["b"], "prompts": ["p9"]}, r'models \(was \["a"\], is \["b"\]\)'),
    ],
)
def test_a_ledger_in_which_nothing_serves_is_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    with Ledger.open(tmp_path, fingerprint="f", settings=settings()) as ledger:
        ledger.append(record(0))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerMismatch, match=f"none of its completions can serve this run. Different: {words}"):
        Ledger.open(tmp_path, fingerprint="g", settings=settings(**changed))
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_candidates_that_are_all_new_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ledger.open(tmp_path, fingerprint="f", settings=settings()) as ledger:
        ledger.append(record(0))
    with caplog.at_level(logging.WARNING):
        Ledger.open(tmp_path, fingerprint="g", settings=settings(prompts=["p9"])).close()
    assert "starts from zero: 1 completions are of 1 prompt that this run does not have" in caplog.text


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"some": "file"}\n')
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger.open(tmp_path, fingerprint="f")
    path.write_text('{"format": "iapo_dspy.ledger", "version": 99}\n')
    with pytest.raises(LedgerError, match="version 99"):
        Ledger.open(tmp_path, fingerprint="f")


def test_one_at_a_time(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        with pytest.raises(LedgerLocked, match=str(os.getpid())):
            Ledger.open(tmp_path, fingerprint="f")
        child = (
            "import sys\nfrom iapo_dspy.sampling.ledger.ledger import Ledger\nLedger.open(sys.argv[1], fingerprint='f')"
        )
        command = [sys.executable, "-c", child, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert "LedgerLocked" in done.stderr
        ledger.append(record(0))
    Ledger.open(tmp_path, fingerprint="f").close()


@pytest.mark.slow
def test_a_killed_process_loses_nothing_and_leaves_no_lock(tmp_path: Path) -> None:
    child = """
import os, sys
from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord
ledger = Ledger.open(sys.argv[1], fingerprint='f')
for i in range(10**9):
    ledger.append(CompletionRecord(prompt='p', query='q', draw=i, first=0, text='t' * 50))
    if i == 500:
        os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", child, str(tmp_path)], cwd=ROOT, timeout=60, check=False)
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert ledger.stored == {("p", "q"): list(range(501))}


def test_closed_ledger_says_so(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, fingerprint="f")
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.append(record(0))


def test_no_secret_reaches_the_file(tmp_path: Path) -> None:
    settings = {
        "lm": {"model": "m", "api_key": "sk-123456", "extra_headers": {"X": "sk-234567"}, "max_tokens": 5},
        "aws_secret_access_key": "hush",
        "list": [{"Authorization": "Bearer abc"}],
    }
    with Ledger.open(tmp_path, fingerprint=fingerprint_of(settings), settings=settings):
        pass
    text = (tmp_path / "ledger.jsonl").read_text()
    assert not any(secret in text for secret in ("sk-123456", "sk-234567", "hush", "Bearer"))
    assert json.loads(text.splitlines()[1])["settings"]["lm"] == {"model": "m", "max_tokens": 5}
    changed = {**settings, "aws_secret_access_key": "other"}
    assert fingerprint_of(settings) == fingerprint_of(changed)
    assert fingerprint_of(settings) != fingerprint_of({**settings, "more": 1})


def test_null_ledger_is_a_ledger() -> None:
    with NullLedger() as ledger:
        assert isinstance(ledger, LedgerPort)
        ledger.append(record(0))
        ledger.flush()
        assert found(ledger) == () and ledger.stored == ledger.known == {}
        assert ledger.score("x", "") is None
    ledger.close()


def test_nothing_private_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Ledger.open(tmp_path, fingerprint="f", settings={"q": "private"}) as ledger:
        ledger.append(record(0, text="private"))
    assert "private" not in caplog.text


def test_jobs_that_are_open_are_found_again(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="x") as ledger:
        for tag in ("a", "b", "c"):
            ledger.append(BatchRecord(tag=tag, state="intended", lines=[{"n": 1}], reserved_usd=2.0))
        ledger.append(BatchRecord(tag="b", state="submitted", job="job-b"))
        ledger.append(BatchRecord(tag="c", state="submitted", job="job-c"))
        ledger.append(BatchRecord(tag="c", state="closed"))
        assert ledger.batches == ()  # those of this process are known to who runs them
    with Ledger.open(tmp_path, fingerprint="x") as ledger:
        a, b = ledger.batches
    assert (a.state, a.job, b.state, b.job) == ("intended", None, "submitted", "job-b")
    assert [r.lines for r in (a, b)] == [[{"n": 1}]] * 2 and b.reserved_usd == 2.0
    with pytest.raises(LedgerError, match="version 3"):
        open_batches([BatchRecord(tag="a", state="intended", version=3)])


def test_completions_of_an_lm_at_another_address_are_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def at(address: str, fingerprint: str) -> None:
        Ledger.open(
            tmp_path,
            fingerprint=fingerprint,
            settings={"about": {"servers": {"p0": [address], fingerprint: [address]}}},
        ).close()

    at("a:1", "f")
    at("a:1", "g")
    assert not caplog.records
    at("b:2", "h")
    assert "were drawn at a:1, and this run asks b:2" in caplog.text and len(caplog.records) == 1


def test_a_run_knows_the_proposals_of_the_runs_before_it(tmp_path: Path) -> None:
    one, two = (
        ProposalRecord(key=k, program="Predict", state={"self": {"demos": []}}, parents=["p"], read=["x"]) for k in "ab"
    )
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert ledger.proposals == () and ledger.proposal("a") is None
        ledger.append(one)
    with Ledger.open(tmp_path, fingerprint="g") as ledger:
        assert ledger.proposals == (one,)
        ledger.append(two)
    with Ledger.open(tmp_path, fingerprint="f") as ledger:  # it goes on as it began
        assert ledger.proposals == () and (ledger.proposal("a"), ledger.proposal("b")) == (one, two)
    with Ledger.open(tmp_path, fingerprint="h") as ledger:
        assert ledger.proposals == (one, two)


def test_a_run_knows_its_own_generations_and_completions(tmp_path: Path) -> None:
    prompt = ProposalRecord(key="a", program="Predict", state={}, by="one", parents=[], read=[])
    empty, full, last = (GenerationRecord(generation=i, proposals=[], parents=[]) for i in range(3))
    full = replace(full, proposals=["a"], parents=[[0, 1]])
    mine, theirs = (CompletionRecord(prompt="p", query="q", draw=i, first=i, text="") for i in range(2))
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert ledger.generations == {} and ledger.own == {}
        ledger.extend([empty, mine, prompt, full, last])
    with Ledger.open(tmp_path, fingerprint="g") as ledger:
        assert ledger.generations == {} and ledger.own == {} and ledger.known == {("p", "q"): [0]}
        ledger.extend([replace(prompt, by="other"), theirs])
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        # nothing was drawn after the last one, which brought nothing: it is asked for again
        assert ledger.generations == {0: empty, 1: full}
        assert ledger.proposal("a") == prompt
        assert ledger.own == {("p", "q"): [0]} and ledger.stored == {("p", "q"): [0, 1]}


def test_the_unit_of_costs_is_that_of_the_students_lms(tmp_path: Path) -> None:
    def begun(fingerprint: str, **about: str) -> Ledger:
        return Ledger.open(tmp_path, fingerprint=fingerprint, settings={"about": about})

    with begun("f", unit_lms="small") as ledger:
        ledger.append(UnitRecord(cost=2.0, queries=1))
    for fingerprint, about, known in (("g", "small", True), ("h", "large", False)):
        with begun(fingerprint, unit_lms=about) as ledger:
            assert (ledger.unit is not None, ledger.has_unit) == (known, known)
    with begun("of an older version") as ledger:
        assert ledger.has_unit
