"""A run before its first LM call: everything that can be checked is checked here, and its algorithm can be started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import dspy
import numpy as np

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.coordinate import Coordinate
from iapo_dspy.bandit.algorithms.generations import Generations
from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.measurement import SHARE, measuring_pulls, reserved
from iapo_dspy.bandit.named import has_intervals, short_name
from iapo_dspy.bandit.outcome import Outcome, Run, SearchRun, Wish
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.live.student_unit import UnitPlan
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.optimizer.checks import (
    check_adapters,
    check_around,
    check_judge,
    check_other,
    check_predictors,
    check_program,
    check_reserved_fields,
    check_resources,
    check_rewriters,
    check_sampling,
    check_trainset,
    check_valset,
    other_programs,
)
from iapo_dspy.optimizer.pipelines import Pipeline, inner_inputs
from iapo_dspy.optimizer.probe import probe
from iapo_dspy.optimizer.settings import Settings, is_auto
from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.prompts.candidates import is_options
from iapo_dspy.prompts.combinations import PromptList, PromptSet, prompt_set, student_prompt
from iapo_dspy.prompts.copies import clone
from iapo_dspy.prompts.lms import combine
from iapo_dspy.prompts.prompt import Prompt, prompt_states, shared_parts
from iapo_dspy.prompts.proposers.mix import Mix, default_proposers
from iapo_dspy.prompts.proposers.port import Proposer
from iapo_dspy.prompts.proposers.written import WrittenPrompt
from iapo_dspy.prompts.rewriters.rewriter import fitted_rewriters
from iapo_dspy.prompts.student import Student
from iapo_dspy.sampling.batches import batch_sampler
from iapo_dspy.sampling.spending.pricing import Price, check_budget, price_of
from iapo_dspy.scoring.comparisons import comparing
from iapo_dspy.scoring.inside_pipeline import probe_metric
from iapo_dspy.scoring.strategies import Strategy, bounds_of, columns_of, fitted
from iapo_dspy.types import Contexts, IntArray, Observations, Pulls

_UNIT_QUERIES = 16  # questions on which the student is measured at most
_SIZE = 8  # prompts of a generation
_READ, _READ_SHARE = 32, 4  # training questions that writers may read: so many, and one in so many, at most
_UNIT_SHARE = 20  # one in so many completions at most measures a student that is not a candidate


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a run gets prompts beside those that it was given.

    Attributes:
        proposer: Writes them.
        lm: The LM that it asks.
        read: The training questions that it may read, by position. Those that are left confirm its prompts.
        known: Those that the writers of earlier runs have read, whose prompts this run knows.
        each: Prompts that one candidate makes: one for each choice of LMs, decoding, adapter and rewriter.
        most: Prompts that may be written in all.
        prompts: The prompts that were written, by number in the prompt set; those of earlier runs first.
    """

    proposer: Proposer
    lm: dspy.BaseLM
    read: tuple[int, ...]
    each: int
    most: int
    prompts: Mapping[int, WrittenPrompt] = field(default_factory=dict)
    known: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has been checked: nothing in it has been paid for yet.

    Attributes:
        settings: The optimizer's.
        student: The program to optimize, as given; of a pipeline, the inner module.
        prompts: The prompt set P; `Combinations` are searched one coordinate at a time, and made as far as needed.
        examples: The training set X.
        held_out: The validation set: queries that have no part in the choice.
        problem: The bandit problem.
        strategy: The strategy of the settings, fitted to the student's output fields.
        unit: How the student is measured, whose average call is the unit of `Preference.cost`; None leaves it to the
            algorithm, which takes the average of all prompts.
        as_it_is: The student as a prompt, where it is drawn for the unit only.
        search: The algorithm that runs: for combinations, one that searches them coordinate by coordinate.
        judged: Whether the metric or an objective asks LMs.
        doubtful: Whether the metric gave its lowest value to the labels themselves.
        pipeline: The program around the student, where that is a module inside of a pipeline.
        completions: Completions of the algorithm and of the validation set; None until the lengths of completions tell
            how many the budget pays for.
        known_held_out: Completions on the validation set that others have paid for.
        older: Whether a version began the run that measured the chosen arms on a validation set only.
        writing: How the run gets further prompts; None where it has all of them from the beginning.
        recorded: Whether the completions are drawn for a recording, so that nothing but the budget and errors ends it.
    """

    settings: Settings
    student: Student
    prompts: PromptSet
    examples: tuple[dspy.Example, ...]
    held_out: tuple[dspy.Example, ...]
    problem: Problem
    strategy: Strategy
    search: Algorithm | Generations
    unit: UnitPlan | None = None
    as_it_is: Prompt | None = None
    judged: bool = False
    doubtful: bool = False
    pipeline: Pipeline | None = None
    completions: int | None = None
    known_held_out: int = 0
    older: bool = False
    writing: Writing | None = None
    recorded: bool = False

    @property
    def room(self) -> int:
        """How many prompts there may be in the end."""
        return len(self.prompts) + (0 if self.writing is None else self.writing.most - len(self.writing.prompts))

    def grown(self, prompts: Sequence[Prompt], written: Sequence[WrittenPrompt]) -> Plan:
        """Return the plan with prompts that were written, behind the others."""
        assert self.writing is not None
        first, every = len(self.prompts), PromptList((*self.prompts, *prompts))
        known = {**self.writing.prompts, **{first + i: made for i, made in enumerate(written)}}
        parent = [known[i].parents[0] if i in known and known[i].parents else -1 for i in range(len(every))]
        problem = replace(
            self.problem,
            n_prompts=len(every),
            parts=shared_parts(prompt_states(every)),
            parent=np.array(parent, dtype=np.int64),
        )
        return replace(self, prompts=every, problem=problem, writing=replace(self.writing, prompts=known))

    def of(self, completions: int) -> Plan:
        """Return the plan for so many completions."""
        return replace(self, completions=completions)

    def knowing(self, known: Observations | None) -> Plan:
        """Return the plan of a run that starts from what others have paid for."""
        return replace(self, problem=replace(self.problem, known=known))

    def without_student(self, draws: int = 0) -> Plan:
        """Return the plan with so many completions at most that measure the student only."""
        if self.unit is None or draws >= self.unit.draws:
            return self
        unit = replace(self.unit, draws=draws)
        return replace(self, unit=unit, as_it_is=self.as_it_is if draws else None)

    def drawn(self, outcome: Outcome) -> Plan:
        """Return the plan with the prompts that a run has looked at, where it did not look at all of them."""
        if outcome.prompts is None:
            return self
        prompts = PromptList(self.prompts[i] for i in outcome.prompts.tolist())
        return replace(self, prompts=prompts, problem=replace(self.problem, n_prompts=len(prompts)))

    def price_of(self, lm: dspy.BaseLM) -> Price | None:
        """Return the price of an LM's completions in this run; None where it is not known."""
        prices, batch = self.settings.cost_unit.prices, self.settings.batch
        return price_of(lm, prices) if batch is None else batch.price_of(lm, prices)

    def start(self) -> Run | SearchRun:
        """Return the algorithm's generator.

        Raises:
            BudgetTooSmall: The algorithm needs a larger budget.
        """
        budget = (self.completions or 0) - self.reserved - self._apart
        return self.search.start(self.problem, budget=budget, seed=self.settings.seed)

    def asked_of(self, prompt: int) -> set[int]:
        """Return the questions that the algorithm asks a prompt in its first round."""
        first = self.first_pulls()
        return set() if first is None else set(first.query[first.prompt == prompt].tolist())

    def first_pulls(self) -> Pulls | None:
        """Return the first batch of pulls, as they are if no prompt is written before; None where there are none."""
        run: Any = self.start()
        first = next(run, None)
        if isinstance(first, Wish):
            first = run.send(self.problem)
        run.close()
        return first if isinstance(first, Pulls) else None

    @property
    def _apart(self) -> int:
        """Completions that measure the student only, of a budget that counts them."""
        return self.unit.draws if self.unit is not None and self.settings.budget.completions is not None else 0

    @property
    def newcomers(self) -> int:
        """How many prompts have no completions, where others have some from earlier runs."""
        known = self.problem.known
        return 0 if known is None else self.problem.n_prompts - len(np.unique(known.pulls.prompt))

    @property
    def least(self) -> int:
        """The smallest budget that the algorithm accepts, in completions."""
        return self.search.least(self.problem)

    @property
    def reserved(self) -> int:
        """Completions that are kept to measure the chosen arms, on the validation set or else on the training set."""
        total = self.completions or 0
        if self.older:
            return total // SHARE if self.held_out else 0
        if not self.held_out and not has_intervals(self.search):
            return 0
        least = max(self.least, self.problem.n_known + self.newcomers) + self._apart
        queries = len(self.held_out or self.examples)
        return reserved(total, self.problem, least, queries, known=self.known_held_out)

    def measuring(self, outcome: Outcome, kept: int) -> Pulls:
        """Return the pulls that measure the chosen arms, of so many completions at most."""
        queries = np.arange(len(self.examples), len(self.examples) + len(self.held_out))
        if not self.held_out:
            queries = self._unread
            queries = queries if len(queries) else np.arange(len(self.examples))
        return measuring_pulls(self.problem, outcome, queries, kept, self.settings.seed, phases=1 if self.older else 2)

    def confirming(self, outcome: Outcome, kept: int) -> Pulls:
        """Return the pulls that compare arms on training questions that no writer has read."""
        return measuring_pulls(self.problem, outcome, self._unread, kept, self.settings.seed + 1)

    @property
    def _unread(self) -> IntArray:
        """Training questions that no writer has read: an instruction may hold the answers to others."""
        read = () if self.writing is None else (*self.writing.read, *self.writing.known)
        return np.setdiff1d(np.arange(len(self.examples)), np.array(read, dtype=np.int64))


