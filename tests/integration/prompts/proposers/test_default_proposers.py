"""The default proposers through LiteLLM: what reaches the server, and what they make of answers as LMs write them."""

import json
from dataclasses import replace
from typing import Any

import dspy
import pytest

from iapo_dspy.prompts.proposers.metered_writing import MeteredWriting
from iapo_dspy.proposers import (
    Aim,
    Demos,
    Grounded,
    ProposalEvidence,
    Proposer,
    Reflective,
    default_proposers,
)
from iapo_dspy.sampling.ledger.ledger import NullLedger
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.loopback import Loopback, chat
from tests.support.worlds import outputs
from tests.support.writing import evidence_of, failed, known, tried, votes

MIX = default_proposers()
EACH: list[Proposer] = list({type(p).__name__: p for p in (*MIX.opening, *MIX.proposers)}.values())
CALLS = {"Gradients": 2, "Pairwise": 2, "Demos": 0}  # for a candidate; 1 for others
TEXT = "Add the tens first, then the ones.\nGive the sum alone."
FORMS = {  # of the answer to a request for this field
    "announced": lambda field: f"Sure! Here is the improved instruction:\n\n{TEXT}",
    "marked": lambda field: chat(**{field: TEXT}),
    "fenced": lambda field: chat(**{field: f"```text\n{TEXT}\n```"}),
    "json": lambda field: json.dumps({field: TEXT}),
    "unfinished": lambda field: f"[[ ## {field} ## ]]\n{TEXT}",
}
PROMPTS = (
    known(0, "Add up.", {0: votes("0", 3, a=1), 1: votes("2", 4), 2: votes("4", 1, b=3), 3: votes(c=4)}),
    known(1, "Think.", {0: votes(d=4), 1: votes("2", 3), 2: votes("4", 4), 3: votes("6", 3)}, utility=(0.6,)),
)


def asked(evidence: ProposalEvidence, proposer: Proposer, server: Loopback, n: int = 1) -> tuple[list[Any], list[str]]:
    """Return the candidates, and the texts that the server has read for them."""
    before = server.requests
    sampler = Sampler()
    found = MeteredWriting(server.lm(max_tokens=400), sampler, NullLedger()).propose(proposer, evidence, n)
    assert sampler.meter.spent.writer_requests == server.requests - before
    return [p.candidate for p in found], [body["messages"][-1]["content"] for body in server.bodies[before:]]


@pytest.mark.parametrize("form", ["announced", *(pytest.param(f, marks=pytest.mark.slow) for f in [*FORMS][1:])])
def test_each_makes_a_candidate_of_answers_as_they_come(form: str) -> None:
    def answer(body: dict[str, Any], i: int) -> str:
        field = outputs(body)[0]
        if field in ("verdict", "critique"):
            return "Y. It names the carry, and X does not."
        return FORMS[form](field)

    with Loopback(answer) as server:
        for proposer in EACH:
            name = type(proposer).__name__
            found, texts = asked(evidence_of(*PROMPTS), proposer, server)
            assert len(texts) == CALLS.get(name, 1), name
            if isinstance(proposer, Demos):
                assert isinstance(found[0], dspy.Predict) and 0 < len(found[0].demos) <= 3
            else:
                assert found == [{"self": TEXT}], name


def test_the_whole_mix_takes_turns_and_writes_different_candidates() -> None:
    with Loopback(lambda body, i: chat(**{outputs(body)[0]: f"X. Way {i} of adding."})) as server:
        fresh = evidence_of(known(0, "Add up.", utility=(float("nan"),)), generation=0)
        opening, texts = asked(fresh, default_proposers(), server, 4)
        assert len(texts) == 4 and len({repr(c) for c in opening}) == 4
        found, texts = asked(evidence_of(*PROMPTS), default_proposers(), server, 10)
        assert len({repr(c) for c in found}) == len(found) == 10
        reflective = [text for text in texts if "[[ ## observations ## ]]" in text and "critique" not in text]
        assert len(reflective) >= 5  # half of them, and what others have left


def test_reflection_is_told_what_became_of_each_question() -> None:
    won = [tried("2", 1.0, tokens=10), tried("2", 1.0, tokens=30), tried("3", 0.0, 1)]
    wrong = tried("5", 0.0, 1, output={"answer": "5"}, feedback="You forgot the carry.")
    lost = [tried("4", 1.0, tokens=12), wrong, wrong, tried("7", 0.0, 2)]
    never = [tried("8", 0.0, 0), tried("8", 0.0, 0), tried("9", 0.0, 1)]
    broken = [failed("AdapterParseError: no field answer"), failed("AdapterParseError: no field answer")]
    evidence = evidence_of(known(0, "Add up.", {1: won, 2: lost, 3: never, 4: broken}))
    with Loopback(lambda body, i: chat(instruction=TEXT)) as server:
        _, (text,) = asked(evidence, Reflective(), server)
    for words in (
        'The right answer "4" came once and was outvoted by "5", which came 2 times. Other wrong answers: "7" once.',
        "The metric said of it: You forgot the carry.",
        '3 completions were drawn. The right answer never came. Wrong answers: "8" 2 times, "9" once.',
        'The right answer won: "2" came 2 times. Wrong answers: "3" once. Mean length: 17 tokens.',
        "2 completions were drawn. None of them gave an answer.",
        "2 times a completion failed: AdapterParseError: no field answer.",
        "question: 2 + 2",
        "expected answer: 4",
        "[[ ## current_instruction ## ]]\nAdd up.",
    ):
        assert words in text, words


def test_reflection_asks_for_what_the_preference_and_the_strategy_want() -> None:
    aim = Aim(preference="p", context=0, cost=0.0, parent=0, n=8)
    scored = known(0, "Add up.", {0: [tried("0", 0.2, -1), tried("1", 0.9, -1)]})
    evidences = {
        "quality": evidence_of(PROMPTS[0], aims=(aim,)),
        "thrift": evidence_of(PROMPTS[0], aims=(replace(aim, cost=1.0),)),
        "single": evidence_of(PROMPTS[0], aims=(replace(aim, n=1),)),
        "best": evidence_of(scored, aims=(aim,), aggregate="best", field=None),
    }
    with Loopback(lambda body, i: chat(instruction=TEXT)) as server:
        texts = {name: asked(evidence, Reflective(), server)[1][0] for name, evidence in evidences.items()}
    uses = {name: text.partition("[[ ## use ## ]]")[2].partition("[[ ##")[0] for name, text in texts.items()}
    assert len(set(uses.values())) == 4
    assert "8 completions are drawn, and the answer that comes most often is returned" in uses["quality"]
    assert "Mistakes should be scattered" in uses["quality"] and "shorter" not in uses["quality"]
    assert "shorter than now, if that keeps the result" in uses["thrift"]
    assert "one completion is drawn" in uses["single"] and "short instruction" in uses["single"]
    assert "the completions vary" in uses["best"] and "only the best of them is used" in uses["best"]
    assert "Scores from 0 to 1: best 0.90, mean 0.55, worst 0.20." in texts["best"]


def test_the_grounded_one_is_told_of_the_data_and_dspy_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(lambda body, i: chat(proposed_instruction=TEXT)) as server:
        _, (text,) = asked(evidence_of(*PROMPTS), Grounded(examples=2), server)
    assert text.count("question: ") == 2 and "Add up." in text and not caplog.records
