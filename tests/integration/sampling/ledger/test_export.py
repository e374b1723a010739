"""Ledgers of real runs as tables and as recorded environments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import dspy
import numpy as np
import pytest
from click.testing import CliRunner, Result

from iapo_dspy import BestOfN, Budget, Objective, Preference
from iapo_dspy.command_line.main import iapo
from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recording import BestOfRecording, VotingRecording
from iapo_dspy.errors import ConfigurationError, LedgerError
from iapo_dspy.ledger import export, recording_of
from iapo_dspy.sampling.ledger.export import Places
from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.reading import contents_of, read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord, ScoreRecord
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback
from tests.support.worlds import CAREFUL, INSTRUCTIONS, adder, brevity, checked, questions


def run_of(log_dir: Path) -> str:
    found = contents_of(log_dir).run
    assert found is not None
    return found.fingerprint


ROOT = Path(__file__).parents[4]


def run(log_dir: Path, *, n_queries: int = 3, budget: int = 600, garbage: float = 0.0, **kwargs: Any) -> Any:
    """A run that asks every prompt every query many times."""
    optimizer = optimizers(preferences=[Preference("quality", cost=0.0), Preference("thrifty", cost=3.0)])
    with Loopback(adder, faults=Faults(shares={"garbage": garbage})) as server, dspy.context(lm=server.lm(seed=1)):
        compiler = optimizer(**kwargs, budget=Budget(budget), log_dir=log_dir)
        return compiler.compile(dspy.Predict("question -> answer"), trainset=questions(n_queries)).detailed_results


def test_one_row_per_completion_with_its_score(tmp_path: Path) -> None:
    results = run(tmp_path / "run", garbage=0.1)
    rows = export(tmp_path / "run", tmp_path / "all.parquet")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "all.parquet"), cache_dir=str(tmp_path))["train"]
    assert rows == len(table) == results.spent.completions - 3  # without those that measure the student
    assert len({(r["prompt"], r["query"], r["draw"]) for r in table}) == rows
    failed = 0
    for row in table:
        assert row["label"] == INSTRUCTIONS[row["prompt"]] and row["scored"] and row["completion_tokens"] > 0
        if row["failure"] is not None:
            failed += 1
            assert row["scores"] is None and row["fields"] is None and row["answer"] is None and not row["error"]
            continue
        example = questions(3)[row["query"]]
        right = json.loads(row["fields"])["answer"] == example.answer
        assert row["scores"] == [float(right)] and (row["answer"] == example.answer) == right
    assert failed == results.failures.total > 0


def test_an_interrupted_run_can_be_exported_but_not_replayed(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "ledger.jsonl"
    lines = path.read_text().splitlines(True)
    scores = [i for i, line in enumerate(lines) if '"kind":"score"' in line]
    path.write_text("".join(line for i, line in enumerate(lines) if i not in scores[-3:]))
    with Ledger.open(tmp_path / "run", fingerprint=run_of(tmp_path / "run")):
        rows = export(tmp_path / "run", tmp_path / "part.parquet")  # while another process has the lock
    table = datasets.Dataset.from_parquet(str(tmp_path / "part.parquet"), cache_dir=str(tmp_path))
    assert len(table) == rows and sum(not scored for scored in table["scored"]) == 3
    with pytest.raises(LedgerError, match=r"3 completions .* never scored"):
        recording_of(tmp_path / "run")


def test_a_recording_has_the_shares_of_the_answers(tmp_path: Path) -> None:
    run(tmp_path / "run", garbage=0.1)
    recording = recording_of(tmp_path / "run")
    assert isinstance(recording, VotingRecording)
    assert (recording.n_prompts, recording.n_queries) == (3, 3)
    assert recording.cost.mean() == pytest.approx(0.01) and recording.cost[2] > 2 * recording.cost[0]
    assert recording.cost_weights.tolist() == [0.0, 3.0]
    _, records = read_ledger(tmp_path / "run")
    drawn: Counter[tuple[int, int]] = Counter()
    right: Counter[tuple[int, int]] = Counter()
    voted: Counter[tuple[int, int]] = Counter()
    scores = {r.key: r for r in records if isinstance(r, ScoreRecord)}
    places = Places.of(contents_of(tmp_path / "run"))
    for r in records:
        if isinstance(r, CompletionRecord) and places.prompts[r.prompt] < 3:
            score, cell = scores.get(r.key), (places.prompts[r.prompt], places.queries[r.query])
            drawn[cell] += 1
            voted[cell] += r.fields is not None
            right[cell] += score is not None and list(score.scores or ()) == [1.0]
    for p, x in drawn:
        assert recording.probs[p, x].sum() == pytest.approx(voted[p, x] / drawn[p, x])
        assert (recording.probs[p, x] * recording.scores[x]).sum() == pytest.approx(right[p, x] / drawn[p, x])
    assert any(voted[cell] < drawn[cell] for cell in drawn)

    save(recording, tmp_path / "run.parquet")
    again = load(tmp_path / "run.parquet")
    assert np.allclose(again.exact(4).q(), recording.exact(4).q())
    best = again.exact(4).q()[0].argmax()
    assert INSTRUCTIONS[best // 4] == CAREFUL


@pytest.mark.slow
def test_best_of_n_keeps_every_completion(tmp_path: Path) -> None:
    strategy = BestOfN([Objective("right", checked), Objective("short", brevity)])
    preferences = [Preference("right", weights={"right": 1.0}), Preference("both", cost=2.0)]
    run(tmp_path / "run", strategy=strategy, metric=None, preferences=preferences, garbage=0.1)
    recording = recording_of(tmp_path / "run", cost_scale=0.5)
    assert isinstance(recording, BestOfRecording)
    assert recording.weights.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 2.0]]
    _, records = read_ledger(tmp_path / "run")
    completions = [r for r in records if isinstance(r, CompletionRecord)]
    places = Places.of(contents_of(tmp_path / "run"))
    scores = {r.key: r for r in records if isinstance(r, ScoreRecord)}
    for p in range(3):
        for x in range(3):
            mine = [r for r in completions if (places.prompts[r.prompt], places.queries[r.query]) == (p, x)]
            cell = [scores.get(r.key) for r in mine]
            sums = np.sum([s.scores for s in cell if s is not None and s.scores is not None], axis=0)
            assert np.allclose((recording.outcomes[p, x] * recording.probs[p, x][:, None]).sum(0), sums / len(cell))
    assert recording.probs.sum() < 9  # failures are missing probability
    assert recording.cost.mean() > 1  # half a point a token
    assert recording.cost == pytest.approx(
        [
            np.mean([r.usage.completion_tokens for r in completions if places.prompts[r.prompt] == p]) * 0.5
            for p in range(3)
        ]
    )


def test_missing_cells_are_named_with_the_way_out(tmp_path: Path) -> None:
    run(tmp_path / "run", n_queries=40, budget=300)
    with pytest.raises(ConfigurationError, match=r"of 120 \(prompt, query\) cells.*common_queries=True"):
        recording_of(tmp_path / "run")
    common = recording_of(tmp_path / "run", common_queries=True)
    assert common.n_prompts == 3 and 0 < common.n_queries < 40
    one = recording_of(tmp_path / "run", prompts=[2], common_queries=True)
    assert one.n_prompts == 1 and one.n_queries >= common.n_queries
    for prompts in ([], [3], [-1], [0, 0]):
        with pytest.raises(ConfigurationError, match="different indices below 3"):
            recording_of(tmp_path / "run", prompts=prompts)


def test_a_query_that_was_never_asked_is_missing_too(tmp_path: Path) -> None:
    run(tmp_path / "run", n_queries=3)
    path = tmp_path / "run" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"n_queries":3', '"n_queries":4'))
    with pytest.raises(ConfigurationError, match="3 of 12"):
        recording_of(tmp_path / "run")


def test_ledgers_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger at"):
        export(tmp_path, tmp_path / "x.parquet")
    with Ledger.open(tmp_path, fingerprint="f"):
        pass
    assert export(tmp_path, tmp_path / "x.parquet") == 0
    with pytest.raises(LedgerError, match="does not say"):
        recording_of(tmp_path)
    with pytest.raises(ConfigurationError, match=r"ends in \.parquet"):
        export(tmp_path, tmp_path / "x.csv")


def test_the_command_line(tmp_path: Path) -> None:
    run(tmp_path / "run")
    log_dir = str(tmp_path / "run")

    def asked(*arguments: str) -> Result:
        return CliRunner().invoke(iapo, arguments)

    rows = export(log_dir, tmp_path / "a.parquet")
    done = asked("export", log_dir, str(tmp_path / "b.parquet"))
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'b.parquet'}: {rows} completions\n")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    done = asked("record", log_dir, str(tmp_path / "a.npz"), "--prompts", "2", "0", "--common-queries")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'a.npz'}: 2 prompts, 3 queries\n")
    kept = load(tmp_path / "a.npz")
    assert asked("record", "--prompts", "2", "--prompts", "0", log_dir, str(tmp_path / "b.npz")).exit_code == 0
    assert kept.n_prompts == load(tmp_path / "b.npz").n_prompts == 2
    refused = asked("record", log_dir, str(tmp_path / "a.txt"))
    assert refused.exit_code == 2 and refused.stderr.startswith("Error: Cannot write a.txt")


def test_the_package_does_not_import_datasets() -> None:
    code = "import sys; from iapo_dspy import IAPO; sys.exit('datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
