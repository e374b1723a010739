"""Makes the evidence of a run that writers of prompts see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dspy
import numpy as np

from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.prompts.copies import clone
from iapo_dspy.prompts.proposers.port import Aim, KnownPrompt, ProposalEvidence, Try
from iapo_dspy.scoring.strategies import BestOfN, MajorityVote, Mixed, Strategy
from iapo_dspy.types import FloatArray, IntArray


def evidence_of(
    plan: Plan,
    *,
    q: FloatArray,
    front: FloatArray,
    tries: Mapping[int, Mapping[int, Sequence[Try]]],
    n: int,
    generation: int,
) -> ProposalEvidence:
    """Return the evidence by which n candidates are to be written.

    Args:
        plan: The run as it is now.
        q: Estimated utility [C, P, N]; NaN where there is no evidence.
        front: On how many questions each prompt is the best one [C, P]; parents are drawn by it.
        tries: Prompt -> training question -> its completions.
        n: Candidates.
        generation: Number of the generation, 0-based.
    """
    writing = plan.writing
    assert writing is not None
    best, scale = _best(q)
    rng = np.random.default_rng([plan.settings.seed, generation])
    mean = np.nan_to_num(best.mean(axis=0), nan=-np.inf)
    order = np.argsort(-mean, kind="stable").tolist()
    place_of = {x: at for at, x in enumerate(writing.read)}
    prompts = tuple(
        KnownPrompt(
            index=p,
            program=_free(plan.prompts[p].program),
            utility=tuple(best[:, p].tolist()),
            n=tuple(scale[:, p].tolist()),
            tries={place_of[x]: drawn for x, drawn in tries.get(p, {}).items()},
            by=writing.prompts[p].by if p in writing.prompts else None,
            parents=writing.prompts[p].parents if p in writing.prompts else (),
        )
        for p in order
    )
    return ProposalEvidence(
        student=_free(plan.student.module),
        examples=tuple(plan.examples[x] for x in writing.read),
        prompts=prompts,
        aims=tuple(_aim(plan, i % plan.problem.n_contexts, front, scale, order, rng) for i in range(n)),
        aggregate=_aggregate(plan.strategy),
        field=getattr(getattr(plan.strategy, "vote", plan.strategy), "field", None),
        max_n=plan.problem.max_n,
        seed=int(rng.integers(2**31)),
        generation=generation,
    )


def _aim(
    plan: Plan, context: int, front: FloatArray, scale: IntArray, order: Sequence[int], rng: np.random.Generator
) -> Aim:
    """Return one aim, with a parent that is drawn from the front; the best prompt before anything is known."""
    preference, weights = plan.settings.preferences[context], front[context]
    parent = int(rng.choice(len(weights), p=weights / weights.sum())) if weights.sum() > 0 else order[0]
    return Aim(
        preference=str(preference.name),
        context=context,
        cost=preference.cost,
        parent=order.index(parent),
        n=int(scale[context, parent]),
    )


def _best(q: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return the utility of each prompt's best arm [C, P], NaN without evidence, and its scale."""
    values = np.where(np.isnan(q), -np.inf, q)
    best = values.max(axis=2)
    return np.where(np.isinf(best), np.nan, best), values.argmax(axis=2) + 1


def _free(program: dspy.Module) -> dspy.Module:
    """Return a copy of a program without LMs: writers ask the one that they are given."""
    twin = clone(program)
    for predictor in twin.predictors():
        predictor.lm = None
    return twin


def _aggregate(strategy: Strategy) -> str:
    if isinstance(strategy, (MajorityVote, Mixed)):
        return "vote"
    return "best" if isinstance(strategy, BestOfN) else "mean"
