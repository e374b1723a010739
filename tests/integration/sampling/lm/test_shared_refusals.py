"""A query that the provider refuses is one failed completion; a model that is not there stops the run at once."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import ReplicatedLM
from iapo_dspy.errors import AllCompletionsFailed, LMRefused
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import adder, questions, student

optimizer = optimizers(budget=120)
REFUSALS = {
    404: "The resource was not found.",
    403: "Blocked by the gateway.",
    400: "Invalid model name passed in model=fake",
}


class Picky(Loopback):
    """Refuses every request that speaks of a word."""

    def __init__(self, status: int, word: str) -> None:
        super().__init__(adder, latency=0.01)  # so that the refusals come first
        self.status, self.word = status, word
        self.refused = 0

    def _respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: Any) -> None:
        if re.search(self.word, json.dumps(body)):
            with self._lock:
                self.refused += 1
            return self._error(handler, self.status, REFUSALS[self.status])
        super()._respond(handler, body, fault)


def _asked(train: list[dspy.Example]) -> str:
    """A pattern for the third question alone."""
    return re.escape(train[2].question) + r"(?!\d)"


@pytest.mark.parametrize(
    ("kind", "status"),
    [("n", 404), *(pytest.param(kind, s, marks=pytest.mark.slow) for kind in ("n", "replicas") for s in (403, 400))],
)
def test_one_query_that_is_refused_does_not_stop_the_run(kind: str, status: int, tmp_path: Path) -> None:
    train = questions(8)
    with Picky(status, _asked(train)) as server:
        lm = (
            ReplicatedLM("openai/fake", replicas=[server.base], api_key="k", num_retries=0)
            if kind == "replicas"
            else server.lm(num_retries=0)
        )
        with dspy.context(lm=lm):
            program = optimizer(log_dir=tmp_path).compile(student(), trainset=train)
            failures = program.detailed_results.failures
            assert server.refused > 0 and 0 < failures.errors == failures.total < failures.completions / 2
            with pytest.raises(AllCompletionsFailed):
                program(question=train[2].question)
            assert program(question=train[3].question).answer


@pytest.mark.slow
def test_a_run_that_goes_on_is_not_stopped_by_the_query_that_comes_first(tmp_path: Path) -> None:
    """After a kill, the completions that were lost are the first to be asked for again."""
    train = questions(8)
    with Picky(404, _asked(train)) as server, dspy.context(lm=server.lm(num_retries=0)):
        first = optimizer(log_dir=tmp_path).compile(student(), trainset=train)
        ledger = tmp_path / "ledger.jsonl"
        lines = [line for line in ledger.read_text(encoding="utf-8").splitlines() if '"finished":true' not in line]
        assert len(lines) < len(ledger.read_text(encoding="utf-8").splitlines())
        ledger.write_text("\n".join(lines) + "\n", encoding="utf-8")
        again = optimizer(log_dir=tmp_path).compile(student(), trainset=train)
    assert again.detailed_results.policy == first.detailed_results.policy


@pytest.mark.parametrize("status", list(REFUSALS))
def test_a_model_that_is_not_there_stops_at_once(status: int) -> None:
    with Picky(status, "") as server, dspy.context(lm=server.lm(num_retries=0)):
        with pytest.raises(LMRefused, match=re.escape(REFUSALS[status])):
            optimizer(num_threads=4, budget=400).compile(student(), trainset=questions(20))
        assert server.refused <= 12  # four at a time; it takes eight queries at most


@pytest.mark.slow
def test_a_model_that_is_taken_away_stops_the_run_soon() -> None:
    with Picky(404, "never") as server, dspy.context(lm=server.lm(num_retries=0)):

        def take_away(progress: Any) -> None:
            if progress.completions >= 60:
                server.word = ""

        with pytest.raises(LMRefused):
            optimizer(num_threads=4, budget=400, progress=take_away).compile(student(), trainset=questions(20))
        assert server.refused <= 40  # of some 170 requests; it takes eight of twenty queries


@pytest.mark.slow
def test_one_verdict_that_is_refused_does_not_stop_the_run() -> None:
    """A judge's request about one answer; a judge that is not there does."""

    def by_judge(example: Any, prediction: Any, trace: Any = None) -> float:
        verdict = dspy.settings.lm(f"JUDGE {prediction.answer} for {example.question}")
        return float(bool(verdict))

    train = questions(8)
    with Picky(404, "JUDGE .*" + _asked(train)) as server, dspy.context(lm=server.lm(num_retries=0)):
        program = optimizer(metric=by_judge).compile(student(), trainset=train)
        assert server.refused > 0 and program.detailed_results.failures.total < 60
        server.word = "JUDGE"
        with pytest.raises(LMRefused, match="every call of the metric"):
            optimizer(metric=by_judge, num_threads=4).compile(student(), trainset=train)
