"""The findings of a run and their price: `program.detailed_results`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from iapo_dspy.bandit.confirmation import ConfirmedGain
from iapo_dspy.bandit.inference import WANTED, Z95, Certainty, Deceptive, choices, deceptive_prompts
from iapo_dspy.bandit.named import Unknown
from iapo_dspy.bandit.outcome import HeldOut, Outcome, Round
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import RESOURCES, Preference
from iapo_dspy.program.evidence.columns import numbers
from iapo_dspy.program.evidence.columns import written as as_text
from iapo_dspy.program.evidence.reprice import prices_of
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.prompts.lms import models_of
from iapo_dspy.prompts.proposers.written import WrittenPrompt
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.scoring.failures import FailureReport
from iapo_dspy.scoring.strategies import Strategy, columns_of
from iapo_dspy.types import Arm, Contexts, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class PreferenceResult:
    """The arm of one preference with its training estimates.

    Attributes:
        preference: The preference.
        arm: Its prompt and N.
        label: The prompt in words.
        model: Model string of its LM; one for each predictor where they differ.
        utility: Utility (eq. 3) as measured after the choice, by completions that had no part in it. Where the budget
            does not pay for that (`choice.measured` says so), and for `psst`, it is the estimate that the arm was
            chosen by; the best of many estimates is optimistic.
        reward: Task reward without the cost, likewise.
        completions: Expected completions of a call: N, or fewer where it stops early.
        waves: Expected waves of a call, >= 1.
        tokens: Output tokens per query: `completions` times the mean of the prompt's completions.
        cost: Estimated cost per query in the run's unit (`CompileResult.cost`).
        evidence: Number of observations behind the estimates: queries on which the prompt was drawn; for `psst`,
            groups of N completions.
        choice: How sure the choice is: the interval of the utility, the runner-up, the probability of being best. None
            for `psst`, whose estimates have no standard errors.
        held_out: The utility on the validation set; None without one.
        keeps_caps: Whether the arm keeps the preference's caps; where no arm does, calls raise `CapsTooTight`.
        gain: Where a prompt that the run wrote was the best one: its gain over the best prompt that was given, and how
            much of it is left on training questions that no writer has read. Where nothing is, `arm` has the given one.
    """

    preference: Preference
    arm: Arm
    label: str
    utility: float
    reward: float
    completions: float
    waves: float
    tokens: float
    cost: float
    evidence: int
    model: str | tuple[str, ...]
    choice: Certainty | None = None
    held_out: HeldOut | None = None
    keeps_caps: bool = True
    gain: ConfirmedGain | None = None


@dataclass(frozen=True, kw_only=True)
class CompileResult:
    """The results of one `compile`.

    Attributes:
        policy: One row per preference.
        labels: The prompts in words [P].
        models: Model strings of their LMs [P], each as in `policy`. A program that was saved before version 5 of the
            format does not know them: then those of the LMs that it would run on now.
        q: Estimated utility [C, P, N], NaN where there is no evidence.
        reward: Estimated task reward [C, P, N].
        tokens: Output tokens per query [P, N]: N times the mean of the prompt's completions.
        costs: Estimated cost per query [P, N], in the unit of `cost`, NaN where there is no evidence.
        count: Queries with at least n completions of the prompt [P, N]; for `psst`, blocks behind each estimate.
        standard_error: Standard error of `reward` [C, P, N]; None for `psst`. With `reward` it makes each prompt's
            curve of accuracy over N and its band: see `curve`.
        deceptive: Prompts that win on single completions and lose where completions are aggregated; None for `psst`.
        cost: The unit of costs.
        cost_scale: Utility of one unit of `cost` (an output token by default) at cost weight 1.
        spent: Completions, tokens, dollars and seconds that the run took.
        failures: Failed completions; None for a program that was saved before version 5 of the format.
        rounds: The rounds of the algorithm, and the one that measured the chosen arms; None likewise.
        complete: False where a budget or an outage ended the run early; None likewise.
        outage: The provider that was down for too long, and since when; None where none was.
        written: Prompt -> where it comes from, for the prompts that the run wrote.
        compiled: The policy with all that it rests on; it solves other preferences.
        strategy: The strategy.
        programs: Makes `candidate_programs`.
    """

    policy: tuple[PreferenceResult, ...]
    labels: tuple[str, ...]
    models: tuple[str | tuple[str, ...], ...]
    q: FloatArray = field(repr=False)
    reward: FloatArray = field(repr=False)
    tokens: FloatArray = field(repr=False)
    costs: FloatArray = field(repr=False)
    count: IntArray = field(repr=False)
    standard_error: FloatArray | None = field(repr=False)
    deceptive: tuple[Deceptive, ...] | None
    cost: Cost
    cost_scale: float
    spent: Spent
    failures: FailureReport | None
    rounds: tuple[Round, ...] | None = field(repr=False)
    complete: bool | None
    outage: str | None
    written: Mapping[int, WrittenPrompt] = field(repr=False)
    compiled: CompiledPolicy = field(repr=False)
    strategy: Strategy = field(repr=False)
    programs: Callable[[], tuple[dspy.Module, ...]] = field(repr=False)

    @functools.cached_property
    def candidate_programs(self) -> tuple[dspy.Module, ...]:
        """One program per prompt, in order."""
        return self.programs()

    @property
    def candidate_scores(self) -> tuple[float, ...]:
        """The utility of each prompt at its best N, the mean over preferences [P]; NaN without evidence."""
        best = np.where(np.isnan(self.q), -np.inf, self.q).max(axis=2).mean(axis=0)
        return tuple(float(u) if np.isfinite(u) else math.nan for u in best)

    def reprice(
        self, usd_per_million: tuple[float, float] | Mapping[str, tuple[float, float]], *, model: str | None = None
    ) -> CompileResult:
        """Return the results at other prices of tokens, solved from the stored evidence without LM calls.

        The exchange rate between dollars and utility does not change. `CompiledProgram.reprice` changes a program.

        Args:
            usd_per_million: Dollars per million tokens (input, output), or a mapping from model strings to such pairs.
            model: Model string of the LM that was configured while compiling; a mapping needs it for predictors without
                an LM of their own.

        Raises:
            ConfigurationError: A price is missing, or the evidence does not say how many tokens were used.
        """
        cost = self.cost.repriced(usd_per_million)
        prices = prices_of(self.compiled.prompts, self.candidate_programs, cost, model)
        return self.solved_anew(*self.compiled.repriced(cost, prices, self.strategy))

    def solved_anew(self, policy: CompiledPolicy, outcome: Outcome) -> CompileResult:
        """Return the results of the same run with another policy: completions, failures and rounds stay."""
        return make_result(
            policy,
            self.strategy,
            outcome,
            self.tokens[:, 0],
            self.models,
            self.programs,
            failures=self.failures,
            rounds=self.rounds,
            complete=self.complete,
            outage=self.outage,
            written=self.written,
        )

    @property
    def too_little(self) -> tuple[str, ...]:
        """Preferences whose utility rests on too little to act on, with about how much would do, in words."""
        found = (_too_little(row, self.spent.completions, self.compiled.n_queries) for row in self.policy)
        return tuple(text for text in found if text is not None)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompileResult:
        """Return itself: results belong to a run, not to a copy of its program."""
        return self

    def curve(self, prompt: int, preference: str | None = None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return a prompt's task reward at N = 1 .. max_n with its 95 % band.

        Args:
            prompt: Position in `labels`.
            preference: Its weights of the objectives count; None takes the first preference.

        Returns:
            Estimate, lower and upper end [N] each; the ends are NaN for `psst`.

        Raises:
            ConfigurationError: The prompt or the preference does not exist.
        """
        names = [r.preference.name for r in self.policy]
        if (preference is not None and preference not in names) or not 0 <= prompt < len(self.labels):
            raise ConfigurationError(
                f"curve({prompt!r}, {preference!r}): there are {len(self.labels)} prompts and the preferences {names}."
            )
        context = names.index(preference) if preference is not None else 0
        middle = self.reward[context, prompt]
        error = np.full(len(middle), np.nan) if self.standard_error is None else self.standard_error[context, prompt]
        return middle, middle - Z95 * error, middle + Z95 * error

    def __str__(self) -> str:
        """Return a small table."""
        plain = self.cost.unit == Cost().unit
        rows = [
            f"{r.preference.name or '':<12} N={r.arm.n:<3} {_drawn(r)}utility={r.utility:.3f} reward={r.reward:.3f} "
            f"tokens={r.tokens:.0f}  {'' if plain else f'cost={r.cost:.3g}  '}{_sure(r)}{r.label}"
            for r in self.policy
        ]
        for d in self.deceptive or ():
            name = self.policy[d.context].preference.name or ""
            rows.append(
                f"{name}: best single completions, but {d.difference:.3f} ({d.interval[0]:.3f} to {d.interval[1]:.3f}) "
                f"behind at N={d.n}: {self.labels[d.prompt]}"
            )
        rows += [_left(row, self.written[row.gain.prompt].by) for row in self.policy if row.gain is not None]
        rows += self.too_little
        if not plain:
            rows.append(f"(cost: {self.cost.unit})")
        return "\n".join(rows)