def make_plan(
    settings: Settings,
    student: Any,
    trainset: Any,
    candidates: Any,
    *,
    valset: Any = None,
    inner: str | None = None,
) -> Plan:
    """Check a run from end to end without an LM call. Arguments are those of `IAPO.compile`.

    Raises:
        ConfigurationError: Something cannot work; a subclass where there is one.
        ScoreError: The metric or an objective returns no score for the first training example.
    """
    asked = candidates if candidates is not None else settings.candidates
    program, candidates = _unwrap(student, None if is_auto(asked) else asked)
    whole = Student(check_program(program))
    pipeline = Pipeline.of(program, inner) if inner is not None else None
    part = whole if pipeline is None else Student(pipeline.inner)
    check_predictors(part)
    examples = check_trainset(trainset, whole)
    held_out = check_valset(valset, examples, whole) if valset is not None else ()
    inputs = sorted(examples[0].inputs().keys()) if pipeline is None else inner_inputs(part.module)
    check_reserved_fields(part, inputs, settings.preference_field)
    if settings.rewriters:
        check_rewriters(settings)
        texts = [dict(example.inputs().items()) for example in (*examples, *held_out)]
        given = texts if pipeline is None else [dict.fromkeys(inputs, "")]  # what steps make is not known
        settings = replace(settings, rewriters=fitted_rewriters(settings.rewriters, inputs, given))
    settings.strategy.check_student(inputs, part.output_fields)
    strategy = fitted(settings.strategy, part.output_fields)
    writes = settings.writes or candidates is None or is_auto(asked)  # a compiled program has candidates: its arms
    candidates = [part.module] if candidates is None else candidates
    configurations = settings.lms, settings.adapters, settings.rewriters
    prompts = prompt_set(part, candidates, settings.decoding, settings.joint_limit, *configurations)
    others = other_programs(prompts.shown)
    for prompt in others:
        check_other(prompt, examples, None if pipeline is None else inputs, strategy, settings.preference_field)
    check_sampling(prompts.shown, settings)
    first = dict(examples[0].inputs().items())
    check_adapters(prompts.shown, first if pipeline is None else None, settings)
    if pipeline is not None:
        check_around(pipeline, settings)
    for prompt in prompts.shown if settings.batch is not None else ():
        batch_sampler.check_program(prompt.program, first, prompt.decoding, prompt.adapter)
    check_resources(prompts.shown, settings)
    if prompts.shape is not None and not isinstance(settings.algorithm, Auto):
        raise ConfigurationError(
            f"The candidates have {len(prompts):,} combinations, more than joint_limit={settings.joint_limit}, so that "
            f"they are searched one predictor at a time; algorithm={short_name(settings.algorithm)!r} cannot do that. "
            "Use algorithm='auto', or raise joint_limit to have it look at all of them."
        )
    problem = Problem(
        n_prompts=len(prompts),
        n_queries=len(examples),
        max_n=settings.max_n,
        contexts=Contexts.from_preferences(settings.preferences, strategy.objectives, columns_of(strategy)),
        aggregator=strategy.aggregator(),
        parts=shared_parts(prompt_states(prompts)) if prompts.shape is None else None,
    )
    plan = Plan(
        settings=settings,
        student=part,
        prompts=prompts,
        examples=examples,
        held_out=held_out,
        problem=problem,
        strategy=strategy,
        search=settings.algorithm if prompts.shape is None else Coordinate(prompts.shape),
        pipeline=pipeline,
        completions=settings.budget.completions,
    )
    plan = _with_unit(_with_writing(plan) if writes else plan)
    (plan if plan.completions is not None else plan.of(plan.least)).start().close()  # raises BudgetTooSmall
    for compares in comparing(strategy, settings.metric).values() if pipeline is None else ():
        compares.check_queries(examples + held_out)
    trial = strategy.probe if pipeline is None else partial(probe_metric, strategy)
    found = probe(trial, settings.metric, examples, whole, bounds_of(strategy)[0])
    for prompt in others if pipeline is None else ():
        probe(trial, settings.metric, examples, prompt.student, bounds_of(strategy)[0])
    counted = [check_judge(judge, settings) for judge in found.judges]
    return replace(plan, judged=any(counted), doubtful=found.doubtful)


