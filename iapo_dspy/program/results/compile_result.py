"""The findings of a run and their price: `program.detailed_results`."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import dspy
import numpy as np
from pydantic_core import to_json

from iapo_dspy.bandit.comparison import compared
from iapo_dspy.bandit.compound.expected_use import priced
from iapo_dspy.bandit.compound.uncertainty import error_of
from iapo_dspy.bandit.confirmation import ConfirmedGain, doubted
from iapo_dspy.bandit.costs.worst_path import keeps_caps
from iapo_dspy.bandit.inference import Z95, Deceptive, choices, deceptive_prompts
from iapo_dspy.bandit.named import Unknown
from iapo_dspy.bandit.outcome import Outcome, Round, StoppedArm
from iapo_dspy.bandit.stops import as_drawn, call_prices
from iapo_dspy.bandit.wins import win_rates
from iapo_dspy.errors import ConfigurationError, storing, whole_file
from iapo_dspy.preferences import RESOURCES, Preference, is_number
from iapo_dspy.program.evidence.columns import numbers
from iapo_dspy.program.evidence.columns import written as in_text
from iapo_dspy.program.evidence.reprice import prices_of
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.program.reporting.page_content import page_data
from iapo_dspy.program.results.calls import CallsOfPrompts
from iapo_dspy.program.results.flat_records import considered_of, records_of, reliability_of
from iapo_dspy.program.results.rewriter_results import RewriterResult, rewriter_results
from iapo_dspy.program.results.rows import ArmEstimate, ComparedArm, PreferenceResult, known
from iapo_dspy.program.results.wording import result_table, too_little
from iapo_dspy.prompts.lms import models_of
from iapo_dspy.prompts.proposers.written import WrittenPrompt
from iapo_dspy.prompts.rewriters.rewrite_counts import RewriteCount
from iapo_dspy.report.figures import draw_curves, draw_frontier, draw_rounds, new_axes
from iapo_dspy.report.html import table_html
from iapo_dspy.report.page import page_html
from iapo_dspy.report.tabular import Table, as_text
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.scoring.comparisons import PositionBias
from iapo_dspy.scoring.failures import FailureReport
from iapo_dspy.scoring.strategies import Strategy, columns_of
from iapo_dspy.types import Arm, Contexts, FloatArray, IntArray


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
        failures: Failed completions, and how many of each prompt's could not be read; None for a program that was saved
            before version 5 of the format. Examples of their texts are not saved.
        rounds: The rounds of the algorithm, and the one that measured the chosen arms; None likewise.
        complete: False where a budget or an outage ended the run early; None likewise.
        outage: The provider that was down for too long, and since when; None where none was.
        written: Prompt -> where it comes from, for the prompts that the run wrote.
        student: Position of the student as it was in `labels`; None where it was not a candidate, and in programs that
            were saved before 1.0.
        bias: How judges that compare take places, by the objective; see `objectives.prefers`.
        rewrites: What rewriters made of queries, by the rewriter; `rewriters` compares them with queries as they are.
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
    student: int | None = None
    bias: Mapping[str, PositionBias] = field(default_factory=dict)
    rewrites: Mapping[str, RewriteCount] = field(default_factory=dict)

    @functools.cached_property
    def candidate_programs(self) -> tuple[dspy.Module, ...]:
        """One program per prompt, in order. Calls of them use the prompt's adapter; calls of copies do not.

        They get queries as they are, also where the prompt has a rewriter.
        """
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
            student=self.student,
            bias=self.bias,
            rewrites=self.rewrites,
        )

    @property
    def too_little(self) -> tuple[str, ...]:
        """Preferences whose utility rests on too little to act on, with about how much would do, in words."""
        found = (too_little(row, self.spent.completions, self.compiled.n_queries) for row in self.policy)
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

    def report(self, path: str | os.PathLike[str], *, title: str = "Report of a compile") -> None:
        """Write a report as one HTML file, which needs no network.

        It has the policy, the frontier of quality against cost with a slider for the preference, quality against N for
        each prompt, rounds and spending, failures, the instructions, and what a larger budget would bring. Everything
        is solved from the stored evidence, without LM calls.

        Args:
            path: The file, `.html`; one that is there is replaced.
            title: Its heading.

        Raises:
            ImportError: Plotly is not installed (extra `report`).
            StorageError: The file cannot be written.
        """
        path = Path(path)
        data = page_data(
            title,
            self.table,
            self.compiled,
            self.strategy,
            models=self.models,
            sure=[row.choice for row in self.policy],
            deceptive=self.deceptive or (),
            rounds=self.rounds,
            failures=self.failures,
            written=self.written,
            student=self.student,
            complete=self.complete,
            outage=self.outage,
            reliability=[row.reliability for row in self.policy],
        )
        page = page_html(data)
        with storing(path), whole_file(path) as part:
            part.write_text(page, encoding="utf-8", errors="replace")  # an LM may write half a character

    @property
    def table(self) -> Table:
        """The chosen arm of each preference with its baselines, and remarks, as a table."""
        return result_table(
            self.policy,
            labels=self.labels,
            deceptive=self.deceptive or (),
            authors={prompt: written.by for prompt, written in self.written.items()},
            unit=None if self.cost.unit == Cost().unit else self.cost.unit,
            student=self.student is not None,
            too_little=self.too_little,
            failures=self.failures,
            bias=self.bias,
            rewriters=self.rewriters,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the results as plain JSON data: NaN and infinities as null.

        "rows" has a record for each chosen arm and each baseline, "considered" the cascades and mixtures that each
        preference was offered, "reliability" how well each preference's confidence agrees with what was drawn,
        "prompts" the instructions, and "estimates" the arrays by the names that they have here.
        """
        arrays = {
            "utility": self.q, "reward": self.reward, "standard_error": self.standard_error, "tokens": self.tokens,
            "usd": self.usd, "seconds": self.seconds, "cost": self.costs,
        }  # fmt: skip
        found = {
            "rows": records_of(self.policy, self.failures),
            "considered": considered_of(self.policy, self.strategy.aggregator()),
            "reliability": reliability_of(self.policy),
            "prompts": [
                {
                    "label": label,
                    "model": model,
                    "instructions": instructions,
                    "decoding": prompt.decoding.as_kwargs(),
                    "adapter": None if prompt.adapter is None else str(prompt.adapter),
                    "rewriter": None if prompt.rewriter is None else str(prompt.rewriter),
                    "unreadable": None if self.failures is None else self.failures.unreadable_of(i),
                }
                for i, (label, model, instructions, prompt) in enumerate(
                    zip(self.labels, self.models, self.instructions, self.compiled.prompts, strict=True)
                )
            ],
            "estimates": {name: None if array is None else array.tolist() for name, array in arrays.items()},
            "student": self.student,
            "deceptive": self.deceptive,
            "spent": self.spent.to_dict(),
            "failures": self.failures,
            "rounds": self.rounds and [{"pulls": r.pulls, "completions": r.completions} for r in self.rounds],
            "complete": self.complete,
            "outage": self.outage,
            "written": {str(prompt): written for prompt, written in self.written.items()},
            "cost_unit": self.cost.unit,
            "cost_scale": self.cost_scale,
            "wins": {str(row.preference.name): row.wins for row in self.policy if row.wins},
            "position_bias": {name: {**vars(found), "share": found.share} for name, found in self.bias.items()},
            "rewriters": self.rewriters,
            "notes": list(self.table.notes),
        }
        plain: dict[str, Any] = json.loads(to_json(found, inf_nan_mode="null"))
        return plain

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each chosen arm and each baseline, as in `to_dict()["rows"]`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas.") from error
        return pandas.DataFrame(records_of(self.policy, self.failures))

    @property
    def instructions(self) -> tuple[dict[str, str], ...]:
        """The whole instructions of each prompt [P]: predictor -> text."""
        return tuple(
            {name: str(state.get("signature", {}).get("instructions", "")) for name, state in prompt.state.items()}
            for prompt in self.compiled.prompts
        )

    @property
    def usd(self) -> FloatArray:
        """Expected dollars of a call that draws all N at once [P, N]; NaN where they are not known."""
        return self._calls.of_resource("usd", self.compiled.max_n)

    @property
    def seconds(self) -> FloatArray:
        """Expected seconds of a call that draws all N at once [P, N]; NaN where they are not known."""
        return self._calls.of_resource("seconds", self.compiled.max_n)

    @functools.cached_property
    def rewriters(self) -> tuple[RewriterResult, ...]:
        """Each rewriter beside the queries as they are: reward, variance, win rate, and the law that it chooses by."""
        return rewriter_results(self.compiled, self.strategy, self.rewrites)

    @functools.cached_property
    def _calls(self) -> CallsOfPrompts:
        return CallsOfPrompts.of(self.compiled, self.labels, self.models, self.strategy.aggregator(), self.tokens[:, 0])

    @functools.cached_property
    def _outcome(self) -> Outcome:
        return self.compiled.outcome(self.strategy)

    def best(self, preference: str | Preference | None = None) -> ArmEstimate:
        """Return the arm of a preference with its estimates.

        Args:
            preference: A compiled one or its name, or another one, which is solved from the stored evidence; None is
                the program's default.

        Raises:
            UnknownPreference: No preference of that name was compiled.
            ConfigurationError: It prices or caps something that was not measured.
        """
        asked = self._asked(preference)
        row = next((row for row in self.policy if row.preference.wishes == asked.wishes), None)
        if row is not None:
            return row.estimate
        outcome = self.compiled.solve([asked], self.strategy, apart=True)
        call = outcome.stops[0] if outcome.stops is not None else as_drawn(outcome, 0, outcome.policy[0])
        return self._estimate(asked, outcome, 0, call)

    def cheapest(self, within: float = 0.03, preference: str | Preference | None = None) -> ArmEstimate:
        """Return the cheapest arm whose task reward is nearly the best one.

        Every prompt at every N counts, and the compiled arms of preferences with the same weights, which may stop
        early, or be cascades and mixtures. All are compared by the estimates that arms are chosen by.
        `CompiledProgram.with_arm` returns a program that draws the arm.

        Args:
            within: How much less reward it may have than the best arm, >= 0.
            preference: Its weights of the objectives count; None is the program's default.

        Raises:
            ConfigurationError: `within` is not a number >= 0.
            UnknownPreference: No preference of that name was compiled.
        """
        if not is_number(within) or within < 0:
            raise ConfigurationError(f"cheapest(within={within!r}): give a finite number >= 0.")
        arms = self._arms(self._asked(preference))
        least = max(found.reward for found in arms) - within
        return min((a for a in arms if a.reward >= least), key=lambda a: (a.cost, -a.reward))

    def at(
        self,
        *,
        usd: float | None = None,
        tokens: float | None = None,
        seconds: float | None = None,
        preference: str | Preference | None = None,
    ) -> ArmEstimate:
        """Return the arm with the largest task reward among those whose expected call takes at most so much.

        The same arms count as for `cheapest`. A call may take more than is expected: `Preference(max_usd=...)` sets a
        limit for each call.

        Args:
            usd: Dollars.
            tokens: Output tokens.
            seconds: Seconds from sending a call to its last completion.
            preference: Its weights of the objectives count; None is the program's default.

        Raises:
            ConfigurationError: Nothing is given, a number is not > 0, the dollars or seconds of calls are not known, or
                no arm takes so little.
            UnknownPreference: No preference of that name was compiled.
        """
        limits = {k: v for k, v in {"usd": usd, "tokens": tokens, "seconds": seconds}.items() if v is not None}
        said = ", ".join(f"{k}={v!r}" for k, v in limits.items())
        if not limits or not all(is_number(v) and v > 0 for v in limits.values()):
            raise ConfigurationError(f"at({said}): give finite numbers > 0, such as at(usd=0.001) or at(tokens=500).")
        arms = self._arms(self._asked(preference))
        kept = [a for a in arms if all((v := getattr(a, k)) is not None and v <= most for k, most in limits.items())]
        if not kept:
            known = {k: [v for a in arms if (v := getattr(a, k)) is not None] for k in limits}
            unknown = [k for k, v in known.items() if not v]
            if unknown:
                price = " Give the price of the LM: program.reprice((0.15, 0.60)).detailed_results."
                raise ConfigurationError(
                    f"at({said}): {' and '.join(unknown)} of a call is not known.{price if 'usd' in unknown else ''}"
                )
            least = ", ".join(f"{k}={min(v):.3g}" for k, v in known.items())
            raise ConfigurationError(f"at({said}): no arm takes so little. The least that a call takes: {least}.")
        return max(kept, key=lambda a: (a.reward, -a.cost))

    def _asked(self, preference: str | Preference | None) -> Preference:
        if isinstance(preference, Preference):
            return preference
        return self.compiled.named(self.compiled.default if preference is None else preference)

    def _arms(self, preference: Preference) -> list[ArmEstimate]:
        """Return every arm that draws all N, and compiled ones of another kind, under a preference's weights."""
        names = [p.wishes for p in self.compiled.preferences]
        known = preference.wishes in names
        outcome = self._outcome if known else self.compiled.solve([preference], self.strategy, apart=True)
        context = names.index(preference.wishes) if known else 0
        at = np.argwhere(np.isfinite(outcome.q[context]) & np.isfinite(outcome.estimates.cost))
        calls = [as_drawn(outcome, context, Arm(prompt, n + 1)) for prompt, n in at.tolist()]
        weights = preference.vector(self.strategy.objectives)
        if known and outcome.stops is not None:
            prices = call_prices(self.compiled.problem(self.compiled.preferences, self.strategy), outcome)
            for other, call in zip(self.compiled.preferences, outcome.stops, strict=True):
                kept = call.arm.stop is not None or call.arm.compound
                if kept and np.array_equal(other.vector(self.strategy.objectives), weights):
                    utility = priced(call, prices.fixed[context], prices.each[context])
                    calls.append(replace(call, utility=utility))
        return [self._estimate(preference, outcome, context, call) for call in calls]

    def _estimate(self, preference: Preference, outcome: Outcome, context: int, call: StoppedArm) -> ArmEstimate:
        half = Z95 * error_of(outcome, context, call)
        return self._calls.estimate(preference, call, known((call.utility - half, call.utility + half)))

    def plot_frontier(
        self,
        x: Literal["tokens", "usd", "seconds", "cost"] = "tokens",
        *,
        preference: str | None = None,
        ax: Any = None,
    ) -> Any:
        """Draw every arm by its cost and task reward, the frontier of the best ones, and the chosen arms.

        Compiled cascades and mixtures are among the arms.

        Chosen arms stand where they were measured after the choice, with their 95 % interval; the others, and the
        frontier, are the estimates by which arms are chosen.

        Args:
            x: The cost on the x axis.
            preference: Its weights of the objectives count; None is the program's default.
            ax: Matplotlib axes to draw on; None makes new ones.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            ConfigurationError: `x` is not a cost.
            UnknownPreference: No preference of that name was compiled.
        """
        asked = self._asked(preference)
        context = self.compiled.preferences.index(asked)
        costs = {"tokens": self.tokens, "usd": self.usd, "seconds": self.seconds, "cost": self.costs}
        if x not in costs:
            raise ConfigurationError(f"plot_frontier({x!r}): give one of {', '.join(map(repr, costs))}.")
        several = [found for found in self._arms(asked) if found.arm.compound]
        at = [math.nan if (value := getattr(found, x)) is None else value for found in several]
        cost = np.append(costs[x].ravel(), at)
        reward = np.append(self.reward[context].ravel(), [found.reward for found in several])
        weights = asked.vector(self.strategy.objectives)
        alike = [r for r in self.policy if np.array_equal(r.preference.vector(self.strategy.objectives), weights)]
        marked = {
            str(r.preference.name): (value, r.reward, _of_reward(r))
            for r in alike
            if (value := getattr(r, x)) is not None
        }
        unit = {"tokens": "output tokens", "usd": "dollars", "seconds": "seconds", "cost": self.cost.unit}[x]
        axes = new_axes() if ax is None else ax
        return draw_frontier(axes, cost, reward, marked, unit=unit)

    def plot_curves(
        self, prompts: Sequence[int] | None = None, *, preference: str | None = None, ax: Any = None
    ) -> Any:
        """Draw the task reward of prompts over N, with 95 % bands.

        Args:
            prompts: Positions in `labels`; None takes the six with the largest reward at any N.
            preference: Its weights of the objectives count; None takes the first preference.
            ax: Matplotlib axes to draw on; None makes new ones.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            ConfigurationError: A prompt does not exist.
            UnknownPreference: No preference of that name was compiled.
        """
        if prompts is None:
            names = [r.preference.name for r in self.policy]
            context = names.index(self._asked(preference).name) if preference is not None else 0
            largest = np.where(np.isnan(self.reward[context]), -np.inf, self.reward[context]).max(axis=1)
            prompts = [p for p in np.argsort(-largest, kind="stable")[:6].tolist() if np.isfinite(largest[p])]
        found = [(p, self.curve(p, preference)) for p in prompts]  # which refuses prompts that are not there
        curves = {f"{p}: {self.labels[p]}": curve for p, curve in found}
        return draw_curves(new_axes() if ax is None else ax, curves)

    def plot_rounds(self, ax: Any = None) -> Any:
        """Draw the completions of each round, and how many prompts were alive in it.

        Args:
            ax: Matplotlib axes to draw on; None makes new ones.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            ConfigurationError: The rounds are not known: the program was saved by an older version.
        """
        if self.rounds is None:
            raise ConfigurationError("This program does not know its rounds: an older version saved it. Compile again.")
        alive = [int(r.active.any(axis=(0, 2)).sum()) for r in self.rounds]
        return draw_rounds(new_axes() if ax is None else ax, [r.completions for r in self.rounds], alive)

    def __str__(self) -> str:
        """Return the table for a terminal."""
        return as_text(self.table)

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return table_html(self.table)


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
    student: int | None = None,
    bias: Mapping[str, PositionBias] | None = None,
    rewrites: Mapping[str, RewriteCount] | None = None,
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
        student: The student's number among the prompts.
        bias: How judges that compare take places, by the objective.
        rewrites: What rewriters made of queries, by the rewriter.
    """
    labels = tuple(p.label for p in compiled.prompts)
    estimates = outcome.estimates
    output_tokens = _as_saved(output_tokens)
    contexts = Contexts.from_preferences(compiled.preferences, strategy.objectives, columns_of(strategy))
    sure = choices(outcome, contexts, strategy.aggregator())
    problem = compiled.problem(compiled.preferences, strategy)
    beside = compared(
        problem,
        outcome,
        student=student,
        mode=compiled.stopping,
        apart=validated,
        doubted=doubted(written or (), gains),
    )
    columns, arms = columns_of(strategy), outcome.policy.arms
    wins = {
        name: win_rates(problem, arms, columns.index(name), outcome.observations, outcome.measuring)
        for name in bias or ()
    }
    calls = CallsOfPrompts.of(compiled, labels, models, problem.aggregator, output_tokens)
    rows = []
    for c, (preference, arm) in enumerate(zip(compiled.preferences, outcome.policy.arms, strict=True)):
        call = outcome.stops[c] if outcome.stops is not None else as_drawn(outcome, c, arm)
        alone = outcome.measured[c] if outcome.measured is not None else None
        shown = sure[c].utility if sure is not None else alone.utility if alone is not None else call.utility
        chosen = calls.estimate(preference, call, None)
        rows.append(
            PreferenceResult(
                preference=preference,
                arm=arm,
                words=chosen.words,
                label=chosen.label,
                keeps_caps=outcome.charges is None or keeps_caps(outcome.charges, c, _whole(arm)),
                model=chosen.model,
                utility=shown,
                reward=call.reward + shown - call.utility,
                completions=call.completions,
                waves=call.waves,
                tokens=chosen.tokens,
                cost=call.cost,
                evidence=int(outcome.evidence[c]),
                choice=sure[c] if sure is not None else None,
                held_out=alone if validated else None,
                gain=gains[c] if gains else None,
                usd=chosen.usd,
                seconds=chosen.seconds,
                wins={name: rate for name, rates in wins.items() if (rate := rates[c]) is not None},
                abstains=chosen.abstains,
                of_prompts=chosen.of_prompts,
                considered=outcome.considered[c] if outcome.considered else (),
                reliability=outcome.reliability[c] if outcome.reliability else None,
                baselines=tuple(
                    ComparedArm(
                        name=found.name,
                        estimate=calls.estimate(preference, found.call, known(found.interval)),
                        difference=found.difference,
                        interval=known(found.difference_interval),
                    )
                    for found in beside[c]
                ),
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
        student=student,
        bias=dict(bias or {}),
        rewrites=dict(rewrites or {}),
    )


def _whole(arm: Arm) -> Arm:
    """Return an arm that draws all N at once; where that breaks a cap, any number of waves does."""
    return arm if arm.compound else replace(arm, stop=None)


def _of_reward(row: PreferenceResult) -> tuple[float, float] | None:
    """Return the interval of a row's reward: that of its utility, without the cost."""
    if row.interval is None:
        return None
    low, high = row.interval
    return low + row.reward - row.utility, high + row.reward - row.utility


def _as_saved(values: FloatArray) -> FloatArray:
    """Return an array as it would be read back."""
    return numbers(in_text(values), np.float64, values.shape)


def of_calls(output_tokens: FloatArray, max_n: int) -> FloatArray:
    """Return the output tokens of calls [P, N] from the mean of each prompt's completions [P]."""
    return np.asarray(output_tokens[:, None] * np.arange(1, max_n + 1))
