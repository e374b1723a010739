"""Ledgers and saved programs of version 0.1 still load, resume and answer alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy.errors import LedgerMismatch
from iapo_dspy.program.evidence.columns import unpacked
from iapo_dspy.program.policy import VERSION
from iapo_dspy.sampling.ledger.reading import contents_of
from tests.fixtures.make_v0_1 import CASES, answered_by, compiled, exported, found_by, give_jobs, lm, load, world
from tests.support.loopback import Loopback

FILES = Path(__file__).parents[1] / "fixtures" / "v0_1"
# A ledger knows the code that scored by its bytecode. Another version of Python scores again, and asks judges again.
SAME_BYTECODE = sys.version_info[:2] == (3, 11)
RUNS = [name for name, c in CASES.items() if c.killed_after is not None and (name != "judged" or SAME_BYTECODE)]


def expected(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((FILES / name / "expected.json").read_text())
    return facts


def ledger(name: str, log_dir: Path, *, stopped: bool = False) -> Path:
    """Copy the ledger of a finished run, or of the killed one, to where a run finds it."""
    raw = (FILES / name / "ledger.jsonl").read_bytes()
    (log_dir / "ledger.jsonl").write_bytes(raw[: expected(name)["stopped_bytes"]] if stopped else raw)
    return log_dir


def server_of(name: str) -> Loopback:
    """Make the provider of a run; it knows the batch jobs that the run has submitted."""
    server, jobs = Loopback(world), FILES / name / "jobs.json"
    if jobs.exists():
        give_jobs(server, json.loads(jobs.read_text()))
    return server


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    """Compare JSON data; numbers may differ in their last digits, which depend on the version of NumPy.

    Newer versions may tell more.
    """
    if isinstance(wanted, Mapping):
        assert isinstance(found, Mapping) and found.keys() >= wanted.keys(), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted), where
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    else:
        assert found == (pytest.approx(wanted, rel=1e-6, abs=1e-9) if isinstance(wanted, float) else wanted), where


REPORTED_ANEW = ("choice", "held_out", "utility", "reward", "usd", "seconds", "baselines")


def as_found(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the utilities that are shown for the policy: that version took them from what it had chosen by.

    Also left out is what that version did not have: writers that took nothing, gains, dollars, seconds and baselines.
    """
    anew = (*REPORTED_ANEW, *("gain" for row in facts["policy"] if row.get("gain") is None))
    rows = [{k: v for k, v in row.items() if k not in anew} for row in facts["policy"]]
    spent = {k: v for k, v in facts["spent"].items() if v or not k.startswith("writer_")}
    return {**facts, "policy": rows, "spent": spent}