def _with_writing(plan: Plan) -> Plan:
    """Return the plan of a run that also writes prompts.

    Raises:
        ConfigurationError: They cannot be written, or the algorithm does not take prompts that come later.
    """
    settings, given = plan.settings, "candidates='auto', prompt_model and proposers"
    if not isinstance(settings.algorithm, Auto):
        raise ConfigurationError(
            f"{given} need algorithm='auto', which takes prompts that come while it runs; got "
            f"{short_name(settings.algorithm)!r}. Give a list of candidates and neither prompt_model nor proposers."
        )
    if plan.prompts.shape is not None or settings.batch is not None:
        what = "batch=..." if settings.batch is not None else "more combinations of instructions than joint_limit"
        raise ConfigurationError(f"{given} write prompts while the run goes on, which does not work with {what}.")
    lm = settings.prompt_model or next(iter(plan.student.lms.values()))
    try:
        check_budget(lm, lm.kwargs, settings.budget, settings.cost_unit.prices)
    except ConfigurationError as error:
        raise ConfigurationError(f"The calls that write prompts count in the budget. {error}") from error
    servers = combine(settings.lms, list(plan.student.predictors), settings.decoding)
    ways = max(len(settings.adapters), 1) * (1 + len(settings.rewriters))
    each = sum(len(served.decodings) for served in servers) * ways
    size = max(_SIZE, 2 * each) // each * each
    order = np.random.default_rng([settings.seed, 0]).permutation(len(plan.examples))
    writing = Writing(
        proposer=_proposer(settings.proposers),
        lm=lm,
        read=tuple(sorted(order[: min(max(len(order) // _READ_SHARE, 1), _READ)].tolist())),
        each=each,
        most=size * settings.generations,
    )
    search = Generations(search=settings.algorithm, most=settings.generations, size=size)
    return replace(plan, search=search, writing=writing)


def _proposer(given: Sequence[Proposer] | None) -> Proposer:
    """Return the proposers as one; a mix that is given alone keeps its opening and its timeout."""
    if not given:
        return default_proposers()
    return given[0] if len(given) == 1 and isinstance(given[0], Mix) else Mix(proposers=given)


def _with_unit(plan: Plan) -> Plan:
    """Return the plan with the completions that measure the student: the algorithm's own, and a few more.

    They are on the questions that the default algorithm asks first, whichever candidates there are.
    """
    settings = plan.settings
    queries = np.random.default_rng([settings.seed, 0]).permutation(len(plan.examples))[:_UNIT_QUERIES].tolist()
    place, student = student_prompt(plan.prompts, plan.student, settings.decoding, settings.lms, settings.adapters)
    served = {id(lm) for prompt in plan.prompts.shown for lm in prompt.student.lms.values()}
    if place is None and not {id(p.lm or dspy.settings.lm) for p in student.student.predictors.values()} <= served:
        return plan  # every candidate brings an LM of its own: the student's has no part in the run
    total = settings.budget.completions
    if total is None:  # the completions that are drawn beforehand measure it
        unit = UnitPlan(prompt=place, queries=tuple(queries), draws=len(queries))
        return replace(plan, unit=unit, as_it_is=student)
    spare = max(min(total // _UNIT_SHARE, total - plan.reserved - plan.least), 0)
    found = replace(plan, unit=UnitPlan(prompt=place, queries=tuple(queries), draws=0))
    while True:  # fewer completions for the algorithm may ask the student about fewer questions
        known = found.asked_of(place) if place is not None else set()
        missing = min(sum(x not in known for x in queries), spare)
        if found.unit is None or missing <= found.unit.draws:
            break
        found = replace(found, unit=replace(found.unit, draws=missing), as_it_is=student)
    return found if place is not None or missing else plan


def _unwrap(student: Any, candidates: Any) -> tuple[Any, Any]:
    """Return the student within a compiled program, and its arms as the first candidates; others stay as they are."""
    # Without this, the arms would be drawn N times within each of N draws. Repeats are dropped where candidates are
    # read. Candidates that are given predictor by predictor are combined, and no arms stand beside them.
    if not isinstance(student, CompiledProgram) or not student.arms:
        return student, candidates
    inner = clone(student.policy.student)
    if is_options(candidates):
        return inner, candidates
    given = [] if candidates is None else [candidates]
    return inner, [*student.arms, *given]
