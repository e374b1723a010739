"""Runs that are started again while their writer answers otherwise: the same draws, and never more than the budget."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import MajorityVote, Preference
from iapo_dspy.proposers import Demos, Mix, Paraphrase, ProposalEvidence, Proposed
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord, GenerationRecord
from tests.support.compiling import iapo
from tests.support.killing import Victim, write_once
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import CAREFUL, LAZY, QUICK, adder, exact, outputs, questions, student

BUDGET = 100
TEXTS = (CAREFUL, QUICK, "Add.", "Do it well.", "Hurry up.")


@pytest.fixture
def server() -> Iterator[Loopback]:
    """A provider of the task, which counts the completions of all starts together."""
    with Loopback(adder) as found:
        with dspy.context(lm=found.lm(seed=1)):
            yield found


def other_texts() -> Callable[[dict[str, Any], int], str]:
    """Return a writer that says something else each time, whatever it is asked."""
    count = itertools.count()

    def answer(body: dict[str, Any], i: int) -> str:
        number = next(count)
        text = f"Way {number}: {TEXTS[number % len(TEXTS)]}"
        return chat(**{name: text if "instruction" in name else "Nothing." for name in outputs(body)})

    return answer


def compiled(writer: Loopback, log_dir: Path, **own: Any) -> Any:
    """Start a run; the writer has a key of its own, which does not name it."""
    settings: dict[str, Any] = {
        "metric": exact,
        "strategy": MajorityVote("answer"),
        "preferences": [Preference("quality", cost=0.0), Preference("thrifty", cost=30.0)],
        "max_n": 4,
        "budget": BUDGET,
        "candidates": [LAZY, "Guess."],
        "prompt_model": writer.lm("openai/writer", num_retries=0),
        "log_dir": log_dir,
        "progress": False,
    }
    return iapo(**(settings | own)).compile(student(), trainset=questions(12)).detailed_results


@pytest.mark.slow
def test_a_writer_that_failed_first_is_not_asked_again(
    server: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Loopback(other_texts(), faults=Faults(shares={401: 1.0})) as refusing, Loopback(other_texts()) as working:
        first = compiled(refusing, tmp_path)
        drawn, asked = server.completions, server.requests
        with caplog.at_level(logging.WARNING):
            again = compiled(working, tmp_path)
        assert refusing.requests > 0 and working.requests == 0 and server.requests == asked
        assert str(again) == str(first) and again.spent.completions == first.spent.completions == drawn <= BUDGET
        assert again.written == {} and "brought no prompt when this run was started before" in caplog.text
        # what the message says: another run has prompts written, and what is paid for is used again
        more = compiled(working, tmp_path, budget=2 * BUDGET)
        assert more.written and more.spent.completions <= 2 * BUDGET and drawn < server.completions


@pytest.mark.slow
def test_a_writer_that_answers_otherwise_later_changes_nothing(server: Loopback, tmp_path: Path) -> None:
    with Loopback(other_texts()) as one, Loopback(other_texts()) as other:
        first = compiled(one, tmp_path, proposers=Mix(proposers=[Demos(), Paraphrase()], opening=[Paraphrase()]))
        asked = server.requests
        again = compiled(other, tmp_path, proposers=Mix(proposers=[Demos(), Paraphrase()], opening=[Paraphrase()]))
        assert one.requests > 0 and other.requests == 0 and server.requests == asked
        assert str(again) == str(first) and again.written == first.written
        assert {w.by for w in first.written.values()} == {"demos", "paraphrase"}  # programs as well as texts
        assert server.completions == again.spent.completions <= BUDGET


class Random:
    """A proposer without an LM that says something else at each start."""

    count = itertools.count()

    def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
        return [Proposed(candidate={"self": f"Number {next(self.count)}. {CAREFUL}"}, by="Random") for _ in range(n)]


@pytest.mark.slow
def test_a_proposer_that_is_not_deterministic_is_asked_once(server: Loopback, tmp_path: Path) -> None:
    first = compiled(server, tmp_path, proposers=Random())
    asked, said = server.requests, next(Random.count)
    again = compiled(server, tmp_path, proposers=Random())
    assert server.requests == asked and next(Random.count) == said + 1
    assert again.labels == first.labels and str(again) == str(first) and len(first.labels) > 2


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_writes_goes_on_within_its_budget(server: Loopback, tmp_path: Path) -> None:
    log_dir, result = tmp_path / "run", tmp_path / "result.json"
    with Loopback(other_texts(), latency=lambda body: 60.0 if second.requests > 10 else 0.0) as second:
        lms = [{"api_base": s.base, "api_key": "x", "cache": False, "num_retries": 0} for s in (server, second)]
        victim = Victim(lms[0] | {"seed": 1}, lms[1], str(log_dir), str(result), target=write_once)
        end = time.monotonic() + 60
        while second.requests <= 10 and victim.alive and time.monotonic() < end:
            time.sleep(0.02)
        assert victim.alive and second.requests > 10
        victim.kill()
        _, records = read_ledger(log_dir)
        assert len([r for r in records if isinstance(r, GenerationRecord)]) == 1  # the second was on its way
        before, asked = server.completions, second.requests
        second.latency = 0.0
        assert Victim(lms[0] | {"seed": 1}, lms[1], str(log_dir), str(result), target=write_once).wait() == 0
        assert second.requests > asked and server.completions > before
        assert json.loads(result.read_text()) == server.completions <= 150


@pytest.mark.slow
def test_draws_that_are_not_repeated_count(server: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of an earlier version a ledger does not say what its generations were: its run may draw for other prompts."""
    with Loopback(other_texts()) as one, Loopback(other_texts()) as other:
        compiled(one, tmp_path)
        path = tmp_path / "ledger.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        kinds = [json.loads(line)["kind"] for line in lines]
        kept = [line for kind, line in zip(kinds, lines, strict=True) if kind not in ("generation", "verdict")]
        path.write_text("".join(line.replace(',"more":true', "") for line in kept))
        other.answer = lambda body, i: chat(**dict.fromkeys(outputs(body), f"Else {i}."))
        drawn = server.completions
        again = compiled(other, tmp_path)
        assert other.requests > 0 and again.written
        assert drawn <= server.completions == again.spent.completions <= BUDGET
    _, records = read_ledger(tmp_path)
    assert len([r for r in records if isinstance(r, CompletionRecord)]) == server.completions
