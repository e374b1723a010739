"""People and loggers see how a run goes on."""

from __future__ import annotations

import dataclasses
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, CompiledProgram, Execution, MajorityVote
from iapo_dspy.errors import ConfigurationError, TooManyErrors
from iapo_dspy.events import (
    Event,
    LeadingArm,
    PolicyChosen,
    Progress,
    PromptsProposed,
    RoundEnded,
    RunEnded,
    RunStarted,
)
from iapo_dspy.optimizer.watching.console import Console, lines_of, shortened
from iapo_dspy.optimizer.watching.watch import metrics_of
from iapo_dspy.proposers import Proposed
from iapo_dspy.sampling.spending.budget import Spent
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import CAREFUL, INSTRUCTIONS, QUICK, adder, exact, questions, student

ROOT = Path(__file__).resolve().parents[3]
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


def test_a_callback_ends_a_run_by_keyboard_interrupt_alone(caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []

    def enough(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.round == 2:
            raise KeyboardInterrupt

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)), pytest.raises(KeyboardInterrupt) as stop:
        optimizer(callbacks=[events.append, enough]).compile(student(), trainset=questions(20))
    assert len(of(RoundEnded, events)) == 2 and stop.value.__context__ is None
    assert isinstance(events[-1], RunEnded) and events[-1].status == "stopped"
    assert "Nothing has kept them: with log_dir=" in caplog.text


def test_a_function_of_progress_is_told_where_it_belongs_today() -> None:
    with pytest.warns(DeprecationWarning, match=r"Execution\(callbacks=\[function\]\) today") as found:
        IAPO(metric=exact, strategy=MajorityVote("answer"), execution=Execution(progress=print))
    assert found[0].filename == __file__


async def later(event: Event) -> None:
    """Would never be awaited."""


@pytest.mark.parametrize("wrong", [print, [3], [OSError], [later]], ids=["function", "number", "class", "async"])
def test_callbacks_are_a_list_of_functions(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="give a list of functions of one event"):
        Execution(callbacks=wrong)


def test_callbacks_of_a_run_are_not_those_of_dspy() -> None:
    """DSPy looks for its own on the optimizer, under the same name."""
    assert not hasattr(optimizer(callbacks=[print]), "callbacks")


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


def shown(handler: logging.Handler | None, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return what a console with this handler of the log writes to stdout and stderr."""
    log = logging.getLogger("iapo_dspy")
    level, propagate = log.level, log.propagate
    try:
        log.propagate = False
        if handler is not None:
            log.setLevel(logging.INFO)
            log.addHandler(handler)
        console = Console(shown=True)
        console.say("round 1")
        console.close()
    finally:
        log.setLevel(level)
        log.propagate = propagate
        if handler is not None:
            log.removeHandler(handler)
    out, err = capsys.readouterr()
    return out, err


def test_a_line_is_shown_once_whether_the_log_shows_it_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(None, capsys) == ("", "round 1\n")  # without a terminal there is not a bar
    assert shown(logging.StreamHandler(), capsys) == ("", "round 1\n")
    file = logging.FileHandler(tmp_path / "log.txt")
    assert shown(file, capsys) == ("", "round 1\n")
    file.close()
    assert (tmp_path / "log.txt").read_text() == "round 1\n"
    quiet = logging.StreamHandler()
    quiet.setLevel(logging.WARNING)
    assert shown(quiet, capsys) == ("", "round 1\n")


def test_nothing_is_shown_where_nobody_wants_it(capsys: pytest.CaptureFixture[str]) -> None:
    Console(shown=False).say("round 1")
    assert capsys.readouterr() == ("", "")


LEADER = LeadingArm(preference="quality", prompt=3, label="Think.", n=4, utility=0.5, standard_error=float("nan"))


def test_a_round_is_one_line() -> None:
    spent = Spent(completions=1_200, usd=0.5)
    event = RoundEnded(
        round=2, rounds=5, prompts=1, leaders=(LEADER,), completions=100, restored=0, spent=spent,
        completions_left=300, usd_left=1.5, seconds=60.0, seconds_left=75.4,
    )  # fmt: skip
    assert lines_of(event) == [
        "round 2 of about 5: 1 prompt | best utility: quality 0.500 (prompt 3, N=4) | 1,200 completions, 300 left "
        "| $0.50, $1.50 left | at most 1:15 left"
    ]
    unknown = dataclasses.replace(
        event, rounds=None, leaders=(), completions_left=None, usd_left=None, seconds_left=None, spent=Spent()
    )
    assert lines_of(unknown) == ["round 2: 1 prompt | 0 completions"]
    many = dataclasses.replace(event, leaders=(LEADER,) * 6)
    assert ", and 2 preferences more |" in lines_of(many)[0]
    assert lines_of(dataclasses.replace(event, restored=100)) == []
    nothing = dataclasses.replace(LEADER, utility=float("nan"), standard_error=0.1, preference="thrifty")
    (line,) = lines_of(PolicyChosen(arms=(nothing,), measured=(False,)))
    assert line == 'chosen for thrifty unknown (prompt 3, N=4), not measured: "Think."'
    several = dataclasses.replace(LEADER, words="2 of prompt 3; 4 of prompt 1 instead where not all 2 agree")
    (line,) = lines_of(PolicyChosen(arms=(several,), measured=(True,)))
    assert line == f'chosen for quality 0.500 ({several.words}): "Think."'


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_terminal_has_the_lines_above_a_bar_that_is_closed() -> None:
    """In a terminal of its own: what is left on the screen is each line once, and the bar as it was last."""
    script = """
from iapo_dspy.events import Progress
from iapo_dspy.optimizer.watching.console import Console
from iapo_dspy.sampling.spending.budget import Spent
console = Console(shown=True)
console.say("before")
for n in (40, 100):
    console(Progress(completions=n, budget=200, failed=0, spent=Spent(completions=n), restored=20))
    console.say(f"round {n}")
console.close()
console.say("after")
"""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    screen, other = os.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    try:
        subprocess.run([sys.executable, "-c", script], check=True, stderr=other, cwd=ROOT)
        os.close(other)
        raw = os.read(screen, 65_536).decode()
    finally:
        os.close(screen)
    rows = [row.split("\r")[-1].rstrip() for row in raw.replace("\r\n", "\n").split("\n")[:-1]]
    assert [row for row in rows if row and not row.startswith("IAPO")] == ["before", "round 40", "round 100", "after"]
    bars = [row for row in rows if row.startswith("IAPO")]
    assert len(bars) == 1 and "100/200" in bars[0] and rows.index(bars[0]) == len(rows) - 2
