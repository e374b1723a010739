"""What people and loggers see of a run while it goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import CompiledProgram, Proposed, TooManyErrors
from iapo_dspy.events import Event, PolicyChosen, Progress, PromptsProposed, RoundEnded, RunEnded, RunStarted
from iapo_dspy.optimizer.watching.console import shortened
from iapo_dspy.optimizer.watching.watch import metrics_of
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import CAREFUL, INSTRUCTIONS, QUICK, adder, questions, student

optimizer = optimizers(budget=200)


def compiled(server: Loopback, train: int = 20, **own: Any) -> tuple[CompiledProgram, list[Event]]:
    """Return a compiled program and the events of its run."""
    events: list[Event] = []
    with dspy.context(lm=server.lm(seed=3)):
        compiler = optimizer(callbacks=[events.append], **own)
        return compiler.compile(student(), trainset=questions(train)), events


def of(kind: Any, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_a_run_tells_its_start_rounds_policy_and_end(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(adder) as server, caplog.at_level(logging.INFO, logger="iapo_dspy"):
        program, events = compiled(server)
    result = program.detailed_results
    start, end = events[0], events[-1]
    assert isinstance(start, RunStarted) and isinstance(end, RunEnded)
    assert (start.preferences, start.prompts, start.examples, start.max_n) == (("quality", "thrifty"), 3, 20, 4)
    assert (start.completions, start.usd, start.restored, start.log_dir) == (200, None, 0, None)
    rounds = of(RoundEnded, events)
    assert [r.round for r in rounds] == list(range(1, len(rounds) + 1)) and len(rounds) > 1
    assert [r.completions for r in rounds] == [r.completions for r in result.rounds[: len(rounds)]]
    assert all(r.rounds is not None and r.rounds >= r.round for r in rounds) and rounds[-1].rounds == len(rounds)
    assert rounds[0].prompts == 3 and not any(r.restored for r in rounds)
    assert all(r.completions_left == 200 - r.spent.completions and r.seconds_left is not None for r in rounds)
    last = rounds[-1].leaders
    assert [arm.preference for arm in last] == ["quality", "thrifty"]
    assert [arm.label for arm in last] == [INSTRUCTIONS[arm.prompt] for arm in last]
    q = result.q
    assert [arm.utility for arm in last] == pytest.approx([q[c, a.prompt, a.n - 1] for c, a in enumerate(last)])
    (chosen,) = of(PolicyChosen, events)
    assert [(a.prompt, a.n) for a in chosen.arms] == [(row.arm.prompt, row.arm.n) for row in result.policy]
    assert [a.utility for a in chosen.arms] == [row.utility for row in result.policy]
    assert (end.status, end.error, end.summary) == ("finished", None, str(result))
    assert dict(end.metrics) == metrics_of(result) and end.spent.completions == result.spent.completions
    assert of(Progress, events)[-1].completions <= 200
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert lines[0] == "3 prompts, 20 examples, 2 preferences; at most 200 completions"
    assert sum(line.startswith("round ") for line in lines) == len(rounds)
    assert f"({arm_text(chosen.arms[0])})" in caplog.text and lines[-1].startswith("finished after 0:")


def arm_text(arm: Any) -> str:
    return f"prompt {arm.prompt}, N={arm.n}"


@pytest.mark.parametrize("algorithm", ["psst", "ucb"])
def test_every_algorithm_tells_its_rounds(algorithm: str) -> None:
    with Loopback(adder) as server:
        program, events = compiled(server, algorithm=algorithm)
    rounds = of(RoundEnded, events)
    assert len(rounds) > 1 and rounds[-1].spent.completions == program.detailed_results.spent.completions
    assert all(len(r.leaders) == 2 for r in rounds)


def test_a_run_that_is_restored_says_so_once_and_tells_no_old_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Loopback(adder) as server, caplog.at_level(logging.INFO, logger="iapo_dspy"):
        first, events = compiled(server, log_dir=tmp_path)
        caplog.clear()
        again, repeated = compiled(server, log_dir=tmp_path)
    assert again.detailed_results.policy == first.detailed_results.policy
    lines = [record.getMessage() for record in caplog.records]
    assert sum("restored" in line for line in lines) == 1 and not any(line.startswith("round") for line in lines)
    before, after = of(RoundEnded, events), of(RoundEnded, repeated)
    assert [r.leaders for r in after] == [r.leaders for r in before]
    assert [(r.restored, r.seconds_left) for r in after] == [(r.completions, None) for r in before]
    assert of(Progress, repeated)[-1].restored > 0 and repeated[0].restored > 0  # type: ignore[union-attr]


def test_a_callback_that_raises_is_told_of_once_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise SystemExit("full") if isinstance(event, RoundEnded) else OSError("the disk is full")

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        events: list[Event] = []
        program = optimizer(callbacks=[broken, events.append]).compile(student(), trainset=questions(20))
    assert program.detailed_results.spent.completions <= 200 and len(events) == len(calls)
    (warning,) = [record.getMessage() for record in caplog.records if "callback" in record.getMessage()]
    assert "broken failed at RunStarted, and the run goes on: OSError: the disk is full" in warning


def test_a_run_that_fails_tells_its_end() -> None:
    with Loopback(lambda body, i: "not a field") as server, dspy.context(lm=server.lm(num_retries=0)):
        events: list[Event] = []
        with pytest.raises(TooManyErrors) as error:
            optimizer(callbacks=[events.append]).compile(student(), trainset=questions(20))
    end = events[-1]
    assert isinstance(end, RunEnded) and (end.status, end.summary) == ("failed", "")
    assert end.error is not None and end.error.startswith(error.type.__name__)
    assert end.spent.requests > 0 and end.metrics["spent/requests"] == end.spent.requests


class _Writer:
    """Writes one instruction."""

    def propose(self, evidence: Any, n: int) -> Any:
        best = evidence.prompts[0].index
        return [Proposed(candidate={"self": f"{CAREFUL}\nAnd check."}, by="writer", parents=(best,))]


def test_written_prompts_are_told_with_their_texts_and_parents(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(adder) as server, caplog.at_level(logging.INFO, logger="iapo_dspy"):
        program, events = compiled(server, candidates=[QUICK, CAREFUL], proposers=_Writer(), budget=300)
    found = of(PromptsProposed, events)
    assert [f.generation for f in found] == list(range(1, len(found) + 1)) and not any(f.restored for f in found)
    (new,) = found[0].prompts
    assert (new.prompt, dict(new.texts), new.by) == (2, {"self": f"{CAREFUL}\nAnd check."}, "writer")
    assert new.parents == program.detailed_results.written[2].parents
    assert f'  prompt 2 by writer from {new.parents[0]}: "{CAREFUL} And check."' in caplog.text.replace("\n", " ")
    for event in found:
        assert all(0 <= p < 3 and wins > 0 for front in event.front.values() for p, wins in front.items())


def test_a_text_is_cut_to_one_line() -> None:
    assert shortened("a\n  b") == "a b" and shortened("x" * 9, most=8) == "xxxxx..."