def _drawn(row: PreferenceResult) -> str:
    return f"(draws {row.completions:.1f}) " if row.arm.stop is not None else ""


def _sure(row: PreferenceResult) -> str:
    found = [] if row.keeps_caps else ["NO ARM KEEPS THE CAPS"]
    if row.choice is not None:
        low, high = row.choice.interval
        where = " on the valset" if row.held_out is not None else ""
        found.append("no interval from one query" if row.choice.queries < 2 else f"{low:.3f} to {high:.3f}{where}")
        found += [] if row.choice.measured else ["not measured, tends to be too high"]
        found.append(f"best with p={row.choice.probability_best:.2f}")
    elif row.held_out is not None:
        found.append(
            f"held out {row.held_out.utility:.3f}, {row.held_out.interval[0]:.3f} to {row.held_out.interval[1]:.3f}"
        )
    return f"({', '.join(found)})  " if found else ""


def _left(row: PreferenceResult, by: str) -> str:
    """Say how much of a written prompt's gain is left on questions that no writer has read."""
    found = row.gain
    assert found is not None
    start = f"{row.preference.name or ''}: the prompt that {by} wrote gains {found.gain:.3f} over the best given one"
    if not found.queries:
        return f"{start}, and no other question tells how much of it is luck: the given one is taken"
    error = "" if math.isnan(found.standard_error) else f" (standard error {found.standard_error:.3f})"
    where = f"{found.queries} question{'s' * (found.queries > 1)} that no writer has read"
    left = f"{start}, {found.left:.3f}{error} on {where}"
    return left if found.confirmed else f"{left}: the given one is taken"


