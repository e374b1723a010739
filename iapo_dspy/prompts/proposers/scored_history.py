"""The proposer that climbs from a list of instructions with their utilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from iapo_dspy.prompts.proposers.accounts import goal, inputs_of
from iapo_dspy.prompts.proposers.asking import ask, gathered, instruction_of, rewritten, rng_of, task_of, turns
from iapo_dspy.prompts.proposers.port import ProposalEvidence, Proposed


@dataclass(frozen=True)
class History:
    """Reads instructions with their utility at the best N, ascending, and writes a better one.

    This is OPRO's way (Yang et al., 2023).

    Args:
        instructions: The best ones that it reads, >= 2.
        examples: Questions that it reads, >= 0.
    """

    instructions: int = 10
    examples: int = 3

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Write n instructions by one call each; none before two prompts have been valued."""
        return gathered(self._each(evidence, n), n)

    def _each(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        for attempt, aim, parent, name in turns(evidence, n):
            valued = sorted(
                (p.utility[aim.context], p.index, p.n[aim.context], p.instructions[name])
                for p in evidence.prompts
                if name in p.instructions and math.isfinite(p.utility[aim.context])
            )[-self.instructions :]
            if len(valued) < 2:
                continue
            chosen = rng_of(evidence, "history", attempt).permutation(len(evidence.examples))[: self.examples]
            said = ask(
                "Below are instructions for a language model with their scores, the best one last. Find out what the "
                "better ones have in common, and write an instruction that differs from all of them and scores higher. "
                "Write nothing but the new instruction.",
                task=task_of(evidence, parent, name),
                use=goal(evidence, aim),
                questions="\n\n".join(inputs_of(evidence, x) for x in chosen.tolist()),
                scored_instructions="\n\n".join(
                    f"Score {utility:.3f} with {k} completion{'s' if k > 1 else ''} for each question:\n{text}"
                    for utility, _, k, text in valued
                ),
            )
            if (text := instruction_of(said)) is not None:
                yield Proposed(
                    candidate=rewritten(evidence, parent, name, text),
                    by="history",
                    parents=tuple(index for _, index, _, _ in valued),
                    preference=aim.preference,
                )
