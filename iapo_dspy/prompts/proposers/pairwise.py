"""The proposer that needs no labels: it compares outputs of two prompts and improves the winner."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from iapo_dspy.prompts.proposers.accounts import goal, inputs_of
from iapo_dspy.prompts.proposers.asking import ask, gathered, instruction_of, rewritten, rng_of, shown, task_of, turns
from iapo_dspy.prompts.proposers.port import KnownPrompt, ProposalEvidence, Proposed


@dataclass(frozen=True)
class Pairwise:
    """Has the writer judge outputs of the parent and of another prompt, and improve the better one.

    This is SPO's way (Xiang et al., 2025): neither labels nor scores are shown.

    Args:
        questions: Questions that are compared, >= 1.
    """

    questions: int = 3

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Write n instructions by two calls each; none where no other prompt has answered the parent's questions."""
        return gathered(self._each(evidence, n), n)

    def _each(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        for attempt, aim, parent, name in turns(evidence, n):
            rng = rng_of(evidence, "pairwise", attempt)
            others = [(p, x) for p in evidence.prompts if p is not parent and (x := _common(parent, p))]
            if not others:
                continue
            other, common = others[int(rng.integers(len(others)))]
            questions = rng.permutation(common)[: self.questions].tolist()
            pair = (parent, other) if rng.random() < 0.5 else (other, parent)
            verdict = ask(
                "Two language models X and Y have answered the same questions. Judge whose outputs serve the task "
                "better: more likely to be right, complete and in the form that is asked for. Answer by the letter of "
                "the better one, then say why in two sentences.",
                output="verdict",
                task=task_of(evidence, parent, name),
                outputs="\n\n".join(_compared(evidence, pair, x) for x in questions),
            )
            letter = re.search(r"\b[XY]\b", verdict)
            if letter is None:
                continue
            winner = pair["XY".index(letter[0])]
            if name not in winner.instructions:
                winner = parent
            said = ask(
                "Improve an instruction for a language model. A judge has compared its outputs with those of another "
                "instruction; keep what made them better, and mend what the judge missed. Write nothing but the new "
                "instruction.",
                task=task_of(evidence, winner, name),
                use=goal(evidence, aim),
                current_instruction=winner.instructions[name],
                judgement=verdict,
                outputs="\n\n".join(f"{inputs_of(evidence, x)}\n{_output(winner, x)}" for x in questions),
            )
            if (text := instruction_of(said)) is not None:
                yield Proposed(
                    candidate=rewritten(evidence, winner, name, text),
                    by="pairwise",
                    parents=(parent.index, other.index),
                    preference=aim.preference,
                )


def _common(one: KnownPrompt, other: KnownPrompt) -> list[int]:
    return sorted(x for x in one.tries.keys() & other.tries.keys() if one.tries[x] and other.tries[x])


def _compared(evidence: ProposalEvidence, pair: Sequence[KnownPrompt], x: int) -> str:
    return "\n".join(
        [inputs_of(evidence, x), *(f"{a} wrote:\n{_output(p, x)}" for a, p in zip("XY", pair, strict=True))]
    )


def _output(prompt: KnownPrompt, x: int) -> str:
    first = prompt.tries[x][0]
    return shown(first.output) if first.failure is None else "(nothing that could be read)"
