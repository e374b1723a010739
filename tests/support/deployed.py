"""Compiled programs with arms of the test's choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy import CompiledProgram, Preference, Strategy
from iapo_dspy.types import Arm
from tests.support.compiling import iapo
from tests.support.worlds import exact, questions


def deploy(
    student: dspy.Module,
    strategy: Strategy,
    candidates: Sequence[Any],
    arms: Mapping[str, Arm],
    *,
    train: Sequence[dspy.Example] | None = None,
    **kwargs: Any,
) -> CompiledProgram:
    """Compile a student on next to nothing with the configured LM, and give each preference the arm it is to have.

    Args:
        student: The student.
        strategy: The strategy.
        candidates: One for each prompt.
        arms: Name of the preference -> its arm; the first preference is the default.
        train: The training examples; two sums by default.
        **kwargs: For `IAPO`.
    """
    settings: dict[str, Any] = {
        "metric": exact,
        "preferences": [Preference(name, cost=float(i)) for i, name in enumerate(arms)],
        "max_n": max(share.n for arm in arms.values() for stage in arm.stages for share in stage.shares),
        "budget": 4 * len(candidates),
        "candidates": candidates,
        "progress": False,
        "compound": False,
    }
    optimizer = iapo(strategy=strategy, **{**settings, **kwargs})
    program = optimizer.compile(student, trainset=train or questions(2))
    policy = dataclasses.replace(program.policy.ready, arms=tuple(arms.values()), calibrations=None)
    programs = program.detailed_results.candidate_programs
    return CompiledProgram(student, strategy, policy, programs=programs, preference_field=optimizer.preference_field)
