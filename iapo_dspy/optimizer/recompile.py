"""Compiling a compiled program again, after other optimizers have worked on its arms."""

from __future__ import annotations

from typing import Any

from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.prompts.candidates import is_options
from iapo_dspy.prompts.copies import clone


def unwrap(student: Any, candidates: Any) -> tuple[Any, Any]:
    """Return the student within a compiled program, and its arms as they are now as the first candidates.

    Without this, the arms would be drawn N times within each of N draws. Repeats are dropped where candidates are read,
    so that the optimizer that compiled the program can be used again. Candidates that are given predictor by predictor
    are combined, and no arms stand beside them. Other students are returned as they are.
    """
    if not isinstance(student, CompiledProgram) or not student.arms:
        return student, candidates
    inner = clone(student.policy.student)
    if is_options(candidates):
        return inner, candidates
    given = [] if candidates is None else [candidates]
    return inner, [*student.arms, *given]
