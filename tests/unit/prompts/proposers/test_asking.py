"""Instructions are found in whatever a writer answers, or the answer is dropped."""

import json

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.prompts.proposers.asking import LONGEST, ask, identity, instruction_of, normal, rewritten
from tests.support.writing import Writer, evidence_of, known

BARE = "Add the numbers step by step: first the ones."


@pytest.mark.parametrize(
    "said",
    [
        BARE,
        f"  {BARE}\n",
        f'"{BARE}"',
        f"“{BARE}”",
        f"```\n{BARE}\n```",
        f"```text\n{BARE}\n```\nI hope this helps!",
        f"Here is the instruction:\n\n{BARE}",
        f"Here's the improved instruction: {BARE}",
        f"Sure! Here is a better one:\n```\n{BARE}\n```",
        f'**New instruction:** "{BARE}"',
        f"Instruction: {BARE}",
        json.dumps({"instruction": BARE}),
        json.dumps({"reason": "It is short.", "new_instruction": BARE}),
        f"```json\n{json.dumps({'instruction': BARE})}\n```",
        f"[[ ## proposed ## ]]\n{BARE}\n[[ ## completed ## ]]",
    ],
)
def test_an_instruction_is_freed_of_what_stands_around_it(said: str) -> None:
    assert instruction_of(said) == BARE


@pytest.mark.parametrize(
    "kept",
    [
        'Answer "yes" or "no".',
        '"Yes" or "no": say one of them.',
        "Answer in this form:\n```\nanswer: 3\n```\nand nothing else.",
        "Sure answers only: leave a question out where you doubt.",
        "Write {name} in capitals.",
        "答えは数字だけで書いてください。",
    ],
)
def test_an_instruction_keeps_what_belongs_to_it(kept: str) -> None:
    assert instruction_of(kept) == kept


@pytest.mark.parametrize(
    "said",
    [
        None, 3, ["Add."], "", "   ", "```\n```", '""', "42", "{}", "[]", json.dumps(["Add.", "Sum."]), "?!",
        json.dumps({"a": "Add up.", "b": "Sum up."}), "I'm sorry, I can't help with that.",
        "I cannot do that.", "I\u2019m unable to.",
        "As an AI language model, I do not write prompts.", "x" * (LONGEST + 1), "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_not_an_instruction_is_dropped(said: object) -> None:
    assert instruction_of(said) is None


@given(st.text(st.characters(codec=None), max_size=60))
def test_no_answer_raises(said: str) -> None:
    found = instruction_of(said)
    assert found is None or found.encode()  # what is kept can be sent and stored


def test_an_answer_without_marks_is_taken_whole_and_asked_for_once() -> None:
    writer = Writer(lambda inputs, output, i: f"Here is the instruction: {BARE}", raw=True)
    with dspy.context(lm=writer):
        assert instruction_of(ask("Write.", task="Add.")) == BARE
    assert len(writer.asked) == 1 and writer.asked[0] == {"task": "Add."}


def test_texts_that_an_lm_reads_alike_are_one() -> None:
    assert (
        normal(" Add  UP\nthe numbers.") == normal('"add up the numbers."') == normal("```\nAdd up the numbers.\n```")
    )
    assert normal("Add up.") != normal("Add it up.")
    evidence = evidence_of(known(0, "Add up."))
    texts = identity(evidence, {"self": "ADD up."})
    assert texts == identity(evidence, known(0, "Add up.").program)
    program = known(0, "Add up.").program
    program.demos = [dspy.Example(question="1 + 1", answer="2")]
    assert identity(evidence, program) != texts  # demos tell candidates apart
    thinking = dspy.ChainOfThought(dspy.Signature("question -> answer", "Add up."))
    assert identity(evidence, thinking) != texts  # and so does the class


def test_a_rewritten_parent_keeps_what_is_its_own() -> None:
    evidence = evidence_of(known(0, "Add up."))
    assert rewritten(evidence, evidence.prompts[0], "self", "Sum.") == {"self": "Sum."}
    parent = known(1, "Add up.")
    parent.program.demos = [dspy.Example(question="1 + 1", answer="2")]
    twin = rewritten(evidence, parent, "self", "Sum.")
    assert isinstance(twin, dspy.Module) and twin.signature.instructions == "Sum." and len(twin.demos) == 1
    assert parent.program.signature.instructions == "Add up."
