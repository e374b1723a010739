from __future__ import annotations

import dspy
import pytest
from scripted_writer import BAD, REMARK, ScriptedWriter, pool_of

from iapo_dspy.demo.tasks import addition_task, default_instruction

TASK = addition_task()


def test_every_instruction_of_the_pool_is_dealt_once_before_any_comes_again() -> None:
    with ScriptedWriter(TASK, seed=3) as writer:
        lm = writer.lm()
        said = [lm("Write an instruction.")[0] for _ in range(2)] + lm("Write them.", n=len(pool_of(TASK)) - 2)
        again = lm("Write an instruction.")[0]
    assert all(text.startswith("```\n") and text.endswith("\n```") for text in said)
    assert sorted(text[4:-4] for text in said) == sorted(pool_of(TASK)) and again in said
    assert default_instruction(TASK.signature) not in pool_of(TASK)
    assert (writer.requests, writer.completions) == (4, len(said) + 1)
    assert writer.prompt_tokens == 3 * len("Write an instruction.".split()) + len("Write them.".split())
    assert writer.completion_tokens == sum(len(text.split()) for text in [*said, again])


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()], ids=["chat", "json"])
def test_only_the_field_of_an_instruction_is_given_one(adapter: dspy.Adapter) -> None:
    asks = dspy.Predict("task -> verdict, proposed_instruction")
    with ScriptedWriter(TASK, bad_only=True) as writer, dspy.context(lm=writer.lm(), adapter=adapter):
        said = asks(task="Add.")
    assert said.verdict == REMARK and said.proposed_instruction in BAD["addition"]
    assert writer.requests == 1


def test_the_order_is_the_seeds() -> None:
    def first(seed: int) -> list[str]:
        with ScriptedWriter(TASK, seed=seed) as writer:
            return list(writer.lm()("Write.", n=8))

    assert first(1) == first(1) != first(2)
