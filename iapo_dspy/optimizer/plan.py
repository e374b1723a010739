"""Everything that can be checked before the first LM call, and what a run needs afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.coordinate import Coordinate
from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.named import short_name
from iapo_dspy.bandit.outcome import Outcome, Run
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.optimizer.checks import (
    _check_around,
    _check_examples,
    _check_judge,
    _check_reserved_field,
    _check_resources,
    _check_sampling,
)
from iapo_dspy.optimizer.fingerprint import _digest, _examples_digest, _pipeline_settings, public_params
from iapo_dspy.optimizer.pipelines import Pipeline, inner_inputs
from iapo_dspy.optimizer.probe import _probe
from iapo_dspy.preferences import Preference
from iapo_dspy.prompts.combinations import Combinations, prompt_set
from iapo_dspy.prompts.lms import Decodings, LMs
from iapo_dspy.prompts.prompt import Prompt, input_fields, output_fields, program_state
from iapo_dspy.sampling.batches.batch_sampler import check_program
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.lm.bound import lms_of
from iapo_dspy.sampling.spending.budget import Budget
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.sampling.spending.pricing import Price, price_of
from iapo_dspy.scoring.inside_pipeline import MetricOnly
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.strategies import Strategy, columns_of, fitted
from iapo_dspy.types import Contexts

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has been checked: nothing in it has been paid for yet.

    Attributes:
        student: The program to optimize, as given; of a pipeline, the inner module.
        prompts: The prompt set P; `Combinations` are searched one coordinate at a time, and made as far as needed.
        examples: The training set X.
        held_out: The validation set: queries that have no part in the choice.
        problem: The bandit problem.
        strategy: How completions become one answer.
        algorithm: The algorithm, as given.
        search: The algorithm that runs: for combinations, one that searches them coordinate by coordinate.
        budget: The limits.
        cost: What completions cost.
        seed: Root of the random streams.
        judged: Whether the metric or an objective asks LMs.
        batch: How rounds are drawn by batch jobs; None sends ordinary requests.
        pipeline: What is around the student, where that is a module inside of a pipeline.
    """

    student: dspy.Module
    prompts: Sequence[Prompt]
    examples: tuple[dspy.Example, ...]
    held_out: tuple[dspy.Example, ...]
    problem: Problem
    strategy: Strategy
    algorithm: Algorithm
    search: Algorithm
    budget: Budget
    cost: Cost
    seed: int
    judged: bool = False
    batch: BatchAPI | None = None
    pipeline: Pipeline | None = None

    @property
    def shown(self) -> Sequence[Prompt]:
        """Prompts that have everything between them that can be chosen: all, unless they are too many to look at."""
        return self.prompts.star if isinstance(self.prompts, Combinations) else self.prompts

    def drawn(self, outcome: Outcome) -> Plan:
        """Return the plan with the prompts that a run has looked at, where it did not look at all of them."""
        if outcome.prompts is None:
            return self
        prompts = tuple(self.prompts[i] for i in outcome.prompts.tolist())
        return replace(self, prompts=prompts, problem=replace(self.problem, n_prompts=len(prompts)))

    def price_of(self, lm: dspy.BaseLM) -> Price | None:
        """Return what an LM's completions cost in this run; None where that is not known."""
        prices = self.cost.prices
        return price_of(lm, prices) if self.batch is None else self.batch.price_of(lm, prices)

    def start(self) -> Run:
        """Return the algorithm's generator.

        Raises:
            BudgetTooSmall: The budget does not reach for it.
        """
        return self.search.start(self.problem, budget=self.budget.completions - self.reserved, seed=self.seed)

    @property
    def reserved(self) -> int:
        """Completions that are kept for the validation set: a fifth of the budget, where there is one."""
        return self.budget.completions // HELD_OUT_SHARE if self.held_out else 0

    @property
    def least(self) -> int:
        """The smallest budget that the algorithm accepts, in completions."""
        return self.search.least(self.problem)

    def settings(self, strategy: Strategy, preferences: Sequence[Preference]) -> dict[str, Any]:
        """Return what the run depends on, part by part, as JSON data without secrets."""
        costs = {} if self.cost == Cost() else {"cost": self.cost.to_dict()}  # so that older ledgers can be resumed
        held_out = {"held_out": _examples_digest(self.held_out)} if self.held_out else {}
        return {
            **costs,
            **held_out,
            **({"shape": list(self.prompts.shape)} if isinstance(self.prompts, Combinations) else {}),
            **(_pipeline_settings(self.pipeline) if self.pipeline is not None else {}),
            "student": type(self.student).__qualname__,
            "prompts": _digest([[program_state(p.program), p.decoding.as_kwargs()] for p in self.shown]),
            "adapter": _digest(dspy.settings.adapter),
            "examples": _examples_digest(self.examples),
            "lms": _digest([[public_params(lm) for lm in lms_of(p.program)] for p in self.shown]),
            "strategy": strategy.to_dict(),
            "preferences": [p.to_dict() for p in preferences],
            "max_n": self.problem.max_n,
            "completions": self.budget.completions,
            "algorithm": short_name(self.algorithm),
            "seed": self.seed,
        }


