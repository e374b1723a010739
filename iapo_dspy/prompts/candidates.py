"""Candidates, read for a student: single ones, or instructions of each predictor to combine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import dspy

from iapo_dspy.errors import ConfigurationError, nearest
from iapo_dspy.prompts.harvest import spread

Proposal: TypeAlias = dspy.Module | dict[str, str]
"""One candidate: a whole program with its instructions and demos, or predictor name -> instruction. Predictors that are
left out keep the student's."""


def read_candidates(candidates: Any, predictors: Sequence[str]) -> tuple[tuple[Proposal, str], ...]:
    """Read the user's candidates, mixed as they come; see `spread`.

    Returns:
        Each candidate, and where it stands in words: "candidates[2]".

    Raises:
        ConfigurationError: None are given, or one of them is empty, of the wrong type, names a predictor that the
            student lacks, or is a string although the student has several predictors.
    """
    if isinstance(candidates, str):
        raise ConfigurationError(
            f"candidates={candidates!r} is one string. Write a list, [{candidates!r}], or candidates='auto' to have "
            "the run write prompts."
        )
    found = tuple(spread(candidates, "candidates")) if candidates is not None else ()
    if not found:
        raise ConfigurationError(
            "No candidates: give the instructions to choose from, e.g. candidates=['Answer at once.', 'Think step by "
            "step.'], dictionaries predictor -> instruction, or whole programs (the student itself is one)."
        )
    return tuple((_read(c.value, c.where, predictors), c.where) for c in found)


def is_options(candidates: Any) -> bool:
    """Tell whether candidates are given predictor by predictor, to be combined (`read_options`)."""
    return isinstance(candidates, Mapping) and not any(isinstance(v, dspy.Module) for v in candidates.values())


def _read(candidate: Any, where: str, predictors: Sequence[str]) -> Proposal:
    if isinstance(candidate, dspy.Module):
        return candidate
    if isinstance(candidate, str):
        if len(predictors) > 1:
            raise ConfigurationError(
                f"{where} is a string, but the student has the predictors {list(predictors)}: give a dictionary "
                "predictor -> instruction."
            )
        candidate = {predictors[0]: candidate}
    if not candidate:
        raise ConfigurationError(f"{where} is an empty dictionary; to keep the student as it is, give the student.")
    for name, text in candidate.items():
        if not isinstance(text, str) or not text.strip():
            raise ConfigurationError(f"{where}: the instruction of {name!r} is {text!r}; give a non-empty string.")
    return _by_predictor(candidate, predictors, where)


def _by_predictor(given: Mapping[Any, Any], predictors: Iterable[str], where: str) -> dict[str, Any]:
    """Return values by the full names of their predictors: "answer" may stand for "answer.predict"."""
    every, found = list(predictors), dict[str, Any]()
    for name, value in given.items():
        fitting = [p for p in every if p == name] or [p for p in every if p.startswith((f"{name}.", f"{name}["))]
        if len(fitting) > 1:
            raise ConfigurationError(f"{where} names {name!r}, which may be any of the predictors {fitting}: name one.")
        if not fitting:
            raise ConfigurationError(
                f"{where} names the predictor {name!r}; the student has {every}.{nearest(str(name), every)}"
            )
        if fitting[0] in found:
            raise ConfigurationError(f"{where} names the predictor {fitting[0]!r} twice: leave one of them out.")
        found[fitting[0]] = value
    return found


def read_options(candidates: Mapping[Any, Any], own: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Read candidates that are given predictor by predictor, to be combined.

    Args:
        candidates: Predictor name -> list of instructions; None in a list stands for the predictor's own instruction,
            which has no part otherwise. "answer" may stand for "answer.predict" where no other name begins so.
        own: Each of the student's predictors with its own instruction.

    Returns:
        Each predictor of the student with its instructions, in the student's order. One that is not mentioned has its
        own instruction only.

    Raises:
        ConfigurationError: No predictor is given, one that the student lacks, or instructions that are not a list,
            are empty, are neither non-empty strings nor None, or are the same.
    """
    if not candidates:
        raise ConfigurationError(
            f"candidates is an empty dictionary: give lists of instructions for some of the predictors {list(own)}."
        )
    candidates = _by_predictor(candidates, own, "candidates")
    kept = {name: (text,) for name, text in own.items()}
    return {**kept, **{name: _options(name, candidates[name], own[name]) for name in own if name in candidates}}


def _options(name: str, given: Any, own: str) -> tuple[str, ...]:
    where = f"candidates[{name!r}]"
    if isinstance(given, str):
        raise ConfigurationError(
            f"{where} is one string. Give a list of instructions to combine them with those of other predictors; one "
            f"candidate for the whole program is an element of a list: candidates=[{{{name!r}: {given[:40]!r}, ...}}]."
        )
    if not isinstance(given, Sequence):
        raise ConfigurationError(f"{where} is a {type(given).__name__}; give a list of instructions.")
    if not given:
        raise ConfigurationError(
            f"{where} is empty: give instructions, or leave the predictor out, which keeps its own instruction."
        )
    texts: list[str] = []
    for i, text in enumerate(given):
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise ConfigurationError(
                f"{where}[{i}] is {text!r}; give a non-empty string, or None for the predictor's own instruction."
            )
        texts.append(own if text is None else text)
        stripped = [t.strip() for t in texts]
        if (first := stripped.index(stripped[-1])) < i:
            raise ConfigurationError(
                f"{where}[{i}] is the same instruction as {where}[{first}]: leave one of them out, or the budget pays "
                "for it twice."
            )
    return tuple(texts)
