"""The prompts that earlier runs wrote: a run that goes on from their ledger knows them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from iapo_dspy.optimizer.fingerprint import prompt_ids
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.writing.nursery import made
from iapo_dspy.prompts.copies import program_state
from iapo_dspy.prompts.prompt import Prompt
from iapo_dspy.prompts.proposers.metered_writing import earlier_proposals, key_of
from iapo_dspy.prompts.proposers.written import WrittenPrompt
from iapo_dspy.sampling.ledger.digests import query_id
from iapo_dspy.sampling.ledger.records import ProposalRecord


def with_earlier(plan: Plan, records: Sequence[ProposalRecord], stored: Collection[str]) -> Plan:
    """Return the plan of a run that writes, with the prompts that others wrote and drew, behind those that were given.

    A prompt may hold the answers to questions that its writer has read. So where others wrote prompts of the run, it
    measures nothing on the questions that these others have read.

    Args:
        plan: The run.
        records: What proposers wrote.
        stored: Names of the prompts that have completions (`prompt_ids`).
    """
    if not records or (plan.writing is None and not _has_any(plan, records)):
        return plan
    read = {name for record in records for name in record.read}
    plan = replace(plan, held_out=tuple(example for example in plan.held_out if query_id(example) not in read))
    if plan.writing is None:
        return plan
    student = program_state(plan.student.module)
    same = (i for i, p in enumerate(plan.prompts) if program_state(p.program) == student)
    place = [next(same, -1), *range(len(plan.prompts))]  # number among the programs -> number of its first prompt
    for proposed in earlier_proposals(records, [plan.student.module, *(p.program for p in plan.prompts)]):
        parents = tuple(place[parent] for parent in proposed.parents if place[parent] >= 0)
        first, prompts = len(plan.prompts), made(plan, replace(proposed, parents=parents))
        place.append(first if prompts else -1)
        written = WrittenPrompt(by=proposed.by, parents=parents, generation=-1, preference=proposed.preference)
        grown = plan.grown(prompts, [written] * len(prompts))
        id_of = prompt_ids(grown)
        kept: list[Prompt] = [p for i, p in enumerate(prompts) if id_of(first + i) in stored]
        if kept:
            grown = plan.grown(kept, [written] * len(kept))
            assert grown.writing is not None
            plan = replace(grown, writing=replace(grown.writing, most=grown.writing.most + len(kept)))
        else:
            place[-1] = -1
    assert plan.writing is not None
    known = tuple(i for i, example in enumerate(plan.examples) if query_id(example) in read)
    return replace(plan, writing=replace(plan.writing, known=known))


def _has_any(plan: Plan, records: Sequence[ProposalRecord]) -> bool:
    """Tell whether one of the candidates was written, such as an arm of a program that is compiled again."""
    keys = {record.key for record in records}
    return any(key_of(prompt.program) in keys for prompt in plan.prompts.shown)
