"""Draws the completions of a planned run, within its budget, and asks its algorithm for the outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from iapo_dspy.bandit.compound.chosen import with_compounds
from iapo_dspy.bandit.confidence.promise import with_promises
from iapo_dspy.bandit.confirmation import ConfirmedGain, among_given, confirm, doubted, first_of
from iapo_dspy.bandit.measurement import measured
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.environments.live.environment import LiveEnvironment
from iapo_dspy.environments.live.equal_scores import EqualScores
from iapo_dspy.environments.live.tries import Tries
from iapo_dspy.environments.port import Environment, drive
from iapo_dspy.environments.wrappers import Some
from iapo_dspy.errors import BudgetTooSmall
from iapo_dspy.events import RunStarted
from iapo_dspy.optimizer.fingerprint import about, facts_of, older_of, prompt_ids, serving, takes_all
from iapo_dspy.optimizer.pipelines import LivePrompts
from iapo_dspy.optimizer.plan import Plan, Writing
from iapo_dspy.optimizer.quoting.affordable import check_pays, planned, shown_budget
from iapo_dspy.optimizer.settings import Settings
from iapo_dspy.optimizer.watching.rounds import Rounds
from iapo_dspy.optimizer.watching.watch import RunWatch
from iapo_dspy.optimizer.writing.earlier import with_earlier
from iapo_dspy.optimizer.writing.nursery import Nursery
from iapo_dspy.prompts.proposers.metered_writing import MeteredWriting
from iapo_dspy.prompts.rewriters.rewrite_counts import RewriteCount
from iapo_dspy.prompts.rewriters.rewriter_names import named_rewriters
from iapo_dspy.prompts.rewriters.rewriting import Rewrites
from iapo_dspy.sampling.ledger.ledger import Ledger, LedgerPort, NullLedger, fingerprint_of
from iapo_dspy.sampling.ledger.records import SpentRecord
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter, Spent
from iapo_dspy.scoring.comparisons import PositionBias
from iapo_dspy.scoring.failures import FailureReport
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.types import FloatArray, Observations, Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The findings of a run that has ended.

    Attributes:
        plan: The run, with the prompts that were looked at.
        outcome: Estimates and policy over these prompts, with stopping rules.
        strategy: The strategy with the scales that it has learnt from the first round.
        spent: Everything that the run took, also in earlier processes.
        failures: Failed completions of these prompts.
        outage: The provider that was down for too long; None where none was.
        unjudged: Completions without a score, because their judge did not fit the budget.
        output_tokens: Mean output tokens of a completion of each prompt [P].
        verdict: Why the run ended before its budget did, where all scores were equal.
        gains: Gains of the written prompts that were best, by preference; none where none was written.
        bias: How judges that compare take places, by the column of their scores.
        rewrites: What each rewriter made of its queries, by its words.
    """

    plan: Plan
    outcome: Outcome
    strategy: Strategy
    spent: Spent
    failures: FailureReport
    unjudged: int
    outage: str | None
    output_tokens: FloatArray
    verdict: str | None
    gains: tuple[ConfirmedGain | None, ...]
    bias: Mapping[str, PositionBias]
    rewrites: Mapping[str, RewriteCount]


