"""A full disk, or one that refuses: an error names the file, and no completion that was paid for is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import Budget
from iapo_dspy.errors import LedgerError, StorageError
from iapo_dspy.ledger import export
from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord, ScoreRecord
from tests.support.compiling import optimizers
from tests.support.full_disk import limit, nearly_full_disk
from tests.support.loopback import Loopback
from tests.support.worlds import Around, adder, questions, student

optimizer = optimizers(budget=Budget(120), num_threads=8, seed=3)


def completion(index: int, text: str = "t" * 100) -> CompletionRecord:
    return CompletionRecord(prompt="p", query="q", draw=index, first=0, text=text)


def drawn(log_dir: Path) -> list[CompletionRecord]:
    return [r for r in read_ledger(log_dir)[1] if isinstance(r, CompletionRecord)]


@pytest.mark.parametrize("room", [3000, 9000, 15_000])
@pytest.mark.parametrize("make", [student, pytest.param(Around, marks=pytest.mark.slow)])
def test_what_is_in_flight_when_the_disk_is_full_is_kept_and_paid_once(room: int, make: Any, tmp_path: Path) -> None:
    def run(server: Loopback, folder: str, **kwargs: Any) -> Any:
        with dspy.context(lm=server.lm(seed=1)):
            return optimizer(log_dir=tmp_path / folder, **kwargs).compile(make(), trainset=questions(6))

    with Loopback(adder, latency=0.02) as server:
        whole = run(server, "whole").detailed_results
        alone = server.completions
    with Loopback(adder, latency=0.02) as server:
        with nearly_full_disk(room), pytest.raises(StorageError, match="No space left") as caught:
            run(server, "run")
        message = str(caught.value)
        assert str(tmp_path / "run" / "ledger.jsonl") in message and "paid for before is in it" in message
        assert "Make room on that disk" in message
        paid = server.completions
        assert 0 < len(drawn(tmp_path / "run")) == paid < alone
        again = run(server, "run").detailed_results
        assert server.completions == alone  # nothing twice
    assert again.spent.completions == whole.spent.completions
    assert [r.arm for r in again.policy] == [r.arm for r in whole.policy]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["ledger.jsonl", "ledger.lock", "program.json"]


def test_a_write_that_fails_leaves_whole_records_only(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.append(completion(0))
        limit(ledger, 50)  # half a record
        ledger.append(completion(1))  # in the room that is kept for this
        assert ledger.full
        with pytest.raises(StorageError, match=r"ledger\.jsonl cannot be written: No space left on device"):
            ledger.check()
        with pytest.raises(StorageError, match="No space left"):
            ledger.append(completion(2, "t" * 3_000_000))  # more than that room
        with pytest.raises(StorageError):
            ledger.append(completion(3))  # half of the last one may be there, so nothing may follow it
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert ledger.stored == {("p", "q"): [0, 1]} and not ledger.full


def test_a_ledger_needs_its_spare_room_before_anything_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        with pytest.raises(StorageError, match=r"No space left.*Nothing was asked for or paid"):
            optimizer(log_dir=tmp_path).compile(student(), trainset=questions(3))
        assert server.requests == 0


@pytest.mark.parametrize("name", ["ledger.jsonl", "ledger.lock", "ledger.spare"])
def test_a_file_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()  # as good as no permission, for root too
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        with pytest.raises((StorageError, LedgerError), match=r"ledger\.jsonl"):
            optimizer(log_dir=tmp_path).compile(student(), trainset=questions(3))
        assert server.requests == 0


def test_a_disk_that_does_not_sync_is_an_error_of_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    ledger = Ledger.open(tmp_path, fingerprint="f")
    ledger.append(completion(0))
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match=r"ledger\.jsonl cannot be written: Input/output error"):
        ledger.flush()
    with pytest.raises(StorageError):
        ledger.close()
    monkeypatch.undo()
    with Ledger.open(tmp_path, fingerprint="f") as ledger:  # the lock was given back
        assert len(ledger.stored) == 1


def test_an_export_that_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "run", fingerprint="f") as ledger:
        ledger.extend([completion(0), ScoreRecord(key=completion(0).key, scores=[1.0])])
    assert export(tmp_path / "run", tmp_path / "a.parquet") == 1
    (tmp_path / "b.parquet").mkdir()
    for path in (tmp_path / "b.parquet", tmp_path / "none" / "a.parquet"):
        with pytest.raises(StorageError, match=r"\.parquet cannot be written.*The ledger is as it was"):
            export(tmp_path / "run", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "run"]
