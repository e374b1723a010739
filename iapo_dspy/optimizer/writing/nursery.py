"""Answers the wishes of a search for more prompts: proposers write them, from what the run has drawn so far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import dspy

from iapo_dspy.bandit.outcome import Wish
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.live.environment import LiveEnvironment
from iapo_dspy.environments.live.tries import Tries
from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.optimizer.checks import check_sampling
from iapo_dspy.optimizer.fingerprint import prompt_ids
from iapo_dspy.optimizer.pipelines import LivePrompts
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.writing.briefing import evidence_of
from iapo_dspy.prompts.copies import clone
from iapo_dspy.prompts.prompt import Prompt, build_prompts, same_prompt
from iapo_dspy.prompts.proposers.metered_writing import MeteredWriting
from iapo_dspy.prompts.proposers.port import Proposed
from iapo_dspy.prompts.proposers.written import WrittenPrompt

logger = logging.getLogger(__name__)


class Nursery:
    """Writes the prompts of one run.

    Args:
        plan: The run.
        environment: Draws; it has room for the prompts that come.
        prompts: Its prompts.
        tries: What it has drawn for the questions that writers may read.
        writing: Has proposers write; None in a run that writes nothing, like `tries`.
        told: Called with the run as it has grown, the wish, and the prompts that were written for it.

    Attributes:
        plan: The run with the prompts that were written.
    """

    def __init__(
        self,
        plan: Plan,
        environment: LiveEnvironment,
        prompts: LivePrompts,
        tries: Tries | None,
        writing: MeteredWriting | None,
        *,
        told: Callable[[Plan, Wish, Sequence[Prompt], Sequence[WrittenPrompt]], None],
    ) -> None:
        self.plan = plan
        self._told = told
        self._writing = writing
        self._environment = environment
        self._prompts = prompts
        self._tries = tries

    def answer(self, wish: Wish) -> Problem:
        """Write the prompts that a search wishes for; return its problem with them behind the others."""
        writing = self.plan.writing
        assert writing is not None and self._writing is not None and self._tries is not None
        wanted = min(wish.n, writing.most - len(writing.prompts)) // writing.each
        if wanted < 1:
            return self.plan.problem
        strategy = self._environment.strategy
        evidence = evidence_of(
            replace(self.plan, strategy=strategy),
            q=wish.outcome.q,
            front=wish.front,
            tries=self._tries.of(strategy),
            n=wanted,
            generation=wish.generation,
        )
        found = self._writing.propose(writing.proposer, evidence, wanted)
        prompts, written = self._made(found[:wanted], wish.generation)
        self.plan = self.plan.grown(prompts, written)
        self._told(self.plan, wish, prompts, written)
        self._prompts.grow(self.plan.prompts, prompt_ids(self.plan))
        return self.plan.problem

    def _made(self, proposals: Sequence[Proposed], generation: int) -> tuple[list[Prompt], list[WrittenPrompt]]:
        """Return the prompts of proposals that can be used and are new, and where they come from."""
        plan = self.plan
        prompts: list[Prompt] = []
        written: list[WrittenPrompt] = []
        for proposal in proposals:
            for prompt in made(plan, proposal, beside=prompts):
                parents = tuple(_alike(plan.prompts, parent, prompt) for parent in proposal.parents)
                prompts.append(prompt)
                written.append(
                    WrittenPrompt(
                        by=proposal.by, parents=parents, generation=generation, preference=proposal.preference
                    )
                )
        return prompts, written


def made(plan: Plan, proposal: Proposed, beside: Sequence[Prompt] = ()) -> list[Prompt]:
    """Return the new prompts of a proposal, under every configuration; none where it cannot be used.

    A candidate has the LMs that its first parent brought.

    Args:
        plan: The run, with the prompts that it has.
        proposal: What was written.
        beside: Other new prompts.
    """
    known, settings = (*plan.prompts, *beside), plan.settings
    number = max(p.candidate for p in known) + 1
    program = clone(proposal.candidate if isinstance(proposal.candidate, dspy.Module) else plan.student.module)
    texts = {} if isinstance(proposal.candidate, dspy.Module) else proposal.candidate
    own = plan.prompts[proposal.parents[0]].lms if proposal.parents and not settings.lms else {}
    for name, predictor in program.named_predictors():
        same = plan.student.predictors.get(name)
        predictor.lm = own.get(name, same.lm if same is not None else None)
        if name in texts:
            predictor.signature = predictor.signature.with_instructions(texts[name])
    try:
        configurations = settings.lms, settings.adapters, settings.rewriters
        found = build_prompts(plan.student, [program], settings.decoding, *configurations)
        if not {p.kind for p in found} <= {None, *(p.kind for p in plan.prompts)}:
            raise ConfigurationError("its class is not that of the student or of another candidate.")
        check_sampling(found, settings)
    except ConfigurationError as error:
        logger.warning("A prompt of %s cannot be used: %s", proposal.by, one_line(error))
        return []
    labels = {p.label for p in known}
    return [
        replace(p, candidate=number, mark=f"#{number}" if p.label in labels else p.mark)
        for p in found
        if not any(same_prompt(p, other) for other in known)
    ]


def _alike(prompts: Sequence[Prompt], parent: int, child: Prompt) -> int:
    """Return the parent as it is with the child's LMs, decoding, adapter and rewriter."""

    def asks(prompt: Prompt) -> Any:
        return (
            prompt.decoding,
            prompt.adapter_name,
            prompt.rewriter_name,
            {name: id(lm) for name, lm in prompt.lms.items()},
        )

    candidate = prompts[parent].candidate
    return next((i for i, p in enumerate(prompts) if p.candidate == candidate and asks(p) == asks(child)), parent)