def _too_little(row: PreferenceResult, spent: int, n_queries: int) -> str | None:
    """Say where a utility rests on so little that its interval is twice as wide as wanted, and how much would do."""
    sure, name = row.choice, row.preference.name or "ad hoc"
    if sure is None or sure.needed <= 4.0 * sure.queries:
        return None
    if math.isinf(sure.needed):
        return f"{name}: one query says nothing about others. Give more training examples."
    completions = math.ceil(spent * sure.needed / sure.queries)
    more = f", and {math.ceil(sure.needed)} examples instead of {n_queries}" if sure.needed > n_queries else ""
    return (
        f"{name}: its utility rests on too little, {sure.queries} queries. About {completions:,} completions{more} "
        f"would bring the interval to +-{WANTED:.0%} of the range of the rewards."
    )


def solved_result(
    policy: CompiledPolicy, strategy: Strategy, programs: Callable[[], tuple[dspy.Module, ...]]
) -> CompileResult | None:
    """Return what the evidence says of a policy that was saved without its results, as up to version 4 of the format.

    None where the algorithm is not known, which was saved by its name only.
    """
    if isinstance(policy.algorithm, Unknown):
        return None
    prompts = len(policy.prompts)
    drawn, tokens = np.zeros(prompts), np.zeros(prompts)
    for o in policy.evidence:
        used = np.full(len(o.pulls), np.nan) if o.used is None else o.used[:, RESOURCES.index("tokens")]
        drawn += np.bincount(o.pulls.prompt, weights=o.pulls.size, minlength=prompts)
        tokens += np.bincount(o.pulls.prompt, weights=used, minlength=prompts)
    means = np.divide(tokens, drawn, out=np.full(prompts, np.nan), where=drawn > 0)
    models = tuple(models_of(program) for program in programs())
    return make_result(policy, strategy, policy.outcome(strategy), means, models, programs)