def draw(plan: Plan, watch: RunWatch) -> Findings:
    """Run the algorithm of a plan on its LMs. Every completion is in the ledger before it is used.

    Args:
        plan: The run.
        watch: Is told how it goes.

    Raises:
        BudgetTooSmall: The budget does not pay for one round.
        MostlyUnreadable: Most completions of every prompt cannot be read.
        TooManyErrors: More completions failed than `max_errors` allows, or none has worked at all.
        ProviderDown: A provider was down for too long before anything was known.
        BatchJobFailed: A batch job was refused or cancelled as a whole, or does not end.
        LedgerError: The run's directory cannot be used.
        KeyboardInterrupt: Ctrl-C.
    """
    settings = plan.settings
    check_pays(plan)
    with ExitStack() as stack:
        id_of = prompt_ids(plan)
        ledger, restored = _ledger(plan, id_of, watch)
        stack.callback(ledger.close)
        environment: LiveEnvironment | None = None
        try:
            given = len(plan.held_out)
            plan = with_earlier(plan, ledger.proposals, {prompt for prompt, _ in ledger.stored})
            if left := given - len(plan.held_out):
                logger.warning(
                    "%d of the %d examples of the valset were read by the writers of prompts in earlier runs of %s. "
                    "A prompt may hold their answers, so they are left out: the arms are measured on %d examples%s.",
                    left, given, settings.log_dir, given - left, "" if given > left else " of the trainset instead",
                )  # fmt: skip
            id_of = prompt_ids(plan)
            if ledger.about is not None and "unit" not in ledger.about:  # of an older version: costs and pulls stay
                plan = replace(plan, unit=None, as_it_is=None, older=True)
            starts_from_evidence = takes_all(plan)
            if starts_from_evidence:
                plan = _beside_evidence(plan, ledger, id_of)
            elif ledger.has_unit:
                plan = plan.without_student()
            meter = Meter(
                settings.budget,
                spent=_spent_before(ledger.spent),
                others=ledger.others,
                stored=sum(map(len, ledger.own.values())),
            )
            watch.spent = lambda: meter.spent
            watch.tell(_started(plan, restored))
            sampler = Sampler(
                max_concurrency=settings.num_threads,
                meter=meter,
                seed=settings.seed,
                rollout_timeout=settings.rollout_timeout,
                outage_patience=settings.outage_patience,
                prices=settings.cost_unit.prices,
            )
            tries = writing = None
            if plan.writing is not None:
                tries, writing = Tries(plan.writing.read), MeteredWriting(plan.writing.lm, sampler, ledger)
            rewrites = Rewrites(sampler, ledger)
            prompts = LivePrompts(
                plan.prompts, plan.pipeline, plan.as_it_is, id_of=id_of, room=plan.room, rewrites=rewrites
            )
            environment = LiveEnvironment(
                prompts=prompts,
                examples=plan.examples + plan.held_out,
                strategy=plan.strategy,
                metric=settings.metric,
                sampler=sampler,
                meter=meter,
                ledger=ledger,
                max_errors=settings.max_errors,
                max_unreadable=None if plan.recorded else settings.max_unreadable,
                progress=watch.tell,
                cost=settings.cost_unit,
                unit=plan.unit,
                batch=settings.batch,
                equal=None
                if plan.recorded
                else EqualScores(plan.strategy, plan.room, len(plan.examples), doubtful=plan.doubtful),
                patient=plan.recorded,
                stored_only=starts_from_evidence and ledger.answered,
                tries=tries,
                adapters=settings.adapters,
                rewrites=rewrites,
                student=plan.student.module,
                around=None if plan.pipeline is None else plan.pipeline.outer,
            )
            stack.callback(environment.close, finished=False)
            rounds = Rounds(watch, meter, environment, resumed=restored > 0)
            if starts_from_evidence:
                plan = plan.knowing(environment.recall(len(plan.prompts), len(plan.examples)))
            plan = planned(plan, environment, meter, ledger)
            nursery = Nursery(plan, environment, prompts, tries, writing, told=rounds.wrote)
            outcome = drive(rounds.of(plan), environment, more=nursery.answer)
            plan = nursery.plan.drawn(outcome)
            outcome, gains = _settled(plan, outcome, environment)
            environment.close(finished=environment.verdict is None)
        except KeyboardInterrupt:
            watch.close()
            jobs = environment.running_jobs if environment is not None else ()
            _warn_of_the_end(settings, watch.spent().completions, jobs)
            raise
    failures, tokens = environment.failures, environment.output_tokens
    drawn = np.arange(len(plan.prompts)) if outcome.prompts is None else outcome.prompts
    failures, tokens = failures.only(drawn.tolist()), tokens[drawn]
    return Findings(
        plan=plan,
        outcome=outcome,
        strategy=environment.strategy,
        spent=meter.spent + Spent(completions=meter.stored),
        failures=failures,
        unjudged=environment.unjudged,
        outage=environment.outage,
        output_tokens=tokens,
        verdict=environment.verdict,
        gains=gains,
        bias=environment.bias,
        rewrites={
            name.words: RewriteCount.of(rewriter, environment.rewrites.found.get(rewriter.digest, ()))
            for rewriter, name in zip(settings.rewriters, named_rewriters(settings.rewriters), strict=True)
        },
    )


