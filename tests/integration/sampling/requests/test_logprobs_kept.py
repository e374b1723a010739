"""Logprobs go from the answer of a server to the ledger, the evidence and the saved program; others have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import CompiledProgram
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import Around, adder, questions, student

optimizer = optimizers(max_n=2, budget=60)


def logprobs_of(body: dict[str, Any], text: str) -> list[float]:
    return [-0.5, -1.5] if "1" in text else [-0.25]


@pytest.mark.parametrize("module", [student, Around])
def test_logprobs_are_kept_and_read_again(tmp_path: Path, module: Any) -> None:
    with Loopback(adder, logprobs=logprobs_of) as server:
        with dspy.context(lm=server.lm(seed=3, logprobs=True)):
            program = optimizer(log_dir=tmp_path / "run").compile(module(), trainset=questions(10))
            asked = server.requests
            again = optimizer(log_dir=tmp_path / "run").compile(module(), trainset=questions(10))
            assert server.requests == asked
        program.save(tmp_path / "program.json")
    evidence = program.policy.ready.evidence
    for o in evidence:
        assert o.logprob is not None and set(np.unique(o.logprob)) <= {-1.0, -0.25}
    for one, two in zip(evidence, again.policy.ready.evidence, strict=True):
        np.testing.assert_array_equal(one.logprobs, two.logprobs)
    loaded = CompiledProgram(module())
    loaded.load(tmp_path / "program.json")
    for one, two in zip(evidence, loaded.policy.ready.evidence, strict=True):
        np.testing.assert_array_equal(one.logprobs, two.logprobs)
    lines = [json.loads(line) for path in (tmp_path / "run").rglob("*.jsonl") for line in path.read_text().splitlines()]
    drawn = [line for line in lines if line.get("kind") == "completion"]
    assert {line["logprob"] for line in drawn} == {-1.0, -0.25}


def test_without_logprobs_nothing_is_kept(tmp_path: Path) -> None:
    with Loopback(adder, logprobs=logprobs_of) as server, dspy.context(lm=server.lm(seed=3)):
        program = optimizer(log_dir=tmp_path).compile(student(), trainset=questions(10))
    assert all(o.logprob is None for o in program.policy.ready.evidence)
    assert not any("logprob" in path.read_text() for path in tmp_path.rglob("*.jsonl"))