def make_plan(
    student: Any,
    trainset: Any,
    candidates: Iterable[Any] | None,
    *,
    inner: str | None = None,
    joint_limit: int,
    valset: Any = None,
    strategy: Strategy,
    metric: Metric | None,
    preferences: Sequence[Preference],
    max_n: int,
    budget: Budget,
    cost: Cost,
    decodings: Decodings,
    algorithm: Algorithm,
    preference_field: str | None,
    seed: int,
    batch: BatchAPI | None = None,
    lms: Sequence[LMs] = (),
) -> Plan:
    """Check a run from end to end without an LM call.

    Raises:
        ConfigurationError: Anything that cannot work; a subclass where there is one.
        ScoreError: The metric or an objective returns no score for the first training example.
    """
    if not isinstance(student, dspy.Module):
        raise ConfigurationError(f"compile needs a program, a dspy.Module; got {student!r}.")
    pipeline = Pipeline.of(student, inner) if inner is not None else None
    whole, student = student, student if pipeline is None else pipeline.inner
    if not student.named_predictors():
        frozen = [name for name, m in student.named_sub_modules(dspy.Predict) if name != "self"]
        if frozen:
            raise ConfigurationError(
                f"The predictors of the student {type(student).__name__} belong to compiled sub-modules, which DSPy "
                f"freezes: {frozen}. Set `_compiled = False` on those sub-modules to let IAPO change them."
            )
        raise ConfigurationError(
            f"The student {type(student).__name__} has no predictors (dspy.Predict and the like), so there is no "
            "instruction to choose."
        )
    examples = _check_examples(trainset, whole)
    held_out = _check_examples(valset, whole, "valset") if valset is not None else ()
    inputs = sorted(examples[0].inputs().keys()) if pipeline is None else inner_inputs(student)
    _check_reserved_field(student, inputs, preference_field)
    outputs = output_fields(student)
    strategy.check_student(inputs, outputs)
    strategy = fitted(strategy, outputs)
    prompts = prompt_set(student, candidates, decodings, joint_limit, lms)
    some = prompts.star if isinstance(prompts, Combinations) else prompts
    _check_sampling(some, max_n, budget, cost)
    if pipeline is not None:
        _check_around(pipeline, budget, cost, batch)
    for prompt in some if batch is not None else ():
        check_program(prompt.program, dict(examples[0].inputs().items()), prompt.decoding)
    _check_resources(some, preferences, cost, batch)
    if isinstance(prompts, Combinations) and not isinstance(algorithm, Auto):
        raise ConfigurationError(
            f"The candidates have {len(prompts):,} combinations, more than joint_limit={joint_limit}, so that they are "
            f"searched one predictor at a time; algorithm={short_name(algorithm)!r} cannot do that. Use "
            "algorithm='auto', or raise joint_limit to have it look at all of them."
        )
    problem = Problem(
        n_prompts=len(prompts),
        n_queries=len(examples),
        max_n=max_n,
        contexts=Contexts.from_preferences(preferences, strategy.objectives, columns_of(strategy)),
        aggregator=strategy.aggregator(),
    )
    plan = Plan(
        student=student,
        prompts=prompts,
        examples=examples,
        held_out=held_out,
        problem=problem,
        strategy=strategy,
        algorithm=algorithm,
        search=Coordinate(prompts.shape) if isinstance(prompts, Combinations) else algorithm,
        budget=budget,
        cost=cost,
        seed=seed,
        batch=batch,
        pipeline=pipeline,
    )
    plan.start().close()  # raises BudgetTooSmall
    tried = strategy if pipeline is None else MetricOnly(strategy)
    judges = _probe(tried, metric, examples, output_fields(whole), is_open=input_fields(whole) is None)
    for judge in judges:
        _check_judge(judge, budget, cost)
    return replace(plan, judged=any(getattr(judge, "billed", True) for judge in judges))


HELD_OUT_SHARE = 5  # one in so many completions measures the chosen arms on the valset