def _started(plan: Plan, restored: int) -> RunStarted:
    settings = plan.settings
    return RunStarted(
        preferences=tuple(p.name or "" for p in settings.preferences),
        prompts=len(plan.prompts),
        examples=len(plan.examples),
        max_n=settings.max_n,
        completions=settings.budget.completions,
        usd=settings.budget.usd,
        restored=restored,
        log_dir=str(settings.log_dir) if settings.log_dir is not None else None,
        settings=settings.to_dict(),
    )


def _ledger(plan: Plan, id_of: Callable[[int], str], watch: RunWatch) -> tuple[LedgerPort, int]:
    """Open the run's ledger, and say how much of it serves the run: so many completions at most."""
    directory, facts, total = plan.settings.log_dir, facts_of(plan), plan.completions
    if directory is None:
        return NullLedger(), 0
    settings = {**facts, "about": about(plan, id_of)}
    older = partial(older_of, plan, id_of)
    ledger = Ledger.open(directory, fingerprint=fingerprint_of(facts), settings=settings, older=older)
    plan = with_earlier(plan, ledger.written, {prompt for prompt, _ in ledger.stored})
    began = ledger.about is not None
    found = serving(plan, ledger.stored, prompt_ids(plan), has_unit=ledger.has_unit, began=began)
    if found.restored:
        of = "" if total is None or found.restored > total else f" of {total:,}"
        rest = f" (others do not serve this run: {found.rest})" if found.rest else ""
        most = "" if takes_all(plan) else "at most "
        watch.say(f"restored {most}{found.restored:,}{of} completions{rest}")
    return ledger, found.restored


def _beside_evidence(plan: Plan, ledger: LedgerPort, id_of: Callable[[int], str]) -> Plan:
    """Return the plan without completions that measure the student, where that is known or cannot be paid.

    Raises:
        BudgetTooSmall: The budget does not reach beyond what is known already to a completion of each new candidate.
    """
    queries = about(plan, id_of)["queries"]
    held_out = queries[len(plan.examples) :]

    def count(prompt: int, queries: Sequence[str]) -> int:
        return sum(len(ledger.known.get((id_of(prompt), x), ())) for x in queries)

    counts = [count(p, queries[: len(plan.examples)]) for p in range(len(plan.prompts))]
    known, new, total = sum(counts), counts.count(0), plan.completions
    if known and new and total is not None and total - known < new:
        raise BudgetTooSmall(
            f"{shown_budget(plan.settings.budget)}: {known:,} completions are in {plan.settings.log_dir} already. "
            f"This leaves {max(total - known, 0):,} for {new} of the {len(counts)} prompts that have none. At least "
            f"Budget(completions={known + new:_}) looks at each of them once.",
            given=total,
            least=known + new,
        )
    plan = replace(plan, known_held_out=sum(count(p, held_out) for p in range(len(plan.prompts))))
    if known and total is not None and ledger.answered:  # only how completions are scored has changed
        total = known + plan.known_held_out
        plan = plan.of(total)
    if plan.unit is None or not known:
        return plan.without_student() if ledger.has_unit else plan
    left = plan.unit.draws if total is None else min(plan.unit.draws, total - known - new)
    return plan.without_student(0 if ledger.has_unit or ledger.answered else max(left, 0))


def _spent_before(record: SpentRecord) -> Spent:
    """Return what earlier processes of the run took. Requests in flight when one of them was killed may be billed."""
    if record.reserved.usd or record.reserved.tokens:
        logger.warning(
            "The process before was killed with requests in flight; their upper bounds, %d tokens and %.6g dollars, "
            "count as spent.", record.reserved.tokens, record.reserved.usd,
        )  # fmt: skip
    return record.spent + record.reserved


