"""Compiling a compiled program again, after other optimizers have worked on its arms."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import dspy

from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.prompts.prompt import build_prompts, clone, program_state
from iapo_dspy.prompts.student import Student
from iapo_dspy.types import Decoding


def unwrap(student: Any, candidates: Iterable[Any] | None) -> tuple[Any, Iterable[Any] | None]:
    """Return the student within a compiled program, and its arms as they are now as the first candidates.

    Without this, the arms would be drawn N times within each of N draws. A candidate that is one of the arms is left
    out, so that the optimizer that compiled the program can be used again. Other students are returned as they are.
    """
    if not isinstance(student, CompiledProgram) or not student.arms:
        return student, candidates
    inner = clone(student.policy.student)
    found: dict[str, dspy.Module] = {}
    for arm in student.arms:
        found.setdefault(_identity(arm), arm)
    if candidates is not None:
        for prompt in build_prompts(Student(inner), candidates, (Decoding(),)):
            found.setdefault(_identity(prompt.program), prompt.program)
    return inner, list(found.values())


def _identity(program: dspy.Module) -> str:
    return json.dumps(program_state(program), sort_keys=True, default=str)
