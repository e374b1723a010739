"""Each proposer: what it asks, what it makes of the answer, and when it has nothing to say."""

from dataclasses import replace
from typing import Any

import dspy
import pytest

from iapo_dspy.errors import BudgetExceeded
from iapo_dspy.prompts.proposers.merge import unions
from iapo_dspy.proposers import (
    Aim,
    Demos,
    Gradients,
    Grounded,
    History,
    Merge,
    Pairwise,
    Paraphrase,
    ProposalEvidence,
    Proposed,
    Proposer,
    Reflective,
    Shorten,
)
from tests.support.writing import Writer, aimed, evidence_of, known, tried, votes

ALL: list[Proposer] = [
    Grounded(), Paraphrase(), Shorten(), Reflective(), Gradients(), History(), Pairwise(), Merge(), Demos(),
]  # fmt: skip
CALLS = {"Gradients": 2, "Pairwise": 2, "Demos": 0}  # for a candidate; 1 for others


def world(**more: Any) -> ProposalEvidence:
    """Two prompts: one is right on 0 and 1, the other on 2 and 3."""
    one = known(0, "Add up.", {0: votes("0", 3, a=1), 1: votes("2", 4), 2: votes("4", 1, b=3), 3: votes(c=4)})
    other = known(1, "Think.", {0: votes(d=4), 1: votes("2", 3), 2: votes("4", 4), 3: votes("6", 3)}, utility=(0.6,))
    return evidence_of(one, other, **more)


def run(proposer: Proposer, evidence: ProposalEvidence, n: int, writer: Writer) -> list[Proposed]:
    with dspy.context(lm=writer):
        return list(proposer.propose(evidence, n))


def script(inputs: dict[str, str], output: str, number: int) -> str:
    return "X. It is complete." if output == "verdict" else f"Do it the way number {number}."


@pytest.mark.parametrize("proposer", ALL, ids=lambda p: type(p).__name__)
def test_equal_evidence_makes_equal_requests_and_candidates(proposer: Proposer) -> None:
    writers = [Writer(script), Writer(script)]
    found = [run(proposer, world(), 1, w) for w in writers]
    assert repr(found[0]) == repr(found[1]) and writers[0].requests == writers[1].requests
    assert len(found[0]) == 1 and found[0][0].preference == "quality" and 0 in found[0][0].parents
    assert found[0][0].by == type(proposer).__name__.lower()
    assert len(writers[0].requests) == CALLS.get(type(proposer).__name__, 1)
    others = [Writer(script) for _ in range(5)]
    for seed, writer in enumerate(others, start=1):
        run(proposer, world(seed=seed), 1, writer)
    if not isinstance(proposer, (Merge, Shorten, Demos)):  # these have few choices to make
        assert len({repr(w.requests) for w in others}) > 1


@pytest.mark.parametrize("proposer", ALL, ids=lambda p: type(p).__name__)
def test_nonsense_is_dropped(proposer: Proposer) -> None:
    for nonsense in ("", "I'm sorry, I cannot help.", "[1, 2]", "X"):
        found = run(proposer, world(), 2, Writer(lambda *_, text=nonsense: text))
        assert not found or isinstance(proposer, Demos)


@pytest.mark.parametrize("proposer", [p for p in ALL if not isinstance(p, Demos)], ids=lambda p: type(p).__name__)
def test_a_budget_that_ends_leaves_what_was_written(proposer: Proposer) -> None:
    calls = CALLS.get(type(proposer).__name__, 1)

    def until(inputs: dict[str, str], output: str, number: int) -> str:
        if number >= calls:
            raise BudgetExceeded("It is used up.")
        return script(inputs, output, number)

    if not isinstance(proposer, Merge):  # one pair, one candidate
        assert len(run(proposer, world(), 3, Writer(until))) == 1
    with pytest.raises(BudgetExceeded):
        run(proposer, world(), 1, Writer(lambda i, o, n: until(i, o, n + calls)))


@pytest.mark.parametrize("proposer", [p for p in ALL if not isinstance(p, (Grounded, Paraphrase, Shorten))])
def test_without_completions_there_is_nothing_to_say(proposer: Proposer) -> None:
    writer = Writer()
    fresh = evidence_of(known(0, "Add up.", utility=(float("nan"),)), known(1, "Sum.", utility=(float("nan"),)))
    assert run(proposer, fresh, 3, writer) == [] and not writer.asked


