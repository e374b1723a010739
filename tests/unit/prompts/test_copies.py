"""Copies of programs, and their states without any LM."""

from __future__ import annotations

from typing import Any

import dspy

from iapo_dspy.prompts.copies import clone, program_state


class Engine:
    """An engine of the user's own, which DSPy cannot save."""

    def complete(self, request: Any) -> Any:
        raise AssertionError("not asked")


def test_an_lm_that_cannot_be_saved_is_no_part_of_a_state() -> None:
    lm = dspy.LM("own/model", engine=Engine(), cache=False)
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(lm)
    state = program_state(program)["predict"]
    plain = dspy.ChainOfThought("question -> answer").predict.dump_state()
    assert state == {**plain, "config": {}, "lm": None} and program.predict.lm is lm
    twin = clone(program)
    assert twin.predict.dump_state() == plain and twin.predict.lm is lm
