"""Ledgers and saved programs of version 0.1 still load, resume and answer alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import LedgerMismatch
from iapo_dspy.program.evidence.columns import unpacked
from iapo_dspy.program.policy import VERSION
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
    """Compare JSON data; numbers may differ in their last digits, which depend on the version of NumPy."""
    if isinstance(wanted, Mapping):
        assert isinstance(found, Mapping) and found.keys() == wanted.keys(), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted), where
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    else:
        assert found == (pytest.approx(wanted, rel=1e-6, abs=1e-9) if isinstance(wanted, float) else wanted), where


REPORTED_ANEW = ("choice", "held_out", "utility", "reward")


def as_found(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the utilities that are shown for the policy: that version took them from what it had chosen by."""
    rows = [{k: v for k, v in row.items() if k not in REPORTED_ANEW} for row in facts["policy"]]
    return {**facts, "policy": rows}


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


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_read_from_its_ledger(name: str, tmp_path: Path) -> None:
    ledger(name, tmp_path)
    with server_of(name) as server:
        program = compiled(CASES[name], server.base, tmp_path)
        assert not server.requests and not server.jobs.calls
    assert_same(as_found(found_by(program)), as_found(expected(name)["found"]))


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_asks_for_what_is_missing_only(name: str, tmp_path: Path) -> None:
    ledger(name, tmp_path, stopped=True)
    resumed = expected(name)["resumed"]
    with server_of(name) as server:
        program = compiled(CASES[name], server.base, tmp_path)
        assert (server.requests, server.completions) == (resumed["requests"], resumed["completions"])
        assert_same(as_found(found_by(program)), as_found(expected(name)["found"]))
        compiled(CASES[name], server.base, tmp_path)
        assert server.requests == resumed["requests"], "what was drawn now is in the ledger too"


@pytest.mark.parametrize("name", RUNS)
def test_a_ledger_is_exported_as_it_was(name: str, tmp_path: Path) -> None:
    assert_same(exported(ledger(name, tmp_path)), expected(name)["exported"])


def test_a_ledger_of_another_run_is_refused(tmp_path: Path) -> None:
    ledger("psst", tmp_path)
    with server_of("psst") as server, pytest.raises(LedgerMismatch):
        compiled(CASES["batch"], server.base, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_program_answers_as_it_did(name: str) -> None:
    case = CASES[name]
    with Loopback(world) as server, dspy.context(lm=lm(server.base)):
        program = load(case, FILES / name / "program.json", server.base)
        assert_same(as_answered(answered_by(case, program, server)), as_answered(expected(name)["answered"]))


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_program_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    program = load(CASES[name], FILES / name / "program.json", "http://127.0.0.1:9/v1")
    program.save(str(tmp_path / "again.json"))
    before, after = (json.loads(p.read_text()) for p in (FILES / name / "program.json", tmp_path / "again.json"))
    for part, state in after.items():
        if part.endswith("policy"):  # what later versions add
            state.pop("student")
            state.pop("objectives", None)
            assert state["version"] == VERSION
            state |= {"version": 4, "evidence": unpacked(state["evidence"])}
            for round_ in state["evidence"]:  # where a column of `once` is that of `used`, it is not repeated
                used, once = round_["used"], round_["once"]
                round_["once"] = {name: used[name] if text == "used" else text for name, text in once.items()}
    assert without_metadata(after) == without_metadata(before)


def without_metadata(state: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the versions of Python, DSPy and the like, which DSPy writes."""
    return {k: v for k, v in state.items() if k != "metadata"}