def test_reflection_reads_the_aim_the_account_and_what_it_wrote_before() -> None:
    writer = Writer()
    assert [p.candidate for p in run(Reflective(questions=2), world(), 2, writer)] == [
        {"self": "Write it the way number 0."}, {"self": "Write it the way number 1."},
    ]  # fmt: skip
    first, second = writer.asked
    assert first["current_instruction"] == "Add up." and "scattered" in first["use"]
    assert 'The right answer "4" came once and was outvoted by "b", which came 3 times.' in first["observations"]
    assert 'The right answer never came. Wrong answers: "c" 4 times.' in first["observations"]
    assert "written_already" not in first and second["written_already"] == "Write it the way number 0."


def test_aims_are_taken_in_turn() -> None:
    aims = (
        Aim(preference="quality", context=0, cost=0.0, parent=1, n=4),
        Aim(preference="thrifty", context=0, cost=1.0, parent=0, n=1),
    )
    writer = Writer()
    found = run(Reflective(), world(aims=aims), 3, writer)
    assert [(p.preference, p.parents) for p in found] == [("quality", (1,)), ("thrifty", (0,)), ("quality", (1,))]
    assert "short completions" in writer.asked[1]["use"] and writer.asked[0]["current_instruction"] == "Think."


class TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict(dspy.Signature("question -> plan", "Plan."))
        self.act = dspy.Predict(dspy.Signature("question, plan -> answer", "Act."))


@pytest.mark.parametrize("proposer", [p for p in ALL if not isinstance(p, (Demos, Merge))])
def test_one_predictor_is_written_at_a_time(proposer: Proposer) -> None:
    prompts = [replace(p, program=TwoSteps()) for p in world().prompts]
    found = run(proposer, world(student=TwoSteps(), prompts=tuple(prompts), generation=0), 2, Writer(script))
    texts = [p.candidate for p in found]
    assert [[k for k in t if t[k] != {"plan": "Plan.", "act": "Act."}[k]] for t in texts] == [["plan"], ["act"]]
    assert run(Demos(), world(prompts=tuple(prompts)), 2, Writer()) == []


def test_history_is_ascending_in_the_aims_own_utility() -> None:
    prompts = [
        known(i, text, utility=(0.0, u), n=(1, n))
        for i, (text, u, n) in enumerate([("Best.", 0.9, 8), ("Worst.", 0.1, 1), ("Unknown.", float("nan"), 1)])
    ]
    writer = Writer()
    found = run(History(), aimed(evidence_of(*prompts), context=1), 1, writer)
    assert writer.asked[0]["scored_instructions"] == (
        "Score 0.100 with 1 completion for each question:\nWorst.\n\n"
        "Score 0.900 with 8 completions for each question:\nBest."
    )
    assert found[0].parents == (1, 0)


def test_gradients_read_failures_only_and_edit_by_their_critique() -> None:
    writer = Writer(lambda inputs, output, i: "It forgets the carry." if output == "critique" else "Carry over.")
    assert run(Gradients(), world(), 1, writer)[0].candidate == {"self": "Carry over."}
    assert "won" not in writer.asked[0]["observations"] and "outvoted" in writer.asked[0]["observations"]
    assert writer.asked[1]["critique"] == "It forgets the carry."
    perfect = evidence_of(known(0, "Add up.", {0: votes("0", 2)}))
    assert run(Gradients(), perfect, 2, writer) == [] and len(writer.asked) == 2


def test_a_comparison_shows_no_label_and_improves_the_winner() -> None:
    one = known(0, "Add up.", {x: votes("mine", 2) for x in range(8)})
    other = known(1, "Think.", {x: votes(yours=2) for x in range(8)})
    seen = set()
    for seed in range(6):
        for letter in "XY":
            writer = Writer(lambda i, o, k, letter=letter: f"{letter} is better." if o == "verdict" else "Go on.")  # type: ignore[misc]
            assert run(Pairwise(), evidence_of(one, other, seed=seed), 1, writer)[0].parents == (0, 1)
            outputs, improved = writer.asked[0]["outputs"], writer.asked[1]["current_instruction"]
            assert "expected" not in outputs and "right" not in outputs and outputs.count("question: ") == 3
            assert improved == ("Add up." if f"{letter} wrote:\nanswer: mine" in outputs else "Think.")
            seen.add((letter, improved))
    assert len(seen) == 4  # neither stands always first