def as_answered(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out how sure a choice is, and what its utility is shown as, likewise.

    Arms that are solved anew are shown as what they do: a vote of two that its first completion settles is N=1.
    """
    settled = {"waves": [1, 2], "confidence": None, "threshold": None}
    explained = [[evidence, *others] for _, _, evidence, _, *others in facts["explained"]]
    solved = {
        name: [[arm[0], 1, None] if arm[1:] == [2, settled] else arm for arm in facts[name]]
        for name in ("unseen", "repriced")
        if name in facts
    }
    return {**facts, "explained": explained, **solved}


def is_default(name: str) -> bool:
    """Whether a run is one of the default algorithm, which asks for other pulls today."""
    return CASES[name].settings.get("algorithm", "auto") == "auto"


def chosen(facts: Mapping[str, Any]) -> list[Any]:
    return [(row["arm"]["prompt"], row["arm"]["n"]) for row in facts["policy"]]


def completions(log_dir: Path) -> int:
    return len(contents_of(log_dir).completions)


# The default algorithm's choices today, on the completions of that version, are that version's.
AGREE = ("vote", "best_of_n", "two_steps", "weighted_calibrated", "judged")
SEARCHED = ("combinations",)  # one predictor at a time, from the first instructions on: it starts anew


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_read_from_its_ledger(name: str, tmp_path: Path) -> None:
    ledger(name, tmp_path)
    wanted = expected(name)["found"]
    with server_of(name) as server:
        program = compiled(CASES[name], server.base, tmp_path)
        paid = server.requests
        assert name in SEARCHED or not (paid or server.jobs.calls)
        again = compiled(CASES[name], server.base, tmp_path)
        assert server.requests == paid
    found = found_by(program)
    assert_same(as_found(found_by(again)), as_found(found))
    assert found["spent"]["completions"] == wanted["spent"]["completions"]
    if not is_default(name):
        assert_same(as_found(found), as_found(wanted))
    elif name in AGREE:
        assert chosen(found) == chosen(wanted)
    assert (tmp_path / "ledger.v1.jsonl").read_bytes() == (FILES / name / "ledger.jsonl").read_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_asks_for_what_is_missing_only(name: str, tmp_path: Path) -> None:
    ledger(name, tmp_path, stopped=True)
    stored, resumed = completions(tmp_path), expected(name)["resumed"]
    with server_of(name) as server:
        program = compiled(CASES[name], server.base, tmp_path)
        spent, requests = program.detailed_results.spent.completions, server.requests
        assert stored < spent <= CASES[name].settings.get("budget", 30)
        if not is_default(name):
            assert (requests, server.completions) == (resumed["requests"], resumed["completions"])
        compiled(CASES[name], server.base, tmp_path)
        assert server.requests == requests, "what was drawn now is in the ledger too"
    assert completions(tmp_path) >= spent


@pytest.mark.parametrize("name", RUNS)
def test_a_ledger_is_exported_as_it_was(name: str, tmp_path: Path) -> None:
    found, wanted = exported(ledger(name, tmp_path)), expected(name)["exported"]
    assert found["rows"] == wanted["rows"]
    assert_same(found["recording"], wanted["recording"])
    gone = {"round", "position", "index"}
    assert set(found["columns"]) == set(wanted["columns"]) - gone | {"draw", "first"}
    last = {k: v for k, v in found["last"].items() if k not in ("draw", "first")}
    assert_same(last, {k: v for k, v in wanted["last"].items() if k not in gone})


def test_a_ledger_of_another_run_is_refused(tmp_path: Path) -> None:
    ledger("psst", tmp_path)
    with server_of("psst") as server, pytest.raises(LedgerMismatch):
        compiled(CASES["two_steps"], server.base, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_program_answers_as_it_did(name: str) -> None:
    case = CASES[name]
    with Loopback(world) as server, dspy.context(lm=lm(server.base)):
        program = load(case, FILES / name / "program.json", server.base)
        found, wanted = (as_answered(f) for f in (answered_by(case, program, server), expected(name)["answered"]))
    if is_default(name):  # what is not stored is solved by the model of today
        found, wanted = ({k: f[k] for k in ("arms", "models", "calls")} for f in (found, wanted))
    for call, then in zip(found["calls"], wanted["calls"], strict=True):  # equal completions of two waves: judged once
        assert call["requests"] <= then["requests"] and (name == "judged" or call["requests"] == then["requests"])
        call["requests"] = then["requests"]
    assert_same(found, wanted)


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_program_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    program = load(CASES[name], FILES / name / "program.json", "http://127.0.0.1:9/v1")
    program.save(str(tmp_path / "again.json"))
    before, after = (json.loads(p.read_text()) for p in (FILES / name / "program.json", tmp_path / "again.json"))
    for part, state in after.items():
        if part.endswith("policy"):  # what later versions add
            state.pop("student")
            state.pop("objectives", None)
            state.pop("plain_student", None)
            state.pop("compound", None)
            assert state["version"] == VERSION
            state |= {"version": 4, "evidence": unpacked(state["evidence"])}
            for round_ in state["evidence"]:  # where a column of `once` is that of `used`, it is not repeated
                used, once = round_["used"], round_["once"]
                round_["once"] = {name: used[name] if text == "used" else text for name, text in once.items()}
    assert without_metadata(after) == without_metadata(before)


def without_metadata(state: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the versions of Python, DSPy and the like, which DSPy writes."""
    return {k: v for k, v in state.items() if k != "metadata"}
