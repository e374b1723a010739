"""`IAPO`, the optimizer: a DSPy teleprompter that chooses prompt, decoding and N per preference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

import dspy
import numpy as np
from dspy.teleprompt import Teleprompter
from tqdm.auto import tqdm

from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.inference import HeldOut, held_out, held_out_pulls
from iapo_dspy.bandit.named import named
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.stops import StopMode, with_stops
from iapo_dspy.environments.live.environment import LiveEnvironment
from iapo_dspy.environments.live.progress import Progress
from iapo_dspy.environments.port import Environment, drive
from iapo_dspy.environments.wrappers import Some
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.optimizer.checks import check_preferences
from iapo_dspy.optimizer.mlflow import log_compile
from iapo_dspy.optimizer.pipelines import LivePrompts
from iapo_dspy.optimizer.plan import Plan, make_plan
from iapo_dspy.optimizer.quote import Quote, make_quote
from iapo_dspy.optimizer.recompile import unwrap
from iapo_dspy.optimizer.results import make_result
from iapo_dspy.optimizer.settings import params_of
from iapo_dspy.preferences import Preference
from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.program.policy import CompiledPolicy, PromptCosts, prompt_states, rounded
from iapo_dspy.prompts.lms import default_cost, read_decodings, read_distinct_lms
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.ledger.ledger import Ledger, LedgerPort, NullLedger, fingerprint_of
from iapo_dspy.sampling.ledger.records import SpentRecord
from iapo_dspy.sampling.rollouts.sampler import Sampler, check_timeout
from iapo_dspy.sampling.spending.budget import Budget, Meter, Spent
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.types import Decoding

logger = logging.getLogger(__name__)

__all__ = ["DEFAULT_PREFERENCES", "IAPO"]

DEFAULT_PREFERENCES = (
    Preference("quality", cost=0.0),
    Preference("balanced", cost=0.2),
    Preference("thrifty", cost=1.0),
)


class IAPO(Teleprompter):  # type: ignore[misc]  # dspy ships no types
    """Inference-aware prompt optimization: for each preference the best prompt and number of samples, in one budget.

    A fixed number of completions is spent on candidate prompts; what is drawn for one prompt serves every preference
    and every N. See `compile`.

    Args:
        strategy: How N completions become one answer: `MajorityVote(field)`, `WeightedVote(field, weight=...)`,
            `BestOfN(objectives=[...])`, `Mixed(vote, objectives=[...])`, `Mean(field, range=...)`, `Median`, or one of
            your own (docs/strategies.md).
        budget: `Budget(completions=..., usd=...)` or a number of completions. Never exceeded. LM calls of a metric or
            an objective (judges) count in tokens, dollars and seconds, not in completions; LMs that a metric holds
            itself are wrapped by `metered`.
        metric: `metric(example, prediction, trace=None) -> bool | float | dspy.Prediction(score=...)` in [0, 1].
            Needed by majority vote. It is tried once, on the first example's own labels, before anything is spent.
        preferences: What users of the compiled program may ask for. Default: quality, balanced and thrifty, at cost
            weights 0, 0.2 and 1.
        cost: What completions cost: `Cost()` counts output tokens, `Cost(usd=1)` dollars; see `Cost`. Default: output
            tokens, or dollars where `lms` have different prices.
        max_n: Largest number of completions per call, >= 1.
        candidates: The instructions to choose from; `compile` may be given others. Strings, dictionaries predictor ->
            instruction, or whole programs of the student's class with their demos. The student's own instruction
            takes part only if the student is one of them. Or a dictionary predictor -> list of instructions, all
            combinations of which are prompts; None in a list is the predictor's own instruction.
        decoding: Decoding configurations; every candidate is tried with each of them. Default: the LM's own. With
            `lms`, also a mapping from model strings to configurations of that model alone.
        lms: LMs to choose from: every candidate is tried with every one, and every decoding. An element is a `dspy.LM`,
            or a mapping from names of predictors to LMs. Default: the student's LMs, or the configured one.
        joint_limit: The largest number of such combinations (times LMs and decodings) that is looked at as a whole,
            >= 1. More are searched one predictor at a time, from the first instruction of each list on.
        algorithm: "auto", the default: shared queries, and predictions corrected by unbiased estimates. Or the paper's
            Algorithm 1, "psst"; "psst+k4" and the like add Top-K screening. Or another name of `bandit.named`, or an
            `Algorithm` such as `Auto(rounds=4)`.
        stopping: How deployed calls may stop before all N are drawn. "confidence", the default: in waves, by a rule
            that is tuned for each preference from the same draws, together with prompt and N. "exact": only where the
            rest cannot change the result. None: all N are drawn at once, in one request where the provider takes n.
        default_preference: Name of the preference that a call uses when it names none. Default: the first one.
        preference_field: Keyword by which calls choose their preference. None if the student has an input field of
            that name: then `program.with_preference(...)` chooses.
        seed: Root of every random choice of the optimizer, >= 0. The LM's own randomness is its own; give the LM
            an integer `seed` to have each request sent one that is derived from it.
        num_threads: LM requests in flight at most. Default: `dspy.settings.num_threads` where that was raised
            above DSPy's own default, else 64.
        rollout_timeout: Seconds that a program may work without asking an LM, > 0 or None. After them its rollout
            counts as a failed completion, so that a program that hangs does not hold up the run.
        max_errors: Stop when more completions than this fail with an error (exceptions, not unparseable text).
            Default: stop only where nothing has worked at all.
        log_dir: Directory of the run's ledger. A killed run that is started again with the same arguments repeats no
            paid call and ends with the same policy; only pulls in flight when it was killed are drawn again.
        batch: True, or `BatchAPI(...)`: draw each round by batch jobs at the provider, at half the price with most of
            them, within hours (docs/backends.md). For students of one predictor; needs `log_dir`, because a job is
            paid for whether or not this process lives to see its end.
        track_stats: Whether `program.detailed_results` is kept.
        progress: A progress bar, or a function that is called with a `Progress` instead.

    Raises:
        ConfigurationError: An argument that cannot be used; the message says which and why.
    """

    def __init__(
        self,
        *,
        strategy: Strategy,
        budget: Budget | int,
        metric: Metric | None = None,
        preferences: Sequence[Preference] = DEFAULT_PREFERENCES,
        cost: Cost | None = None,
        max_n: int = 16,
        candidates: Iterable[Any] | None = None,
        decoding: Decoding | Sequence[Decoding] | Mapping[str, Decoding | Sequence[Decoding]] | None = None,
        lms: Sequence[dspy.BaseLM | Mapping[str, dspy.BaseLM]] | None = None,
        joint_limit: int = 32,
        algorithm: str | Algorithm = "auto",
        stopping: StopMode | None = "confidence",
        default_preference: str | None = None,
        preference_field: str | None = "preference",
        seed: int = 0,
        num_threads: int | None = None,
        rollout_timeout: float | None = 600.0,
        max_errors: int | None = None,
        log_dir: str | Path | None = None,
        batch: BatchAPI | bool | None = None,
        track_stats: bool = True,
        progress: bool | Callable[[Progress], None] = True,
    ) -> None:
        super().__init__()
        if isinstance(strategy, type) or not isinstance(strategy, Strategy):
            raise ConfigurationError(
                f"strategy={strategy!r}: give MajorityVote('answer'), BestOfN(objectives=[...]) or another Strategy."
            )
        if metric is not None and not callable(metric):
            raise ConfigurationError(f"metric={metric!r}: give a function metric(example, prediction, trace=None).")
        strategy.check(metric=metric)
        _check_count("max_n", max_n, 1)
        _check_count("seed", seed, 0)
        _check_count("joint_limit", joint_limit, 1)
        if num_threads is not None:
            _check_count("num_threads", num_threads, 1)
        if max_errors is not None:
            _check_count("max_errors", max_errors, 0)
        check_timeout(rollout_timeout)
        if preference_field is not None and not (isinstance(preference_field, str) and preference_field.isidentifier()):
            raise ConfigurationError(f"preference_field={preference_field!r}: give a keyword, or None.")
        named(algorithm)
        if stopping not in ("confidence", "exact", None):
            raise ConfigurationError(
                f'stopping={stopping!r}: give "confidence", "exact", or None to draw all N at once.'
            )
        self.stopping = stopping
        self.batch = BatchAPI.of(batch)
        if self.batch is not None and log_dir is None:
            raise ConfigurationError(
                "batch=... needs log_dir='runs/...': a batch job takes hours and is paid for from the moment it is "
                "submitted; only the run's ledger knows it after this process has ended."
            )
        self.metric = metric
        self.strategy = strategy
        self.preferences = check_preferences(preferences, strategy.objectives)
        names = [str(p.name) for p in self.preferences]
        if default_preference is not None and default_preference not in names:
            raise ConfigurationError(f"default_preference={default_preference!r}: it must be one of {names}.")
        self.default_preference = default_preference or names[0]
        self.max_n = max_n
        self.budget = Budget.of(budget)
        if cost is not None and not isinstance(cost, Cost):
            raise ConfigurationError(f"cost={cost!r}: give a Cost, such as Cost(usd=1); preferences weigh it.")
        self.lms = read_distinct_lms(lms)
        self.cost = cost or default_cost(self.lms)
        if self.batch is not None and self.cost.seconds:
            raise ConfigurationError("batch=... measures no latency: leave seconds out of Cost(...), or batch=...")
        self.candidates = list(candidates) if isinstance(candidates, Iterator) else candidates
        self.decoding = read_decodings(decoding, self.lms)
        self.joint_limit = joint_limit
        self.algorithm = algorithm
        self.preference_field = preference_field
        self.seed = seed
        self.num_threads = num_threads
        self.rollout_timeout = rollout_timeout
        self.max_errors = max_errors
        self.log_dir = Path(log_dir) if log_dir is not None else None
        self.track_stats = track_stats
        self.progress = progress

    @overload
    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        candidates: Iterable[Any] | None = None,
        inner: None = None,
        **kwargs: Any,
    ) -> CompiledProgram: ...
    @overload
    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        candidates: Iterable[Any] | None = None,
        inner: str,
        **kwargs: Any,
    ) -> dspy.Module: ...
    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        candidates: Iterable[Any] | None = None,
        inner: str | None = None,
        **kwargs: Any,
    ) -> CompiledProgram | dspy.Module:
        """Find the best arm of every preference and return the program that knows them.

        Args:
            student: Any DSPy program with at least one predictor; a copy is compiled. Of a compiled program, it is the
                student within, with the arms as they are now as the first candidates.
            trainset: Examples with inputs (`.with_inputs(...)`) and, for majority vote, the labels of the metric.
            teacher: Not used; must be None.
            valset: Examples on which the chosen arms are measured, at the price of a fifth of the budget. They have
                no part in the choice, so that `detailed_results.policy[i].held_out` is free of the winner's curse.
            candidates: Candidates of this call instead of the optimizer's own.
            inner: Where the module is that is compiled, if the student is a pipeline around it, such as "generate" or
                "steps[0]". Candidates are that module's, and its completions are drawn and chosen from; the metric
                sees what the pipeline makes of each of them.
            **kwargs: None are known.

        Returns:
            The compiled program; with `inner`, a copy of the pipeline with the compiled program in the module's place.

        Raises:
            ConfigurationError: Something cannot work; raised before the first LM call.
            TooManyErrors: More completions failed than `max_errors` allows, or none has worked at all.
            BatchJobFailed: A batch job was refused or cancelled as a whole, or does not end.
            KeyboardInterrupt: Ctrl-C; what was paid for is in the ledger if there is a `log_dir`.
        """
        if kwargs or teacher is not None:
            unknown = sorted(kwargs) + (["teacher"] if teacher is not None else [])
            raise ConfigurationError(f"IAPO.compile does not know {unknown}; settings belong to IAPO(...).")
        plan = self._plan(student, trainset, candidates, valset, inner)
        with ExitStack() as stack:
            ledger = self._ledger(plan)
            stack.callback(ledger.close)
            meter = Meter(self.budget, spent=_spent_before(ledger.spent))
            sampler = Sampler(
                max_concurrency=self.num_threads,
                meter=meter,
                seed=self.seed,
                rollout_timeout=self.rollout_timeout,
                prices=self.cost.prices,
            )
            bar = stack.enter_context(_ProgressBar(self.progress, self.budget.completions))
            environment = LiveEnvironment(
                prompts=LivePrompts(plan.prompts, plan.pipeline),
                examples=plan.examples + plan.held_out,
                strategy=plan.strategy,
                metric=self.metric,
                sampler=sampler,
                meter=meter,
                ledger=ledger,
                max_errors=self.max_errors,
                progress=bar,
                cost=self.cost,
                batch=self.batch,
            )
            stack.callback(environment.close, finished=False)
            try:
                outcome = drive(plan.start(), environment)
                plan = plan.drawn(outcome)
                if self.stopping is not None:
                    outcome = with_stops(plan.problem, outcome, mode=self.stopping)
                held_out = self._held_out(plan, outcome, environment)
                environment.close(finished=True)
            except KeyboardInterrupt:
                kept = (
                    f"they are kept in {self.log_dir}; compile again to go on" if self.log_dir else "nothing kept them"
                )
                logger.warning("Stopped by the user after %d completions; %s.", meter.spent.completions, kept)
                if jobs := environment.running_jobs:
                    logger.warning(
                        "The batch jobs %s go on at the provider, and are paid for. Compile again to pick them up, or "
                        "stop them: iapo_dspy.cancel_batches(%r).", ", ".join(jobs), str(self.log_dir),
                    )  # fmt: skip
                raise
        return self._conclude(plan, outcome, environment, meter, held_out)

    def quote(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        candidates: Iterable[Any] | None = None,
        inner: str | None = None,
        output_tokens: float | Sequence[float] | None = None,
    ) -> Quote:
        """Say what `compile` would take at most and what it will probably take, without any LM call.

        Args:
            student: As for `compile`.
            trainset: As for `compile`.
            candidates: As for `compile`.
            inner: As for `compile`.
            output_tokens: Mean output tokens of a completion, one number or one for each prompt (candidate by
                candidate, each with every LM, each of these with every decoding). Without it, lengths are those of the
                ledger in `log_dir`, if any.

        Raises:
            ConfigurationError: What `compile` would refuse, this refuses too.
        """
        return make_quote(self._plan(student, trainset, candidates, inner=inner), output_tokens, self.log_dir)

    # -- parts of compile

    def _warn_of_caps(self, outcome: Outcome) -> None:
        """Say which preferences cannot be served; their calls raise, with what the cheapest arm takes."""
        if outcome.charges is None:
            return
        keeps = outcome.charges.keeps()
        for preference in (p for p, arms in zip(self.preferences, keeps, strict=True) if not arms.any()):
            logger.warning("No arm keeps the caps of %s: its calls will raise CapsTooTight.", preference)

    def _plan(
        self, student: Any, trainset: Any, candidates: Iterable[Any] | None, valset: Any = None, inner: Any = None
    ) -> Plan:
        student, candidates = unwrap(student, candidates if candidates is not None else self.candidates)
        return make_plan(
            student,
            trainset,
            candidates,
            inner=inner,
            joint_limit=self.joint_limit,
            valset=valset,
            strategy=self.strategy,
            metric=self.metric,
            preferences=self.preferences,
            max_n=self.max_n,
            budget=self.budget,
            cost=self.cost,
            decodings=self.decoding,
            lms=self.lms,
            algorithm=named(self.algorithm),
            preference_field=self.preference_field,
            seed=self.seed,
            batch=self.batch,
        )

    def _ledger(self, plan: Plan) -> LedgerPort:
        if self.log_dir is None:
            return NullLedger()
        settings = plan.settings(self.strategy, self.preferences)
        # What readers of the ledger need; it says nothing that the fingerprint does not depend on already.
        about = {
            "n_prompts": len(plan.prompts),
            "n_queries": len(plan.examples),
            "objectives": list(self.strategy.objectives),
            "labels": [p.label for p in plan.prompts] if plan.shown is plan.prompts else [],
        }
        fingerprint = fingerprint_of(settings)
        return Ledger.open(self.log_dir, fingerprint=fingerprint, settings={**settings, "about": about})

    def _held_out(self, plan: Plan, outcome: Outcome, environment: LiveEnvironment) -> tuple[HeldOut, ...] | None:
        """Measure the chosen arms on the validation set; None where there is none, or nothing is left to pay for it."""
        if not plan.held_out or not outcome.complete:
            return None
        queries = np.arange(len(plan.examples), len(plan.examples) + len(plan.held_out))
        pulls = held_out_pulls(outcome.policy.arms, queries, plan.reserved, self.seed)
        if not len(pulls):
            logger.warning(
                "A fifth of the budget, %d completions, does not pay for the chosen arms on one example of the valset.",
                plan.reserved,
            )
            return None
        world: Environment = environment if outcome.prompts is None else Some(environment, prompts=outcome.prompts)
        return held_out(plan.problem, outcome, world.pull(pulls))

    def _conclude(
        self,
        plan: Plan,
        outcome: Outcome,
        environment: LiveEnvironment,
        meter: Meter,
        held_out: tuple[HeldOut, ...] | None,
    ) -> CompiledProgram | dspy.Module:
        spent, failures, tokens = meter.spent, environment.failures, environment.output_tokens
        if outcome.prompts is not None:
            failures, tokens = failures.only(outcome.prompts.tolist()), tokens[outcome.prompts]
        if not outcome.complete:
            blind = [i for i, share in enumerate(failures.share) if share != share]
            if len(blind) == len(plan.prompts):
                raise BudgetTooSmall(
                    f"{self.budget} does not pay for a single completion and its score, so there is nothing to choose "
                    "by. Raise its tokens, dollars or seconds.", given=0, least=plan.least,
                )  # fmt: skip
            unjudged = environment.unjudged
            logger.warning(
                "A budget ended the run early, after %d of at most %d completions%s: the policy rests on %s "
                "observations per preference%s.", spent.completions, self.budget.completions,
                f" ({unjudged} of them without a score, for their judge did not fit)" if unjudged else "",
                outcome.evidence.tolist(), f", and the prompts {blind} were never tried" if blind else "",
            )  # fmt: skip
        if failures.total:
            logger.warning("%s", failures)
        self._warn_of_caps(outcome)
        evidence = rounded(outcome.observations)
        policy = CompiledPolicy(
            preferences=self.preferences,
            arms=outcome.policy.arms,
            default=self.default_preference,
            prompts=prompt_states(plan.prompts),
            max_n=self.max_n,
            n_queries=len(plan.examples),
            cost_scale=outcome.cost_scale,
            algorithm=plan.algorithm,
            stopping=self.stopping,
            strategy=environment.strategy.to_dict(),
            evidence=evidence,
            spent=spent.to_dict(),
            cost=self.cost,
            prompt_costs=PromptCosts.of(evidence, len(plan.prompts)),
        )
        program = CompiledProgram(
            plan.student,
            environment.strategy,
            policy,
            preference_field=self.preference_field,
            programs=[p.program for p in plan.prompts],
            lms=[p.lms for p in plan.prompts if p.lms] or None,
        )
        if self.track_stats:
            program.detailed_results = make_result(
                policy,
                environment.strategy,
                outcome,
                spent,
                failures,
                tokens,
                [p.program for p in plan.prompts],
                held_out,
                complete=outcome.complete,
            )
            log_compile(self.get_params(), program.detailed_results)
        if plan.pipeline is None:
            return program
        pipeline = plan.pipeline.deployed(program)
        pipeline.detailed_results = program.detailed_results
        return pipeline

    def get_params(self) -> dict[str, Any]:
        """Return the settings as plain JSON data, functions and programs by name: no key is among them."""
        return params_of(self)


def _spent_before(record: SpentRecord) -> Spent:
    """What earlier processes of the run took. What one of them had in flight when it was killed may be billed."""
    if record.reserved.usd or record.reserved.tokens:
        logger.warning(
            "The process before was killed with requests in flight; their upper bounds, %d tokens and %.6g dollars, "
            "count as spent.", record.reserved.tokens, record.reserved.usd,
        )  # fmt: skip
    return record.spent + record.reserved


class _ProgressBar:
    """A tqdm bar over the budget, or the user's own function."""

    def __init__(self, progress: bool | Callable[[Progress], None], total: int) -> None:
        self._callback = progress if callable(progress) else None
        self._bar = None if callable(progress) or not progress else tqdm(total=total, unit="completion", desc="IAPO")

    def __enter__(self) -> Callable[[Progress], None]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Show how far the run is."""
        if self._callback is not None:
            self._callback(progress)
        elif self._bar is not None:
            self._bar.update(progress.completions - self._bar.n)
            if progress.spent.usd or progress.waiting:
                usd = {"usd": f"{progress.spent.usd:.2f}"} if progress.spent.usd else {}
                waiting = {"batch": progress.waiting} if progress.waiting else {}
                self._bar.set_postfix({**usd, **waiting}, refresh=bool(waiting))


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r}: give a whole number >= {least}.")