def test_the_pair_that_is_merged_gains_most_together() -> None:
    a = known(0, "A.", {0: votes("0", 2), 1: votes("2", 2), 2: votes(x=2), 3: votes(x=2)})
    b = known(1, "B.", {0: votes("0", 2), 1: votes(x=2), 2: votes("4", 2), 3: votes(x=2)})
    c = known(2, "C.", {0: votes(x=2), 1: votes(x=2), 2: votes("4", 2), 3: votes("6", 2)})
    d = known(3, "D.", {7: votes("14", 2)})  # no common question
    evidence = evidence_of(a, b, c, d)
    found = [(u.one.index, u.other.index, u.gain, u.only_one, u.only_other) for u in unions(evidence, 2)]
    # A and C: union 4 of 4, better alone 2 of 4. A and B, B and C: 3 of 4.
    assert found[0] == (0, 2, 0.5, (0, 1), (2, 3))
    assert sorted(found[1:]) == [(0, 1, 0.25, (1,), (2,)), (1, 2, 0.25, (0,), (3,))]
    writer = Writer()
    merged = run(Merge(), evidence, 4, writer)
    assert [p.parents for p in merged] == [(0, 2), (0, 1), (1, 2)]
    assert (writer.asked[0]["instruction_a"], writer.asked[0]["instruction_b"]) == ("A.", "C.")
    assert sorted(writer.asked[0]["only_a_is_right"].split("\n\n")) == ["question: 0 + 0", "question: 1 + 1"]
    alike = evidence_of(a, known(1, "B.", a.tries))
    assert unions(alike, 2) == [] and run(Merge(), alike, 1, writer) == []


def test_pairs_are_valued_at_the_aims_own_n() -> None:
    one = known(0, "A.", {0: votes("0", 3, x=1), 1: votes("2", 1, x=2)})
    other = known(1, "B.", {0: votes("0", 1, x=2), 1: votes("2", 3, x=1)})
    assert [u.gain for u in unions(evidence_of(one, other), 4)] == [0.5]  # by the vote: (1, 0) and (0, 1)
    shares = unions(evidence_of(one, other), 1)[0]
    assert shares.gain == pytest.approx(0.75 - (0.75 + 1 / 3) / 2)


def test_demonstrations_are_right_completions_that_were_drawn() -> None:
    writer = Writer()
    tries = {
        x: [tried("no", 0.0, 1, 5), tried(str(2 * x), 1.0, 0, 30), tried(f"{2 * x}.", 1.0, 0, 20)] for x in range(8)
    }
    evidence = evidence_of(known(0, "Add up.", tries))
    found = run(Demos(), evidence, 3, writer)
    assert not writer.asked and len(found) == 3
    sets = [[dict(demo) for demo in p.candidate.demos] for p in found]  # type: ignore[union-attr]
    for demos in sets:
        assert len(demos) == 3
        for demo in demos:
            x = int(demo["question"][0])
            assert demo == {
                "augmented": True,
                "question": f"{x} + {x}",
                "answer": f"{2 * x}.",
            }  # the shortest right one
    assert len({repr(s) for s in sets}) == 3 and evidence.prompts[0].program.demos == []
    assert all(p.candidate.signature.instructions == "Add up." for p in found)  # type: ignore[union-attr]


def test_demonstrations_have_the_types_of_the_fields() -> None:
    program = dspy.Predict("question -> answer: int")
    prompt = replace(known(0, "", {0: [tried("none", 1.0), tried("7", 1.0)], 1: [tried("x", 1.0)]}), program=program)
    assert [d.answer for d in run(Demos(), evidence_of(prompt), 1, Writer())[0].candidate.demos] == [7]  # type: ignore[union-attr]


def test_demonstrations_inside_of_a_pipeline_have_the_inputs_that_the_module_was_called_with() -> None:
    """An input of the same name may hold something else than the question's does."""
    tries = {0: [tried("0", 1.0, inputs={"question": "zero and zero"})], 1: [tried("2", 1.0, inputs={"hint": "?"})]}
    (found,) = Demos().propose(evidence_of(known(0, "Add up.", tries)), 1)
    assert isinstance(found.candidate, dspy.Predict)
    assert [(d.question, d.answer) for d in found.candidate.demos] == [("zero and zero", "0")]
