"""The single candidates in what users have: instructions, programs, and what other optimizers return."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, overload

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.bookkeeping import bookkeeping
from iapo_dspy.prompts.copies import bare, identity_of
from iapo_dspy.prompts.student import Student

logger = logging.getLogger(__name__)

_TOP = 16
_WIDTH = 80

_POOLS = ("candidate_programs", "detailed_results", "mb_candidate_programs")
"""Where optimizers hang what they tried, the best measured first: MIPROv2 scores the last on a part of the data."""

_RESULTS = (("candidates", "val_aggregate_scores"), ("candidate_programs", "candidate_scores"))
"""Attributes of results with the programs and their scores: of GEPA; of IAPO and `candidates_of`."""


class Alternatives(dspy.Module):  # type: ignore[misc]  # dspy ships no types
    """A program that runs one of several programs at each call: as a candidate it stands for all of them.

    Attributes:
        arms: Those programs.
    """

    arms: list[dspy.Module]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """A candidate as it was found in what the user gave.

    Attributes:
        value: A program, a string, or a dictionary predictor -> instruction.
        where: Where it was found, in words: "candidates[2]".
        score: Its score in the optimizer that made it; None where that is not known.
    """

    value: Any
    where: str
    score: float | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class CandidateList(Sequence[dspy.Module]):
    """Candidate programs that tell what they are: `print` it, slice it, and give it to `IAPO(candidates=...)`.

    Attributes:
        candidate_programs: The programs.
        candidate_scores: The score of each in the optimizer that made it, in that optimizer's units; None where it is
            not known.
    """

    candidate_programs: tuple[dspy.Module, ...]
    candidate_scores: tuple[float | None, ...]

    def __len__(self) -> int:
        return len(self.candidate_programs)

    @overload
    def __getitem__(self, index: int) -> dspy.Module: ...
    @overload
    def __getitem__(self, index: slice) -> CandidateList: ...
    def __getitem__(self, index: int | slice) -> dspy.Module | CandidateList:
        """Return one program; a slice is a list of its own, with its scores."""
        if isinstance(index, slice):
            programs, scores = self.candidate_programs[index], self.candidate_scores[index]
            return CandidateList(candidate_programs=programs, candidate_scores=scores)
        return self.candidate_programs[index]

    def __repr__(self) -> str:
        lines = [f"{len(self)} candidate program{'s' * (len(self) != 1)}"]
        for i, (program, score) in enumerate(zip(self, self.candidate_scores, strict=True)):
            student = Student(program)
            text = " ".join(student.text.split())
            words = [student.kind.short, student.demos, "" if score is None else f"score {score:.4g}"]
            cut = text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
            lines.append(f"  #{i}, {', '.join(filter(None, words))}: {cut}")
        return "\n".join(lines)


def candidates_of(found: Any, top: int = _TOP) -> CandidateList:
    """Return the candidate programs in what an optimizer returned, to look at them or to choose some.

        print(candidates_of(gepa.compile(student, trainset=train, valset=val), top=8))

    Args:
        found: A compiled program of any optimizer, its `detailed_results` (GEPA with `track_stats=True`, IAPO), its
            `candidate_programs` (MIPROv2, COPRO, SIMBA, BootstrapFewShotWithRandomSearch, BetterTogether), or a list of
            these, from which candidates are taken in turn. A program that carries none of these is one candidate.
        top: How many are returned at most, >= 1. `IAPO(candidates=program)` takes 16.

    Returns:
        Copies of the distinct programs, without the logs that optimizers hang on them. A compiled program itself comes
        first (the arms, for one of IAPO), then what was tried, the best score first. What MIPROv2 has scored on
        minibatches comes last.

    Raises:
        ConfigurationError: There are no programs in it, or `top` is below 1.
    """
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise ConfigurationError(f"top={top!r}: give a whole number >= 1.")
    several = isinstance(found, (list, tuple)) and not _is_pool(found)
    parts = [_distinct(part) for part in (found if several else [found])]
    in_turn = [one for row in zip_longest(*parts) for one in row if one is not None]
    best = list(_copies(in_turn).values())[:top]
    if not best:
        raise ConfigurationError("candidates_of(...): there are no programs in it.")
    return CandidateList(candidate_programs=tuple(f.value for f in best), candidate_scores=tuple(f.score for f in best))


def _distinct(given: Any) -> list[Gathered]:
    """Return the distinct programs in one thing that the user gave; the best first where scores are known."""
    if isinstance(given, dspy.Module):
        return list(_tried(given).values())
    found = list(spread(given, "candidates_of(...)"))
    return list(_copies(sorted(found, key=_worst_last) if _is_pool(given) else found).values())


def spread(given: Any, where: str) -> Iterator[Gathered]:
    """Yield the single candidates in what users have.

    Lists are read element by element, at any depth. Results of optimizers are read program by program: objects with
    programs and scores (GEPA, IAPO), and lists of dictionaries or tuples with a program and a score (MIPROv2, COPRO,
    SIMBA and others). A compiled program is itself and the best of what it carries; one of IAPO is its arms first.

    Raises:
        ConfigurationError: Something in it is neither a candidate nor a list of candidates.
    """
    if isinstance(given, Gathered):
        yield given
    elif isinstance(given, dspy.Module):
        tried = list(_tried(given).values())
        if len(tried) > _TOP:
            logger.info(
                "%s carries %d candidates; the best %d are taken. candidates_of(program, top=...) takes more.",
                where,
                len(tried),
                _TOP,
            )
        best = tried[:_TOP]
        yield from (replace(f, where=f"#{i} of {where}" if len(best) > 1 else where) for i, f in enumerate(best))
    elif isinstance(given, str):
        yield Gathered(value=given, where=where)
    elif (entry := _entry(given)) is not None:
        yield from _singles(*entry, where)
    elif (results := _results(given)) is not None:
        for i, (program, score) in enumerate(results):
            yield from _singles(program, score, f"{where}[{i}]")
    elif isinstance(given, Mapping):
        yield Gathered(value=given, where=where)
    elif isinstance(given, Iterable) and not isinstance(given, (set, frozenset)):
        for i, part in enumerate(given):
            yield from spread(part, f"{where}[{i}]")
    else:
        why = ", which has no order to number the prompts by" if isinstance(given, (set, frozenset)) else ""
        kind = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        raise ConfigurationError(
            f"{where} is {kind}{why}; give a list of strings, dictionaries predictor -> instruction, "
            "programs, or of what an optimizer found: its compiled program, its candidate_programs, its "
            "detailed_results."
        )


def _tried(program: dspy.Module) -> dict[Any, Gathered]:
    """Return a program and what it carries of the candidates that were tried, as copies: identity -> candidate."""
    itself = list(_singles(program, None, "the program"))
    carried = [*bookkeeping(program), *(["detailed_results"] if isinstance(program, Alternatives) else [])]
    given = [getattr(program, name) for name in _POOLS if name in carried]
    pools = [list(spread(pool, "the program")) for pool in given if _is_pool(pool)]
    tried = [found for pool in pools for found in sorted(pool, key=_worst_last) if isinstance(found.value, dspy.Module)]
    return _copies([*itself, *tried])


def _copies(given: Iterable[Gathered]) -> dict[Any, Gathered]:
    """Return distinct programs as copies: identity -> candidate, with the first of its scores."""
    kept: dict[Any, Gathered] = {}
    for found in given:
        if not isinstance(found.value, dspy.Module):
            raise ConfigurationError(
                f"{found.where} is {found.value!r}; candidates_of reads programs. Instructions are given to "
                "IAPO(candidates=[...]) as they are."
            )
        program = bare(found.value)
        identity = identity_of(program)
        first = kept.setdefault(identity, replace(found, value=program))
        if first.score is None:
            kept[identity] = replace(first, score=found.score)
    return kept


def _singles(value: Any, score: float | None, where: str) -> Iterator[Gathered]:
    """Yield one candidate; the arms of a compiled program of IAPO, which is none itself."""
    if not isinstance(value, Alternatives):
        yield Gathered(value=value, where=where, score=score)
        return
    if not value.arms:
        raise ConfigurationError(f"{where} is a compiled program that has no policy yet: compile or load it first.")
    yield from (Gathered(value=arm, where=where, score=score) for arm in value.arms)


def _worst_last(found: Gathered) -> tuple[bool, float]:
    return found.score is None, -(found.score or 0.0)


def _results(given: Any) -> list[tuple[Any, float | None]] | None:
    """Return the candidates in the results of an optimizer with their scores; None where it is something else."""
    for names in _RESULTS:
        found, scores = (getattr(given, name, None) for name in names)
        if isinstance(found, Sequence) and isinstance(scores, Sequence):
            return [(candidate, _number(score)) for candidate, score in zip(found, scores, strict=True)]
    return None


def _entry(given: Any) -> tuple[Any, float | None] | None:
    """Return candidate and score of a dictionary or a tuple that has both, such as (score, program, seed)."""
    if isinstance(given, Mapping):
        program, score = given.get("program"), _number(given.get("score"))
        if isinstance(program, (dspy.Module, Mapping)):
            return program, score
        return None if score is None else ({name: v for name, v in given.items() if name != "score"}, score)
    if isinstance(given, tuple):
        programs = [part for part in given if isinstance(part, dspy.Module)]
        scores = [score for part in given if (score := _number(part)) is not None]
        return (programs[0], scores[0]) if len(programs) == 1 and scores else None
    return None


def _is_pool(given: Any) -> bool:
    """Tell whether this is all that one optimizer tried, so that its scores can be compared."""
    if _results(given) is not None:
        return True
    return isinstance(given, Sequence) and bool(given) and all(_entry(part) is not None for part in given)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    return float(value) if is_number else None
