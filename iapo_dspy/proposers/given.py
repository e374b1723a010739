"""Candidates as users give them: strings, dictionaries predictor -> instruction, or whole programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iapo_dspy.errors import ConfigurationError

__all__ = ["Proposal", "read_candidates"]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One candidate: instructions for some predictors of the student, or a program of its own.

    Attributes:
        instructions: Predictor name -> instruction. Predictors left out keep the student's.
        program: A whole program, with its instructions and demos; then `instructions` is empty.
    """

    instructions: Mapping[str, str]
    program: Any = None


def read_candidates(
    candidates: Iterable[Any] | None, predictors: Sequence[str], is_program: Callable[[Any], bool]
) -> tuple[Proposal, ...]:
    """Read the user's candidates.

    Args:
        candidates: Strings, dictionaries and programs, mixed as they come.
        predictors: Names of the student's predictors.
        is_program: Tells a program from everything else.

    Raises:
        ConfigurationError: None are given, or one of them is empty, of the wrong type, names a predictor that the
            student lacks, or is a string although the student has several predictors.
    """
    if isinstance(candidates, (str, Mapping)) or is_program(candidates):
        raise ConfigurationError(f"candidates must be a list, got one {type(candidates).__name__}; write [candidate].")
    if isinstance(candidates, (set, frozenset)):
        raise ConfigurationError("candidates is a set, which has no order to number the prompts by; give a list.")
    if candidates is not None and not isinstance(candidates, Iterable):
        raise ConfigurationError(f"candidates must be a list, got {candidates!r}.")
    given = list(candidates or ())
    if not given:
        raise ConfigurationError(
            "No candidates: give the instructions to choose from, e.g. candidates=['Answer at once.', 'Think step by "
            "step.'], dictionaries predictor -> instruction, or whole programs (the student itself is one)."
        )
    return tuple(_read(c, f"candidates[{i}]", predictors, is_program) for i, c in enumerate(given))


def _read(candidate: Any, where: str, predictors: Sequence[str], is_program: Callable[[Any], bool]) -> Proposal:
    if is_program(candidate):
        return Proposal(instructions={}, program=candidate)
    if isinstance(candidate, str):
        if len(predictors) > 1:
            raise ConfigurationError(
                f"{where} is a string, but the student has the predictors {list(predictors)}: give a dictionary "
                "predictor -> instruction."
            )
        candidate = {predictors[0]: candidate}
    if not isinstance(candidate, Mapping):
        raise ConfigurationError(
            f"{where} is a {type(candidate).__name__}; give a string, a dictionary predictor -> instruction, or a "
            "program."
        )
    if not candidate:
        raise ConfigurationError(f"{where} is an empty dictionary; to keep the student as it is, give the student.")
    for name, text in candidate.items():
        if name not in predictors:
            raise ConfigurationError(f"{where} names the predictor {name!r}; the student has {list(predictors)}.")
        if not isinstance(text, str) or not text.strip():
            raise ConfigurationError(f"{where}: the instruction of {name!r} is {text!r}; give a non-empty string.")
    return Proposal(instructions=dict(candidate))
