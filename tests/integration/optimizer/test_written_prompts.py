"""Runs that write their prompts, against servers on loopback that count what they are asked."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, Budget, CompiledProgram, MajorityVote, Preference
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.optimizer.settings import LEVELS
from iapo_dspy.prompts.proposers.mix import default_proposers
from iapo_dspy.prompts.proposers.port import ProposalEvidence, Proposed
from iapo_dspy.sampling.ledger.digests import query_id
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.sampling.ledger.records import CompletionRecord
from tests.support.compiling import iapo
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import CAREFUL, LAZY, QUICK, adder, exact, outputs, questions, student

TEXTS = (LAZY, QUICK, CAREFUL, "Say something.", "Do it well.", "Hurry up.", "Think of a number.", "Add.")
PREFERENCES = [Preference("quality", cost=0.0), Preference("thrifty", cost=30.0)]


def world(body: dict[str, Any], i: int) -> str:
    """Answer sums, and write instructions where a field of the answer is to hold one."""
    names = outputs(body)
    if names == ["answer"]:
        return adder(body, i)
    # The same request gets the same text, so that a run that is started again is seen to ask nothing.
    at = sum(map(ord, str(body["messages"]) + str(body.get("seed"))))
    return chat(**{name: TEXTS[at % len(TEXTS)] if "instruction" in name else "Nothing." for name in names})


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(world) as found:
        with dspy.context(lm=found.lm(seed=1)):
            yield found


def optimizer(**own: Any) -> IAPO:
    common: dict[str, Any] = {
        "metric": exact,
        "strategy": MajorityVote("answer"),
        "preferences": PREFERENCES,
        "max_n": 4,
        "budget": 400,
        "progress": False,
    }
    return iapo(**(common | own))


def asked_for(found: Loopback, *, writers: bool) -> list[dict[str, Any]]:
    return [body for body in found.bodies if (outputs(body) != ["answer"]) is writers]


def texts(program: CompiledProgram) -> set[str]:
    return {p.instructions for arm in program.arms for _, q in arm.named_predictors() for p in [q.signature]}


def test_nothing_but_a_metric_a_strategy_and_a_trainset_is_needed(server: Loopback) -> None:
    program = optimizer().compile(student(), trainset=questions(40))
    found = program.detailed_results
    assert texts(program) <= {CAREFUL, QUICK} and CAREFUL in texts(program)
    writers = asked_for(server, writers=True)
    assert 0 < len(writers) == found.spent.writer_requests and found.spent.completions <= 400
    assert {b["model"] for b in server.bodies} == {"fake"}  # the student's LM writes
    assert {w.generation for w in found.written.values()} <= set(range(4)) and 0 not in found.written
    assert all(max(w.parents, default=0) < p for p, w in found.written.items())
    assert all(row.gain is not None and row.gain.confirmed for row in found.policy)
    assert "on" in str(found) and "that no writer has read" in str(found)


@pytest.mark.slow
def test_written_prompts_and_confirmed_gains_are_saved(server: Loopback, tmp_path: Path) -> None:
    program = optimizer(budget=200).compile(student(), trainset=questions(20))
    program.save(tmp_path / "program.json")
    loaded = CompiledProgram(student())
    loaded.load(tmp_path / "program.json")
    before, after = program.detailed_results, loaded.detailed_results
    assert after.written == before.written != {}
    assert str(after) == str(before)


@pytest.mark.slow
def test_a_prompt_model_writes_also_beside_given_candidates(server: Loopback) -> None:
    with Loopback(world) as other:
        made = optimizer(prompt_model=other.lm("openai/writer"), candidates=[LAZY, QUICK])
        found = made.compile(student(), trainset=questions(20)).detailed_results
        assert not asked_for(server, writers=True) and not asked_for(other, writers=False)
        assert 0 < other.requests == found.spent.writer_requests
        assert found.labels[:2] == (LAZY, QUICK) and min(found.written) == 2


@pytest.mark.slow
def test_a_run_that_is_started_again_asks_nobody(server: Loopback, tmp_path: Path) -> None:
    made = optimizer(log_dir=tmp_path, budget=200)
    first = made.compile(student(), trainset=questions(20))
    asked = server.requests
    again = made.compile(student(), trainset=questions(20))
    assert server.requests == asked
    assert str(again.detailed_results) == str(first.detailed_results)
    assert again.detailed_results.spent.writer_requests == first.detailed_results.spent.writer_requests > 0


@pytest.mark.slow
def test_a_run_that_goes_on_knows_the_prompts_that_were_written(
    server: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = optimizer(log_dir=tmp_path, budget=150).compile(student(), trainset=questions(20)).detailed_results
    asked = server.completions - first.spent.writer_requests
    with caplog.at_level(logging.INFO):
        more = optimizer(log_dir=tmp_path, budget=250).compile(student(), trainset=questions(20)).detailed_results
    restored = re.search(r"restored (\d+) of 250 completions", caplog.text)
    unit = 16  # completions at most that measured the student only
    assert restored is not None and int(restored[1]) >= first.spent.completions - unit
    assert set(first.labels) <= set(more.labels)
    earlier = {more.labels[p] for p, w in more.written.items() if w.generation == -1}
    assert earlier == {first.labels[p] for p in first.written}
    drawn = server.completions - asked - first.spent.writer_requests - more.spent.writer_requests
    assert drawn <= 250 - first.spent.completions
    quote = optimizer(log_dir=tmp_path, budget=250).quote(student(), trainset=questions(20))
    assert quote.left is not None and quote.left.completions is not None
    assert quote.left.completions <= 250 - more.spent.completions + unit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "faults"),
    [
        (lambda body, i: chat(answer="what?"), Faults()),
        (lambda body, i: "", Faults()),
        (lambda body, i: '{"instruction": [1, 2, {', Faults()),
        (lambda body, i: "x " * 100_000, Faults()),
        (world, Faults(shares={400: 1.0})),
        (world, Faults(shares={401: 1.0})),
    ],
    ids=["other fields", "empty", "half of JSON", "long", "refuses", "wrong key"],
)
def test_a_writer_that_does_not_work_ends_nothing(
    server: Loopback, writer: Any, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    with Loopback(writer, faults=faults) as other:
        made = optimizer(prompt_model=other.lm("openai/writer", num_retries=0), budget=200, candidates=[LAZY, QUICK])
        with caplog.at_level(logging.WARNING):
            program = made.compile(student(), trainset=questions(20))
    found = program.detailed_results
    assert found.complete and found.spent.completions > 150
    assert texts(program) == {QUICK}
    assert found.spent.writer_requests == other.requests > 0


@pytest.mark.slow
def test_a_writer_that_hangs_is_left_alone(server: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(world, latency=60.0) as other:
        lm = other.lm("openai/writer")
        made = optimizer(
            prompt_model=lm, proposers=default_proposers(timeout=0.3), budget=200, candidates=[LAZY, QUICK]
        )
        start = time.monotonic()
        program = made.compile(student(), trainset=questions(20))
        assert time.monotonic() - start < 30.0 and texts(program) == {QUICK}
    assert "did not end within 0.3 seconds" in caplog.text


class Listed:
    """Proposes these instructions, some in each generation."""

    def __init__(self, *batches: Sequence[str]) -> None:
        self.batches = list(batches)
        self.seen: list[ProposalEvidence] = []

    def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
        self.seen.append(evidence)
        found = self.batches.pop(0)[:n] if self.batches else []
        parent = evidence.prompts[evidence.aims[0].parent].index
        return [Proposed(candidate={"self": text}, by="Listed", parents=(parent,)) for text in found]


@pytest.mark.slow
def test_proposers_see_what_was_drawn_and_read_a_quarter_of_the_questions(server: Loopback) -> None:
    proposer = Listed([QUICK], [CAREFUL])
    program = optimizer(proposers=proposer).compile(student(), trainset=questions(40))
    first, second = proposer.seen[:2]
    assert not any(p.tries for p in first.prompts) and len(first.examples) == len(second.examples) == 10
    quick = next(p for p in second.prompts if p.by == "Listed")
    for at, tries in quick.tries.items():
        even = int(second.examples[at].answer) % 2 == 0
        assert {t.score for t in tries} == {float(even)} and {t.label for t in tries} == {tries[0].label}
    assert quick.parents == (0,) and quick.utility[0] > second.prompts[-1].utility[0]
    assert program.detailed_results.written[1].generation == 0 and texts(program) <= {QUICK, CAREFUL}


@pytest.mark.slow
def test_a_prompt_that_knows_its_writers_questions_is_not_taken(server: Loopback) -> None:
    """It is right on the questions that were read and on no other; the given one on every sixth."""

    class Cheat:
        def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
            known = "; ".join(example.question for example in evidence.examples)
            return [Proposed(candidate={"self": f"Remember {known}."}, by="Cheat")]

    def answers(body: dict[str, Any], i: int) -> str:
        system, asked = body["messages"][0]["content"], body["messages"][-1]["content"]
        question = asked.split("[[ ## question ## ]]\n")[1].split("\n")[0]
        a, b = map(int, question.split(" + "))
        right = f" {question};" in f"{system};".replace(".", ";") if "Remember" in system else (a + b) % 18 == 1
        return chat(answer=str(a + b if right else i))

    server.answer = answers
    program = optimizer(proposers=Cheat(), candidates=["Guess."], budget=600).compile(student(), trainset=questions(40))
    found = program.detailed_results
    gains = [row.gain for row in found.policy if row.gain is not None]
    assert texts(program) == {"Guess."} and len(gains) == 2
    assert all(g.gain > 0.02 and g.left < 0 and not g.confirmed for g in gains)
    assert "the given one is taken" in str(found)
    assert {b.estimate.arm.prompt for row in found.policy for b in row.baselines} == {0}

    later = program.solve(Preference(cost=5.0))
    assert later.prompt == 0  # what was not confirmed is not chosen by the stored evidence either


class Copies(Listed):
    """Proposes programs as they are."""

    def __init__(self, *programs: dspy.Module) -> None:
        super().__init__()
        self.programs = programs

    def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
        return [Proposed(candidate=program, by="Copies") for program in self.programs]


@pytest.mark.slow
def test_a_prompt_that_was_written_asks_the_lm_that_its_parent_brought(server: Loopback) -> None:
    with Loopback(world) as other:
        own = student()
        own.set_lm(other.lm("openai/own", seed=1))
        made = optimizer(candidates=[own], proposers=Listed([CAREFUL, QUICK]), budget=100)
        program = made.compile(student(), trainset=questions(20))
        assert len(program.detailed_results.labels) == 3 and set(program.detailed_results.models) == {"openai/own"}
        assert other.completions >= 90 and {b["model"] for b in other.bodies} == {"own"}


@pytest.mark.slow
def test_programs_of_unknown_classes_are_dropped(server: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    odd = Copies(dspy.Predict("question -> wrong"), dspy.Predict("question, context -> answer"))
    found = optimizer(proposers=odd, budget=60).compile(student(), trainset=questions(20)).detailed_results
    assert found.written == {} and found.complete and "its class is not that of the student" in caplog.text


@pytest.mark.slow
def test_questions_that_earlier_writers_read_confirm_nothing(server: Loopback, tmp_path: Path) -> None:
    first, second = Listed([CAREFUL]), Listed()
    optimizer(proposers=first, log_dir=tmp_path, budget=100).compile(student(), trainset=questions(40))
    again = optimizer(proposers=second, log_dir=tmp_path, budget=200, seed=1)
    found = again.compile(student(), trainset=questions(40)).detailed_results
    read = {e.question for evidence in (*first.seen, *second.seen) for e in evidence.examples}
    assert len(read) > 10  # the second run's writers may read others
    gains = [row.gain for row in found.policy if row.gain is not None]
    assert gains and all(gain.queries <= 40 - len(read) for gain in gains)


@pytest.mark.slow
@pytest.mark.parametrize("again", ["writes", "is given the prompt", "is given others"])
def test_nothing_is_measured_on_questions_that_the_writers_of_its_prompts_have_read(
    server: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture, again: str
) -> None:
    first, known_questions = Listed([CAREFUL]), questions(20)
    optimizer(proposers=first, log_dir=tmp_path, budget=60).compile(student(), trainset=known_questions)
    read = {e.question for e in first.seen[0].examples}
    assert len(read) == 5
    own: dict[str, dict[str, Any]] = {
        "writes": {"proposers": Listed()},
        "is given the prompt": {"candidates": [QUICK, CAREFUL]},
        "is given others": {"candidates": [QUICK, LAZY]},
    }
    found = optimizer(log_dir=tmp_path, budget=100, **own[again]).compile(
        student(), trainset=questions(10, start=30), valset=known_questions
    )
    clean = again == "is given others"
    assert ("5 of the 20 examples of the valset were read" in caplog.text) is not clean
    asked = {e.question for e in known_questions} - (set() if clean else read)
    contents = contents_of(tmp_path)
    fingerprint = contents.run.fingerprint if contents.run is not None else ""
    here = {query_id(e) for e in known_questions if e.question in asked}
    drawn = {r.query for r in contents.own(CompletionRecord, fingerprint)} - {
        query_id(e) for e in questions(10, start=30)
    }
    assert drawn and drawn <= here
    assert all(row.held_out is not None for row in found.detailed_results.policy)


@pytest.mark.slow
def test_writers_are_held_by_the_budget(server: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    long = lambda body, i: world(body, i) if outputs(body) == ["answer"] else "word " * 3_000  # noqa: E731
    server.answer = long
    with dspy.context(lm=server.lm(seed=1, max_tokens=4_000)):
        made = optimizer(budget=Budget(200, tokens=30_000))
        found = made.compile(student(), trainset=questions(20)).detailed_results
    assert 0 < found.spent.writer_tokens <= 7_500 and found.spent.tokens <= 30_000  # a quarter at most is for writers
    assert "does not pay for more prompts to be written" in caplog.text and found.spent.completions > 50


@pytest.mark.slow
def test_a_quote_foresees_the_writers(server: Loopback) -> None:
    made = optimizer(budget=200)
    quote = made.quote(student(), trainset=questions(20), output_tokens=5)
    assert server.requests == 0 and quote.writers is not None and quote.expected is not None
    found = made.compile(student(), trainset=questions(20)).detailed_results
    assert quote.writers.each[:, 0].sum() / 2 <= found.spent.writer_requests <= quote.writers.each[:, 0].sum()
    assert "writing prompts" in str(quote)
    assert made.quote(student(), trainset=questions(20), candidates=[LAZY]).writers is None


def test_levels_and_what_does_not_go_together() -> None:
    assert optimizer(budget=None, max_n=None, auto="medium").settings.budget == Budget(5_000)
    light = IAPO(metric=exact, strategy=MajorityVote("answer")).settings
    assert (light.budget.completions, light.max_n, light.generations) == (1_500, 8, 2)
    assert [level.completions for level in LEVELS.values()] == [1_500, 5_000, 20_000]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"auto": "light"}, "give one of them"),
        ({"auto": "best", "budget": None}, "'light', 'medium', 'heavy'"),
        ({"prompt_model": "gpt-4o"}, "give a dspy.LM"),
        ({"proposers": []}, "propose"),
        ({"proposers": Listed}, "propose"),
    ]
    for wrong, message in refused:
        with pytest.raises(ConfigurationError, match=message):
            optimizer(**wrong)


def test_only_the_default_algorithm_takes_prompts_that_come_later(server: Loopback) -> None:
    with pytest.raises(ConfigurationError, match="algorithm='auto'"):
        optimizer(algorithm="psst").compile(student(), trainset=questions(20))
    assert not server.requests
