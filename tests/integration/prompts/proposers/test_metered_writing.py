"""Writers' calls against a real server: counted, capped, found again, and never the end of a run."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import Budget, metered
from iapo_dspy.prompts.proposers.metered_writing import MeteredWriting, earlier_proposals
from iapo_dspy.proposers import (
    Demos,
    Mix,
    ProposalEvidence,
    Proposed,
    Proposer,
    Reflective,
    default_proposers,
)
from iapo_dspy.sampling.ledger.ledger import Ledger, LedgerPort, NullLedger
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter, Spent
from tests.support.loopback import Faults, Loopback, chat
from tests.support.writing import evidence_of, known, votes

PROMPTS = (known(0, "Add up.", {0: votes("0", 1, w1=3), 1: votes("2", 4)}), known(1, "Add.", {0: votes("0", 4)}))


class Asks:
    """A proposer that asks its writer some times, one after the other."""

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.asked = 0
        self.ended = threading.Event()

    def propose(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        try:
            for i in range(self.times):
                self.asked += 1
                text = dspy.Predict("number -> instruction")(number=f"{evidence.generation}.{i}").instruction
                yield Proposed(candidate={"self": text}, by="asks")
        finally:
            self.ended.set()


def writer(body: dict[str, Any], i: int) -> str:
    """Write another instruction each time."""
    return chat(instruction=f"Way {i}.", verdict="X. Better.", critique="It is vague.", proposed_instruction=f"So {i}.")


def write(
    server: Loopback,
    *proposers: Proposer,
    budget: Budget | None = None,
    ledger: LedgerPort | None = None,
    timeout: float = 600.0,
    patience: float = 0.0,
    n: Sequence[int] = (4, 4, 4, 4),
    **settings: Any,
) -> tuple[list[list[Proposed]], Spent, Sampler]:
    """Have each proposer write candidates, in a generation of its own; return them, and what was spent."""
    sampler = Sampler(meter=Meter(budget), outage_patience=patience)
    lm = server.lm(**{"num_retries": 0, "max_tokens": 50, **settings})
    writing = MeteredWriting(lm, sampler, ledger or NullLedger(), timeout=timeout)
    found = [
        writing.propose(proposer, evidence_of(*PROMPTS, generation=i), n[i - 1])
        for i, proposer in enumerate(proposers, 1)
    ]
    return found, sampler.meter.spent, sampler


def texts(found: Sequence[Proposed]) -> list[Any]:
    return [p.candidate["self"] if isinstance(p.candidate, dict) else list(map(dict, p.candidate.demos)) for p in found]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("cache", [False, True])
def test_calls_are_counted_apart_and_a_run_that_starts_again_repeats_none(tmp_path: Path, cache: bool) -> None:
    mixes = [default_proposers(), default_proposers()]
    with Loopback(writer) as server:
        with Ledger.open(tmp_path, fingerprint="run") as ledger:
            found, spent, _ = write(server, *mixes, ledger=ledger, cache=cache)
        assert len(found[0]) == 4 and len(found[1]) >= 3
        assert spent.writer_requests == spent.requests == server.requests > 4
        assert spent.writer_tokens == spent.tokens == server.prompt_tokens + server.completion_tokens
        assert spent.judge_requests == spent.completions == 0
        asked = server.requests
        with Ledger.open(tmp_path, fingerprint="run") as ledger:
            again, spent, _ = write(server, *mixes, ledger=ledger, cache=cache)
            larger, more, _ = write(server, *mixes, Asks(), ledger=ledger, cache=cache)
        assert [texts(f) for f in again] == [texts(f) for f in found] == [texts(f) for f in larger[:2]]
        assert server.requests == asked + 1 and spent.requests == 0 and more.writer_requests == 1


def test_what_was_written_is_known_to_later_runs_with_its_parents(tmp_path: Path) -> None:
    with Loopback(writer) as server, Ledger.open(tmp_path, fingerprint="one") as ledger:
        ((one,), (demos, child)), _, sampler = write(
            server, Reflective(), Mix(proposers=[Demos(), Reflective()]), ledger=ledger, n=(1, 2)
        )
        newer = known(2, one.candidate["self"], {0: votes("0", 1, w1=3)})
        aims = (replace(evidence_of(*PROMPTS).aims[0], parent=2),)
        writing = MeteredWriting(server.lm(), sampler, ledger)
        base = server.base
        (grandchild,) = writing.propose(Reflective(), evidence_of(*PROMPTS, newer, aims=aims, generation=3), 1)
    student = evidence_of(*PROMPTS).student
    with Ledger.open(tmp_path, fingerprint="one") as ledger, Loopback(writer) as server:
        assert earlier_proposals(ledger.proposals, [student]) == []  # it goes on as it began
        write(server, Reflective(), ledger=ledger, n=(1,), api_base=base)  # and keeps nothing twice
    with Ledger.open(tmp_path, fingerprint="two") as ledger:
        (record, *_), programs = ledger.proposals, [student, PROMPTS[0].program]
        assert (record.by, record.generation, record.preference) == ("reflective", 1, "quality")
        found = earlier_proposals(ledger.proposals, programs)
        assert [p.by for p in found] == ["reflective", "demos", "reflective", "reflective"]
        assert [found[i].candidate for i in (0, 2, 3)] == [one.candidate, child.candidate, grandchild.candidate]
        assert isinstance(found[1].candidate, dspy.Predict) and isinstance(demos.candidate, dspy.Predict)
        assert found[1].candidate.signature.instructions == "Add up."
        assert [dict(d) for d in found[1].candidate.demos] == [dict(d) for d in demos.candidate.demos] != []
        assert [p.parents for p in found] == [(1,), (1,), (1,), (2,)]  # the third one is the first proposal
        assert [p.parents for p in earlier_proposals(ledger.proposals, [student])] == [(), (), (), (1,)]
        known_already = known(0, one.candidate["self"]).program
        assert len(earlier_proposals(ledger.proposals, [student, known_already])) == 3
        assert earlier_proposals(ledger.proposals, [dspy.Predict("question -> number")]) == []
        assert earlier_proposals(ledger.proposals, [dspy.ChainOfThought("question -> answer")]) == []


def test_a_generation_that_failed_is_asked_for_again_until_something_is_drawn(tmp_path: Path) -> None:
    def written(server: Loopback) -> list[str]:
        with Ledger.open(tmp_path, fingerprint="run") as ledger:
            (found,), *_ = write(server, Asks(), ledger=ledger)
            return texts(found)

    refusing, working = Loopback(writer, faults=Faults(shares={401: 1.0})), Loopback(writer)
    with refusing, working:
        assert written(refusing) == []
        assert written(working) == ["Way 0."] and working.requests == 1
        assert written(refusing) == ["Way 0."]
    with Ledger.open(tmp_path, fingerprint="run") as ledger:
        assert ledger.generations[1].proposals and ledger.generations[1].parents == [[]]


def test_a_budget_ends_the_writing_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(writer) as server:
        found, spent, _ = write(server, Asks(9), default_proposers(), Asks(), budget=Budget(tokens=4_000))
        assert spent.tokens <= 1_000 and spent.writer_tokens == server.prompt_tokens + server.completion_tokens
    assert 0 < len(found[0]) < 9 and found[1:] == [[], []]
    (said,) = warned(caplog)
    assert said.startswith("The budget does not pay for more prompts to be written (Up to ")
    assert "goes on with the prompts that it has" in said


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("", "empty"), ("Add up.", "known"), ("x" * 100_000, "long"), ('{"a": [', "JSON"), ("???", "no words")],
)
def test_nonsense_is_told_once(answer: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(lambda body, i: answer) as server:
        prompts = [p for p in PROMPTS if kind != "known"] or [known(0, "Add up.")]
        sampler = Sampler()
        writing = MeteredWriting(server.lm(), sampler, NullLedger())
        for generation in range(2):
            assert writing.propose(default_proposers(), evidence_of(*prompts, generation=generation), 2) == []
    (said,) = warned(caplog)
    assert "hold no instruction that the run does not have" in said and "prompt_model=" in said and len(said) < 400


def test_a_wrong_key_is_told_once_and_asked_no_further(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(writer, api_key="sk-another-key") as server:
        found, spent, _ = write(server, Asks(), Asks(), default_proposers())
        assert found == [[], [], []] and server.requests == spent.writer_requests == 1
    (said,) = warned(caplog)
    assert "openai/fake cannot write prompts (LMRefused: A provider refuses every call of the proposers" in said
    assert "sk-loopback" not in said


@pytest.mark.slow
def test_a_writer_that_is_down_is_no_outage_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(writer, faults=Faults(shares={503: 1.0})) as server:
        found, _, sampler = write(server, Asks(), Asks())
    assert found == [[], []] and sampler.outage is None
    (said,) = warned(caplog)
    assert "cannot write prompts (ProviderDown" in said and "prompt_model=" in said


def test_a_writer_that_hangs_is_cut_off_and_spends_nothing_later(caplog: pytest.LogCaptureFixture) -> None:
    hangs = Asks(5)
    with Loopback(writer, latency=20.0) as server:
        began = time.monotonic()
        found, spent, sampler = write(server, hangs, budget=Budget(tokens=10_000), timeout=0.5)
        assert time.monotonic() - began < 8 and found == [[]]
        assert hangs.ended.wait(5) and server.requests == hangs.asked == spent.writer_requests == 1
        assert spent.writer_tokens > 50  # the call that was cut off may be billed
        assert sampler.meter.reserved == Spent()
    (said,) = warned(caplog)
    assert "Asks is left out from now on: it did not end within 0.5 seconds" in said


def test_a_proposer_that_goes_on_after_its_time_asks_for_nothing() -> None:
    go_on, errors = threading.Event(), []

    class Late:
        def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
            go_on.wait(20)
            for _ in range(3):
                try:
                    dspy.Predict("number -> instruction")(number="1")
                except Exception as error:  # noqa: BLE001 - as careless code does
                    errors.append(str(error))
            return []

    with Loopback(writer) as server:
        found, _, _ = write(server, Late(), Asks(), timeout=0.2)
        go_on.set()
        end = time.monotonic() + 10
        while len(errors) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        assert len(found[1]) == 1 and server.requests == 1
    assert errors == ["The writing of this generation is over."] * 3


def test_the_seconds_of_the_budget_hold_for_proposers_that_hang_themselves(caplog: pytest.LogCaptureFixture) -> None:
    end = threading.Event()

    class Hangs:
        def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
            end.wait(30)
            return []

    with Loopback(writer) as server:
        began = time.monotonic()
        found, _, _ = write(server, Hangs(), budget=Budget(10, seconds=0.5))
    end.set()
    assert found == [[]] and time.monotonic() - began < 10
    assert warned(caplog) == ["The proposer Hangs was left out: the seconds of the budget for writing are over."]


def test_errors_of_a_proposer_and_of_single_calls_are_told(caplog: pytest.LogCaptureFixture) -> None:
    class Raises:
        def propose(self, evidence: ProposalEvidence, n: int) -> Any:
            raise {1: ValueError("sk-abcdefgh1"), 2: SystemExit(3)}[evidence.generation]

    raises = Raises()
    with Loopback(writer, faults=Faults(first=[400])) as server:
        found, _, _ = write(server, raises, raises, Asks(), Asks())
        assert found[:3] == [[], [], []] and len(found[3]) == 1
    said = warned(caplog)
    assert said[:2] == [
        "The proposer Raises was left out (ValueError: [secret]).",
        "The proposer Raises was left out (CodeExited: SystemExit: 3).",
    ]
    assert len(said) == 3 and "Asks was left out" in said[2] and "BadRequestError" in said[2]


@pytest.mark.parametrize("held", [lambda lm: lm, metered], ids=["bare", "metered"])
def test_an_lm_that_a_proposer_holds_itself_is_metered_by_a_wrapper(
    held: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Own:
        def __init__(self, lm: Any) -> None:
            self.lm = lm

        def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
            text = dspy.Predict("number -> instruction")(number="1", lm=self.lm).instruction
            return [Proposed(candidate={"self": text}, by="own")]

    with Loopback(writer) as server, Loopback(writer) as other:
        found, spent, _ = write(server, Own(held(other.lm())))
        assert texts(found[0]) == ["Way 0."] and other.requests == 1
    assert spent.writer_requests == (held is metered)
    assert [text[:21] for text in warned(caplog)] == ["A proposer calls the "] * (held is not metered)


def test_ctrl_c_ends_the_writing_at_once() -> None:
    with Loopback(writer, latency=20.0) as server:
        began = time.monotonic()
        timer = threading.Timer(0.5, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            write(server, Asks(), timeout=30)
        timer.join()
        assert time.monotonic() - began < 10 and server.requests == 1
