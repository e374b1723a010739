"""Makes the compiled program from the findings of a run, and warns of gaps in them."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from pathlib import Path

import dspy
import numpy as np

from iapo_dspy.bandit.confidence.learning import calibrated
from iapo_dspy.bandit.confirmation import doubted, part
from iapo_dspy.errors import BudgetTooSmall, one_line
from iapo_dspy.optimizer.drawing import Findings
from iapo_dspy.optimizer.quoting.affordable import least_that_pays, shown_budget
from iapo_dspy.optimizer.watching.watch import RunWatch
from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.program.evidence.columns import rounded
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.program.results.compile_result import make_result
from iapo_dspy.program.results.saved_results import PROGRAM
from iapo_dspy.prompts.adapter_names import using
from iapo_dspy.prompts.combinations import student_prompt
from iapo_dspy.prompts.lms import models_of
from iapo_dspy.prompts.prompt import prompt_states

logger = logging.getLogger(__name__)


def conclude(found: Findings, watch: RunWatch) -> CompiledProgram | dspy.Module:
    """Return the compiled program, or the pipeline with the compiled program in it.

    Args:
        found: The findings.
        watch: Is told the policy.

    Raises:
        BudgetTooSmall: Not a single completion has a score.
    """
    _warn(found)
    plan, outcome, settings = found.plan, found.outcome, found.plan.settings
    written = plan.writing.prompts if plan.writing is not None else None
    confidence = calibrated(plan.problem, outcome)
    outcome = replace(outcome, reliability=tuple(None if c is None else c.reliability for c in confidence))
    unsure = doubted(written or (), found.gains)  # later choices from the saved evidence leave them out
    policy = CompiledPolicy(
        preferences=settings.preferences,
        arms=outcome.policy.arms,
        default=settings.default_preference,
        prompts=prompt_states(plan.prompts),
        max_n=settings.max_n,
        n_queries=len(plan.examples),
        cost_scale=outcome.cost_scale,
        algorithm=settings.algorithm,
        stopping=settings.stopping,
        compound=settings.combines,
        strategy=found.strategy.to_dict(),
        evidence=rounded([part(o, ~np.isin(o.pulls.prompt, unsure)) for o in outcome.observations]),
        spent=found.spent.to_dict(),
        cost=settings.cost_unit,
        measured=outcome.measured,
        calibrations=tuple(None if c is None else c.map for c in confidence),
    )
    programs = [p.program for p in plan.prompts]
    program = CompiledProgram(
        plan.student.module,
        found.strategy,
        policy,
        preference_field=settings.preference_field,
        programs=programs,
        lms=[p.lms for p in plan.prompts if p.lms] or None,
        adapters=settings.adapters or None,
        rewriters=settings.rewriters or None,
    )
    result = make_result(
        policy,
        found.strategy,
        outcome,
        found.output_tokens,
        tuple(map(models_of, programs)),
        functools.partial(tuple, [using(p.program, p.adapter) for p in plan.prompts]),
        failures=found.failures,
        rounds=outcome.rounds,
        validated=bool(plan.held_out),
        complete=outcome.complete and found.outage is None,
        outage=found.outage,
        written=written,
        gains=found.gains,
        bias=found.bias,
        rewrites=found.rewrites,
        student=student_prompt(plan.prompts, plan.student, settings.decoding, settings.lms, settings.adapters)[0],
    )
    program.detailed_results = result if settings.track_stats else None
    if settings.log_dir is not None:
        _keep(program, settings.log_dir)
    watch.found(result)
    if plan.pipeline is None:
        return program
    pipeline = plan.pipeline.with_inner(program)
    pipeline.detailed_results = program.detailed_results
    return pipeline


def _keep(program: CompiledProgram, folder: Path) -> None:
    """Save the program beside the ledger. Where that cannot be, the caller has it all the same."""
    try:
        program.save(folder / PROGRAM)
    except (OSError, TypeError, ValueError) as error:
        logger.warning("The program could not be saved in log_dir, and is returned all the same: %s", one_line(error))


def _warn(found: Findings) -> None:
    """Say where a budget or failures held the run back, and which preferences cannot be served."""
    plan, outcome = found.plan, found.outcome
    budget = plan.settings.budget
    if found.outage is not None:
        logger.warning(
            "%s. The run stopped after %d completions, with the policy that they support. %s", found.outage,
            found.spent.completions, f"Compile again with log_dir={str(plan.settings.log_dir)!r} to go on."
            if plan.settings.log_dir is not None else "Set log_dir to be able to go on from here.",
        )  # fmt: skip
    elif found.verdict is not None:
        logger.warning("%s", found.verdict)
    elif not outcome.complete:
        blind = [i for i, share in enumerate(found.failures.share) if share != share]
        if len(blind) == len(plan.prompts):
            raise BudgetTooSmall(
                f"{shown_budget(budget)} does not pay for a single completion and its score, so there is nothing to "
                f"choose by. Raise its tokens, dollars or seconds. {least_that_pays(plan)}".strip(),
                given=0,
                least=plan.least,
            )
        unjudged = (
            f" ({found.unjudged} of them without a score, because their judge did not fit)" if found.unjudged else ""
        )
        logger.warning(
            "A budget ended the run early, after %d of at most %d completions%s: the policy rests on %s observations "
            "per preference%s.", found.spent.completions, plan.completions, unjudged, outcome.evidence.tolist(),
            f", and the prompts {blind} were never tried. {least_that_pays(plan)}".rstrip(" .") if blind else "",
        )  # fmt: skip
    if found.failures.total:
        logger.warning("%s", found.failures)
    if found.failures.remark is not None:
        logger.warning("%s", found.failures.remark)
    for preference, promise in zip(plan.settings.preferences, outcome.promises, strict=False):
        if promise is not None and not promise.kept:
            logger.warning("%s: %s.", preference, promise.in_words)
    if outcome.charges is not None:
        for preference, arms in zip(plan.settings.preferences, outcome.charges.keeps(), strict=True):
            if not arms.any():
                logger.warning("No arm keeps the caps of %s: its calls will raise CapsTooTight.", preference)
