"""Load a saved program without its student, where that is a plain predictor that the file describes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import dspy

from iapo_dspy.errors import StateError, storing
from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.prompts.lms import LMs
from iapo_dspy.prompts.plain_student import student_from
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.scoring.strategies import Strategy


def load(
    path: str | os.PathLike[str],
    student: dspy.Module | None = None,
    *,
    strategy: Strategy | None = None,
    lms: Sequence[LMs] | None = None,
    others: Sequence[dspy.Module] = (),
    adapters: Sequence[dspy.Adapter] | None = None,
    rewriters: Sequence[Rewriter] | None = None,
    allow_unsafe_lm_state: bool = False,
) -> CompiledProgram:
    """Return a program that `CompiledProgram.save` wrote: `iapo_dspy.load("math.json")`.

    Args:
        path: The file, `.json`.
        student: A fresh program of the class that was compiled. It may be left out where that is a `dspy.Predict` or a
            `dspy.ChainOfThought` whose fields are strings, numbers, bools, literals, or lists, dictionaries and unions
            of these.
        strategy: See `CompiledProgram`: needed where the strategy has functions of yours.
        lms: See `CompiledProgram`.
        others: See `CompiledProgram`.
        adapters: See `CompiledProgram`.
        rewriters: See `CompiledProgram`.
        allow_unsafe_lm_state: See `CompiledProgram.load`.

    Raises:
        StateError: It is not a saved program, is damaged, does not fit, or does not say what its student is.
        StorageError: The file cannot be read.
    """
    fresh = _student_in(Path(path)) if student is None else student
    program = CompiledProgram(fresh, strategy, lms=lms, others=others, adapters=adapters, rewriters=rewriters)
    program.load(path, allow_unsafe_lm_state=allow_unsafe_lm_state)
    return program


def _student_in(path: Path) -> dspy.Module:
    """Return a fresh student as the file describes it."""
    with storing(path, "read"):
        text = path.read_bytes()
    try:
        state = json.loads(text)
        found = state["policy"].get("plain_student")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path} cannot be loaded. It is damaged, or is not a saved CompiledProgram.") from error
    program = None if found is None else student_from(found)
    if program is None:
        raise StateError(
            f"{path} does not say what its student is: that is no plain dspy.Predict or dspy.ChainOfThought, or an "
            "older version saved it. Give the student: iapo_dspy.load(path, dspy.ChainOfThought('question -> answer'))."
        )
    return program
