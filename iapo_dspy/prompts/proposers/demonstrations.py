"""The proposer of demonstrations, an axis beside instructions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.adapters.utils import parse_value

from iapo_dspy.errors import one_line
from iapo_dspy.prompts.copies import clone
from iapo_dspy.prompts.proposers.accounts import is_right, is_thrifty
from iapo_dspy.prompts.proposers.asking import gathered, rng_of, turns
from iapo_dspy.prompts.proposers.port import KnownPrompt, ProposalEvidence, Proposed, Try

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demos:
    """Gives the parent demonstrations: right completions that were drawn already, in the form of `BootstrapFewShot`.

    DSPy's `BootstrapFewShot` itself would run the program and the metric again to find the same. So it calls no LM, and
    has nothing to propose for a program of several predictors, whose inner steps are not kept.

    Args:
        size: Demonstrations of a candidate at most, >= 1.
    """

    size: int = 3

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Return n programs with different demonstrations; fewer where there are fewer right completions."""
        return gathered(self._each(evidence, n), n)

    def _each(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        for attempt, aim, parent, name in turns(evidence, n):
            found = _right(evidence, parent) if len(parent.instructions) == 1 else {}
            if not found:
                continue
            rng, size = rng_of(evidence, "demos", attempt), min(self.size, max(1, len(found) // 2))
            pool = sorted(found, key=lambda x: (found[x].tokens, x))
            if is_thrifty(aim):
                pool = pool[: 2 * size]  # the shortest
            twin = clone(parent.program)
            predictor = dict(twin.named_predictors())[name]
            predictor.demos = [_demo(evidence, x, found[x], predictor) for x in rng.permutation(pool)[:size].tolist()]
            yield Proposed(candidate=twin, by="demos", parents=(parent.index,), preference=aim.preference)


def _right(evidence: ProposalEvidence, parent: KnownPrompt) -> dict[int, Try]:
    """Return question -> the shortest right completion with all outputs: the parent's, or another prompt's."""
    first = parent.program.predictors()[0].signature
    inputs, outputs = set(first.input_fields), list(first.output_fields)
    right: dict[int, Try] = {}
    for prompt in (parent, *evidence.prompts):
        for x, tries in sorted(prompt.tries.items()):
            usable = [
                t
                for t in tries
                if is_right(t) and inputs <= _inputs(evidence, x, t).keys() and all(k in t.output for k in outputs)
                if _readable(parent, t)
            ]
            if usable and x not in right:
                right[x] = min(usable, key=lambda t: t.tokens)
    return right


def _inputs(evidence: ProposalEvidence, x: int, attempt: Try) -> dict[str, Any]:
    """Return what a completion was an answer to: inside of a pipeline that is not the question itself."""
    return dict(evidence.examples[x].inputs().items() if attempt.inputs is None else attempt.inputs)


def _readable(parent: KnownPrompt, attempt: Try) -> bool:
    try:
        _values(parent.program.predictors()[0], attempt.output)
    except Exception as error:  # noqa: BLE001 - pydantic raises many kinds, and so do users' types
        logger.debug("A completion cannot be a demonstration (%s).", one_line(error))
        return False
    return True


def _values(predictor: Any, output: Mapping[str, str]) -> dict[str, Any]:
    return {k: parse_value(output[k], f.annotation) for k, f in predictor.signature.output_fields.items()}


def _demo(evidence: ProposalEvidence, x: int, attempt: Try, predictor: Any) -> dspy.Example:
    given = _inputs(evidence, x, attempt)
    inputs = {k: given[k] for k in predictor.signature.input_fields if k in given}
    return dspy.Example(augmented=True, **inputs, **_values(predictor, attempt.output))