def _settled(
    plan: Plan, outcome: Outcome, environment: LiveEnvironment
) -> tuple[Outcome, tuple[ConfirmedGain | None, ...]]:
    """Give arms their stops, take written prompts back whose gain is luck, combine prompts, and measure the choice.

    Half of what is kept for measuring confirms written prompts, so that neither decides about its own measurement.
    """
    problem, writing, mode = plan.problem, plan.writing, plan.settings.stopping
    if mode is not None:
        outcome = with_stops(problem, outcome, mode=mode)
    kept, gains = plan.reserved if outcome.complete else 0, tuple[ConfirmedGain | None, ...]()
    if writing is not None and writing.prompts:
        kept, outcome, gains = _confirmed(plan, writing, outcome, kept, environment)
    unsure = doubted(writing.prompts if writing else (), gains)
    if plan.settings.combines:
        outcome = with_compounds(problem, outcome, left_out=unsure)
    outcome = with_promises(problem, outcome, left_out=unsure, compound=plan.settings.combines)
    pulls = plan.measuring(outcome, kept) if environment.verdict is None else plan.measuring(outcome, 0)
    if not len(pulls) and kept and environment.verdict is None:
        logger.warning(
            "The part of the budget that measures the chosen arms, %d completions, does not pay for one call of them: "
            "their utilities are those that they were chosen by, and tend to be too high. Give a larger budget.",
            kept,
        )
    if not len(pulls):
        return outcome, gains
    world: Environment = environment if outcome.prompts is None else Some(environment, prompts=outcome.prompts)
    return measured(problem, outcome, world.pull(pulls)), gains


def _confirmed(
    plan: Plan, writing: Writing, outcome: Outcome, kept: int, environment: LiveEnvironment
) -> tuple[int, Outcome, tuple[ConfirmedGain | None, ...]]:
    """Compare written winners with the best prompt that was given, by further draws on questions that nobody read.

    Returns:
        What is kept for measuring, the outcome without prompts whose gain is luck, and the gains [C].
    """
    problem, mode = plan.problem, plan.settings.stopping
    given = among_given(problem, plan.search, outcome, min(writing.prompts))
    if given is None:
        return kept, outcome, ()
    n_given = given.q.shape[1]
    if mode is not None:
        given = with_stops(first_of(problem, n_given), given, mode=mode)
    pairs = [pair for pair in zip(outcome.policy.arms, given.policy.arms, strict=True) if pair[0].prompt >= n_given]
    more: list[Observations] = []
    if pairs and environment.verdict is None:
        compared = replace(outcome, policy=Policy(tuple(arm for pair in pairs for arm in pair)))
        pulls = plan.confirming(compared, kept // 2)
        if len(pulls):
            more, kept = [environment.pull(pulls)], kept - pulls.completions
    read = np.array(sorted({*writing.read, *writing.known}), dtype=np.int64)
    found = confirm(problem, plan.search, outcome, given=given, read=read, more=more, stopping=mode)
    spent = sum(o.pulls.completions for o in more)
    return kept, replace(found.outcome, spent=outcome.spent + spent), found.gains


def _warn_of_the_end(settings: Settings, completions: int, jobs: tuple[str, ...]) -> None:
    """Say what is kept of a run that the user stops."""
    kept = (
        f"They are kept in {settings.log_dir}; compile again to go on."
        if settings.log_dir is not None
        else "Nothing has kept them: with log_dir='runs/...' a run can go on where it was stopped."
    )
    logger.warning("Stopped by the user after %d completions. %s", completions, kept)
    if jobs:
        logger.warning(
            "The batch jobs %s go on at the provider, and are paid for. Compile again to pick them up, or stop them: "
            "iapo_dspy.ledger.cancel_batches(%r).", ", ".join(jobs), str(settings.log_dir),
        )  # fmt: skip
