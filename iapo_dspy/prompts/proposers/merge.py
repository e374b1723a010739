"""The proposer that merges two prompts which are right on different questions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.prompts.proposers.accounts import goal, inputs_of, value_of
from iapo_dspy.prompts.proposers.asking import ask, gathered, instruction_of, rewritten, rng_of, task_of, turns
from iapo_dspy.prompts.proposers.port import KnownPrompt, ProposalEvidence, Proposed


@dataclass(frozen=True, kw_only=True)
class Union:
    """Two prompts together.

    Attributes:
        one: The better prompt.
        other: The other one.
        gain: Mean over their common questions of the better value on each, minus the better mean.
        only_one: Common questions on which the first one is better, the largest difference first.
        only_other: Those on which the other one is.
    """

    one: KnownPrompt
    other: KnownPrompt
    gain: float
    only_one: tuple[int, ...]
    only_other: tuple[int, ...]


def unions(evidence: ProposalEvidence, n: int) -> list[Union]:
    """Return the pairs of prompts whose union of questions gains something at n completions, the largest gain first."""
    values = [{x: value_of(t, evidence.aggregate, n) for x, t in p.tries.items() if t} for p in evidence.prompts]
    found = []
    for i, j in itertools.combinations(range(len(values)), 2):
        common = sorted(values[i].keys() & values[j].keys())
        if not common:
            continue
        v = np.array([[values[k][x] for x in common] for k in (i, j)])
        order = np.argsort(-v.mean(axis=1), kind="stable")
        (better, rest), pair = v[order], [evidence.prompts[(i, j)[k]] for k in order]
        difference = better - rest
        ahead = [common[k] for k in np.argsort(-difference, kind="stable") if difference[k] > 0]
        behind = [common[k] for k in np.argsort(difference, kind="stable") if difference[k] < 0]
        gain = float(np.maximum(better, rest).mean() - better.mean())
        found.append(Union(one=pair[0], other=pair[1], gain=gain, only_one=tuple(ahead), only_other=tuple(behind)))
    return sorted((u for u in found if u.gain > 1e-9), key=lambda u: -u.gain)


@dataclass(frozen=True)
class Merge:
    """Writes one instruction from two that are right on different questions, the pair that gains most together.

    Args:
        questions: Questions of each of the two that it reads at most, >= 1.
    """

    questions: int = 3

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Write n instructions by one call each, of a pair each; fewer where fewer pairs gain anything."""
        return gathered(self._each(evidence, n), n)

    def _each(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        used: set[tuple[int, int]] = set()
        for attempt, aim, _, _ in turns(evidence, n):
            rng = rng_of(evidence, "merge", attempt)
            union = next((u for u in unions(evidence, aim.n) if (u.one.index, u.other.index) not in used), None)
            if union is None:
                continue
            one, other = union.one, union.other
            used |= {(one.index, other.index), (other.index, one.index)}
            both = [k for k in one.instructions if k in other.instructions]
            name = next((k for k in both if one.instructions[k] != other.instructions[k]), None)
            if name is None:  # they differ in other things than their instructions
                continue
            read = {
                f"only_{letter}_is_right": "\n\n".join(
                    inputs_of(evidence, x)
                    for x in rng.permutation(list(questions)[: 2 * self.questions])[: self.questions]
                )
                for letter, questions in (("a", union.only_one), ("b", union.only_other))
                if questions
            }
            said = ask(
                "Two instructions for a language model are right on different questions. Write one instruction that "
                "has what is good in both, so that it is right on the questions of either. Do not just join them: "
                "where they contradict each other, say when which one holds. Write nothing but the new instruction.",
                task=task_of(evidence, one, name),
                use=goal(evidence, aim),
                instruction_a=one.instructions[name],
                instruction_b=other.instructions[name],
                **read,
            )
            if (text := instruction_of(said)) is not None:
                yield Proposed(
                    candidate=rewritten(evidence, one, name, text),
                    by="merge",
                    parents=(one.index, other.index),
                    preference=aim.preference,
                )
