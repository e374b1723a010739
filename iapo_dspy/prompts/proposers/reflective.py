"""Proposers that read what N completions did: reflection for the vote, and critique before editing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from iapo_dspy.prompts.proposers.accounts import account, goal, kind_of, sampled
from iapo_dspy.prompts.proposers.asking import ask, gathered, instruction_of, rewritten, rng_of, task_of, turns
from iapo_dspy.prompts.proposers.port import ProposalEvidence, Proposed


@dataclass(frozen=True)
class Reflective:
    """Reads what N completions of the parent did, question by question, and writes for the aggregate.

    Reflection on examples is GEPA's (Agrawal et al., 2025); it reads one completion of each, and this one the vote.

    Args:
        questions: Questions that one call reads at most, >= 1.
    """

    questions: int = 6

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Write n instructions by one call each; none for parents without completions."""
        return gathered(self._each(evidence, n), n)

    def _each(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        written: list[str] = []
        for attempt, aim, parent, name in turns(evidence, n):
            questions = sampled(evidence, parent, rng_of(evidence, "reflective", attempt), self.questions)
            if not questions:
                continue
            before = {"written_already": "\n\n".join(written)} if written else {}
            said = ask(
                "Improve an instruction for a language model. Read how it is used, which instruction is wanted, and "
                "what its completions did on some questions. Find out why right answers lost or never came, and what "
                "made others win. Then write a new instruction that does better on questions of this kind; it must not "
                "contain the answers of these. It must differ from those that are written already. Write nothing but "
                "the new instruction.",
                task=task_of(evidence, parent, name),
                use=goal(evidence, aim),
                current_instruction=parent.instructions[name],
                observations=account(evidence, parent, questions),
                **before,
            )
            if (text := instruction_of(said)) is not None:
                written.append(text)
                candidate = rewritten(evidence, parent, name, text)
                yield Proposed(candidate=candidate, by="reflective", parents=(parent.index,), preference=aim.preference)


@dataclass(frozen=True)
class Gradients:
    """Criticises the parent's instruction by its failures, then edits it (ProTeGi: Pryzant et al., 2023).

    Args:
        questions: Failures that one critique reads at most, >= 1.
    """

    questions: int = 4

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Write n instructions by two calls each; none for parents that have lost on no question."""
        return gathered(self._each(evidence, n), n)

    def _each(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        for attempt, aim, parent, name in turns(evidence, n):
            rng = rng_of(evidence, "gradients", attempt)
            order = sampled(evidence, parent, rng, len(evidence.examples))
            lost = [x for x in order if kind_of(parent.tries[x], evidence.aggregate) not in ("won", "high")]
            if not lost:
                continue
            read = rng.permutation(lost[: self.questions]).tolist()  # another order where there are no others to read
            told = {"task": task_of(evidence, parent, name), "current_instruction": parent.instructions[name]}
            critique = ask(
                "An instruction for a language model led to the mistakes below. Say which parts of the instruction, or "
                "what is missing in it, may have caused them: two to four short points.",
                output="critique",
                **told,
                use=goal(evidence, aim),
                observations=account(evidence, parent, read),
            )
            if not critique.strip():
                continue
            said = ask(
                "Edit an instruction for a language model so that the points of a critique are mended. Keep what the "
                "critique does not speak of. Write nothing but the new instruction.",
                **told,
                use=goal(evidence, aim),
                critique=critique,
            )
            if (text := instruction_of(said)) is not None:
                candidate = rewritten(evidence, parent, name, text)
                yield Proposed(candidate=candidate, by="gradients", parents=(parent.index,), preference=aim.preference)
