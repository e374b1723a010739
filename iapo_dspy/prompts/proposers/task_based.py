"""Proposers that need no completions: from the task, its data and the instructions at hand."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dspy
from dspy.propose.grounded_proposer import TIPS, GroundedProposer
from dspy.utils.exceptions import AdapterParseError

from iapo_dspy.prompts.proposers.asking import (
    answering,
    ask,
    fields_of,
    gathered,
    instruction_of,
    rewritten,
    rng_of,
    shown,
    task_of,
    turns,
)
from iapo_dspy.prompts.proposers.port import ProposalEvidence, Proposed

_GROUNDED = contextvars.ContextVar("iapo_grounded", default=False)
# GroundedProposer hands its predictor fields that it has left out of the signature itself, and DSPy warns of them.
logging.getLogger("dspy.predict.predict").addFilter(
    lambda record: not (_GROUNDED.get() and str(record.msg).startswith("Input contains fields not in signature"))
)
_MANNERS = (
    "as one plain sentence",
    "as a numbered list of steps",
    "as advice to a careful colleague who has never seen the task",
    "in entirely different words, keeping every condition",
    "so that it first says what a good answer looks like",
    "so that it names the mistakes to avoid",
    "as a goal, and leave the way to it open",
    "as a checklist to go through before answering",
)


@dataclass(frozen=True)
class Grounded:
    """DSPy's `GroundedProposer`: writes from the signature, examples of the data and a tip.

    Args:
        examples: Training examples that it is shown, >= 1.
    """

    examples: int = 5

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Write n instructions by one call each."""
        return gathered(self._each(evidence, n), n)

    def _each(self, evidence: ProposalEvidence, n: int) -> Iterator[Proposed]:
        for attempt, aim, parent, name in turns(evidence, n):
            rng = rng_of(evidence, "grounded", attempt)
            chosen = rng.permutation(len(evidence.examples))[: self.examples].tolist()
            tip = TIPS[str(rng.choice(sorted(TIPS)))]
            proposer = GroundedProposer(
                prompt_model=dspy.settings.lm,
                program=parent.program,
                trainset=list(evidence.examples),
                use_dataset_summary=False,  # it would ask for it at a temperature of its own
                program_aware=False,  # three calls instead of one
                use_tip=bool(tip),
                rng=random.Random(int(rng.integers(2**32))),
                init_temperature=(getattr(dspy.settings.lm, "kwargs", None) or {}).get("temperature"),
            )
            steps = {k: fields_of(p.signature) for k, p in parent.program.named_predictors()}
            samples = [shown(evidence.examples[x].toDict(), 300) for x in chosen]
            program = f"The program has these steps:\n{shown(steps)}\n\n" if len(steps) > 1 else ""
            proposer.data_summary = program + "Some examples:\n\n" + "\n\n".join(samples)
            proposer.use_dataset_summary = True
            with answering(), _quiet():
                try:
                    said = proposer.propose_instruction_for_predictor(
                        program=parent.program,
                        predictor=None,
                        pred_i=list(steps).index(name),
                        demo_candidates=None,
                        demo_set_i=0,
                        trial_logs={},
                        tip=tip,
                    )
                except AdapterParseError as error:
                    said = error.lm_response
            if (text := instruction_of(said)) is not None:
                candidate = rewritten(evidence, parent, name, text)
                yield Proposed(candidate=candidate, by="grounded", parents=(parent.index,), preference=aim.preference)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out DSPy's warning of fields that the user did not choose."""
    token = _GROUNDED.set(True)
    try:
        yield
    finally:
        _GROUNDED.reset(token)


@dataclass(frozen=True)
class Paraphrase:
    """Says the parent's instruction in another manner, a different one each time."""

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Write n instructions by one call each."""
        manners = rng_of(evidence, "paraphrase").permutation(len(_MANNERS)).tolist()
        return gathered(_rewrites(evidence, n, "paraphrase", [f"Write it {_MANNERS[i]}." for i in manners]), n)


@dataclass(frozen=True)
class Shorten:
    """Makes the parent's instruction, and the completions that it leads to, shorter."""

    def propose(self, evidence: ProposalEvidence, n: int) -> Sequence[Proposed]:
        """Write n instructions by one call each."""
        ways = ("Use half as many words.", "Use at most ten words.", "Use at most twenty words.")
        asked = "The answer should be as short as it can be as well: have the model leave out all that is not needed."
        return gathered(_rewrites(evidence, n, "shorten", [f"{way} {asked}" for way in ways]), n)


def _rewrites(evidence: ProposalEvidence, n: int, by: str, wishes: Sequence[str]) -> Iterator[Proposed]:
    for attempt, aim, parent, name in turns(evidence, n):
        said = ask(
            "Rewrite an instruction for a language model. It must still ask for the same task and the same outputs. "
            "Write nothing but the new instruction.",
            task=task_of(evidence, parent, name),
            current_instruction=parent.instructions[name],
            wish=wishes[(evidence.generation + attempt) % len(wishes)],
        )
        if (text := instruction_of(said)) is not None:
            candidate = rewritten(evidence, parent, name, text)
            yield Proposed(candidate=candidate, by=by, parents=(parent.index,), preference=aim.preference)
