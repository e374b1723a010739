"""The conformance check of proposers passes those that keep the rules, and names the rule that others break."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import dspy
import pytest

from iapo_dspy import metered
from iapo_dspy.proposers import ProposalEvidence, Proposed, Proposer, default_proposers
from iapo_dspy.testing import check_proposer
from tests.support.writing import evidence_of, known, votes

MIX = default_proposers()
EACH: list[Proposer] = [*{type(p).__name__: p for p in (*MIX.opening, *MIX.proposers)}.values()]


@pytest.mark.parametrize(
    "proposer", [MIX, *(pytest.param(p, marks=pytest.mark.slow) for p in EACH)], ids=lambda p: type(p).__name__
)
def test_the_packages_own_keep_the_rules(proposer: Proposer) -> None:
    one, other = known(0, "Add up.", {0: votes("0", 1, a=3), 1: votes("2", 4)}), known(1, "Think.", {0: votes("0", 2)})
    thinks = replace(one, program=dspy.ChainOfThought(dspy.Signature("question -> answer", "Think.")))
    check_proposer(proposer, [evidence_of(one), evidence_of(thinks, other)])


class Asks:
    """Yields one instruction that its LM writes."""

    def __init__(self, lm: Any = None) -> None:
        self.lm = lm
        self.calls = 0

    def ask(self, number: int = 0) -> str:
        self.calls += 1
        return str(
            dspy.Predict("number -> instruction")(number=str(number), lm=self.lm or dspy.settings.lm).instruction
        )

    def propose(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        if text := self.ask().strip()[:100]:
            yield Proposed(candidate={"self": text}, by="asks")


def test_one_of_the_users_own_keeps_them_too() -> None:
    check_proposer(Asks())
    check_proposer(Asks(metered(dspy.LM("openai/another"))))


class Many(Asks):
    def propose(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        for i in range(n + 1):
            yield Proposed(candidate={"self": f"Way {i}."}, by="many")


class Raw(Asks):
    def propose(self, evidence: ProposalEvidence, n: int) -> Any:
        return [Proposed(candidate={"self": dspy.settings.lm("Write.")[0]}, by="raw")]


class Remembers(Asks):
    def propose(self, evidence: ProposalEvidence, n: int) -> Any:
        return [Proposed(candidate={"self": self.ask(self.calls)[:100] or "Add."}, by="remembers")]


class Random(Asks):
    def propose(self, evidence: ProposalEvidence, n: int) -> Any:
        self.calls += 1
        return [Proposed(candidate={"self": f"Way {self.calls}."}, by="random")]


class Changes(Asks):
    def propose(self, evidence: ProposalEvidence, n: int) -> Any:
        evidence.prompts[0].program.demos = [*evidence.prompts[0].program.demos, dspy.Example(question="1", answer="1")]
        return []


class Needs(Asks):
    def propose(self, evidence: ProposalEvidence, n: int) -> Any:
        return [Proposed(candidate={"self": evidence.prompts[0].tries[0][0].answer or "Add."}, by="needs")]


class Insists(Asks):
    def propose(self, evidence: ProposalEvidence, n: int) -> Any:
        while True:
            try:
                return [Proposed(candidate={"self": self.ask()[:100] or "Add."}, by="insists")]
            except Exception:  # noqa: BLE001 - this is what must not be done
                continue


@pytest.mark.parametrize(
    ("proposer", "words"),
    [
        (Many(), "Many returns 3 candidates where two are asked for (a vote)"),
        (Raw(), "Raw proposes what cannot be used (a vote, odd answers): the instruction of 'self' is not a text, or"),
        (Remembers(), "Remembers asks differently for equal evidence (a vote)"),
        (Random(), "Random proposes differently for equal evidence (a vote)"),
        (Changes(), "Changes changes the evidence (a vote)"),
        (Needs(), "Needs fails (before any completion): KeyError"),
        (Insists(), "Insists makes more than 100 calls for two candidates (a vote, odd answers)"),
        (object(), "object has no method propose"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_broken_rule_is_named(proposer: Any, words: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_proposer(proposer, timeout=2.0)
    assert words in str(error.value)


def test_an_lm_that_no_run_counts_is_named() -> None:
    with pytest.raises(AssertionError, match=r"Asks asks openai/other, which a run does not count"):
        check_proposer(Asks(dspy.LM("openai/other", api_base="http://127.0.0.1:9", api_key="none", num_retries=0)))
