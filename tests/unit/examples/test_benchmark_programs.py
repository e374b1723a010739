"""Saved programs stay small."""

import json
from pathlib import Path
from typing import Any

import benchmark_programs


def saved(completions: int, folder: Path) -> dict[str, Any]:
    program = benchmark_programs.compiled(completions, n_prompts=4, n_queries=30, max_n=8)
    program.save(folder / "program.json")
    state: dict[str, Any] = json.loads((folder / "program.json").read_text())["policy"]
    return state


def test_evidence_takes_few_bytes_per_completion_and_results_none(tmp_path: Path) -> None:
    few, many = saved(500, tmp_path), saved(4_000, tmp_path)
    assert many["spent"]["completions"] == 4_000
    assert len(many["evidence"]) - len(few["evidence"]) < 20 * 3_500  # tokens and seconds are noise: 13 or so
    small, large = (len(json.dumps(state["results"])) for state in (few, many))
    assert abs(large - small) < 0.1 * small < 1_500