def make_result(
    compiled: CompiledPolicy,
    strategy: Strategy,
    outcome: Outcome,
    output_tokens: FloatArray,
    models: Sequence[str | tuple[str, ...]],
    programs: Callable[[], tuple[dspy.Module, ...]],
    *,
    failures: FailureReport | None = None,
    rounds: Sequence[Round] | None = None,
    complete: bool | None = None,
    outage: str | None = None,
    written: Mapping[int, WrittenPrompt] | None = None,
    gains: Sequence[ConfirmedGain | None] = (),
    validated: bool = False,
) -> CompileResult:
    """Put the outcome of a run into the user's words, with arrays as they would be read back.

    Args:
        compiled: The policy.
        strategy: The strategy.
        outcome: The run.
        output_tokens: Each prompt's mean per completion [P].
        models: Model strings of each prompt's LMs [P].
        programs: Makes one program per prompt.
        failures: Failed completions.
        rounds: The rounds of the run.
        complete: Whether no budget ended the run early.
        outage: The provider that was down for too long; None where none was.
        written: Where prompts come from that the run wrote.
        gains: Gains of written prompts [C]; none where none was written.
        validated: Whether the chosen arms were measured on a validation set.
    """
    labels = tuple(p.label for p in compiled.prompts)
    estimates = outcome.estimates
    output_tokens = _as_saved(output_tokens)
    contexts = Contexts.from_preferences(compiled.preferences, strategy.objectives, columns_of(strategy))
    sure = choices(outcome, contexts, strategy.aggregator())
    keeps = outcome.charges.keeps() if outcome.charges is not None else None
    stops = outcome.stops
    rows = []
    for c, (preference, arm) in enumerate(zip(compiled.preferences, outcome.policy.arms, strict=True)):
        at = arm.prompt, arm.n - 1
        alone = outcome.measured[c] if outcome.measured is not None else None
        utility = float(outcome.q[c][at]) if stops is None else stops[c].utility
        reward = float(outcome.reward[c][at]) if stops is None else stops[c].reward
        shown = sure[c].utility if sure is not None else alone.utility if alone is not None else utility
        rows.append(
            PreferenceResult(
                preference=preference,
                arm=arm,
                label=labels[arm.prompt],
                keeps_caps=keeps is None or bool(keeps[c][at]),
                model=models[arm.prompt],
                utility=shown,
                reward=reward + shown - utility,
                completions=float(arm.n) if stops is None else stops[c].completions,
                waves=1.0 if stops is None else stops[c].waves,
                tokens=float(output_tokens[arm.prompt]) * (arm.n if stops is None else stops[c].completions),
                cost=float(estimates.cost[at]) if stops is None else stops[c].cost,
                evidence=int(outcome.evidence[c]),
                choice=sure[c] if sure is not None else None,
                held_out=alone if validated else None,
                gain=gains[c] if gains else None,
            )
        )
    error = estimates.standard_error
    return CompileResult(
        policy=tuple(rows),
        labels=labels,
        models=tuple(models),
        q=_as_saved(outcome.q),
        reward=_as_saved(outcome.reward),
        tokens=of_calls(output_tokens, compiled.max_n),
        costs=_as_saved(estimates.cost),
        count=outcome.count,
        standard_error=None if error is None else _as_saved(error),
        deceptive=deceptive_prompts(outcome),
        cost=compiled.cost,
        cost_scale=compiled.cost_scale,
        spent=Spent.from_dict(compiled.spent),
        failures=failures,
        rounds=None if rounds is None else tuple(rounds),
        complete=complete,
        outage=outage,
        written=dict(written or {}),
        compiled=compiled,
        strategy=strategy,
        programs=programs,
    )


def _as_saved(values: FloatArray) -> FloatArray:
    """Return an array as it would be read back."""
    return numbers(as_text(values), np.float64, values.shape)


def of_calls(output_tokens: FloatArray, max_n: int) -> FloatArray:
    """Return the output tokens of calls [P, N] from the mean of each prompt's completions [P]."""
    return np.asarray(output_tokens[:, None] * np.arange(1, max_n + 1))
