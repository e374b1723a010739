"""The content of a report, from what a run found: the stored evidence says all, and no LM is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.compound.expected_use import expected_use
from iapo_dspy.bandit.compound.uncertainty import error_of
from iapo_dspy.bandit.inference import WANTED, Certainty, Deceptive
from iapo_dspy.bandit.measurement import Bounds
from iapo_dspy.bandit.outcome import Outcome, Reliability, Round, StoppedArm
from iapo_dspy.bandit.stops import as_drawn
from iapo_dspy.preferences import RESOURCES, UNITS, Preference
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.prompts.prompt import PromptState
from iapo_dspy.prompts.proposers.written import WrittenPrompt
from iapo_dspy.report.page_data import (
    Axis,
    AxisName,
    PageArm,
    PageData,
    PageFailures,
    PagePrompt,
    PageReliability,
    PageRound,
    Row,
    View,
)
from iapo_dspy.report.tabular import Line, Table
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.scoring.failures import FailureReport
from iapo_dspy.scoring.strategies import Strategy, columns_of
from iapo_dspy.types import Arm, Contexts, FloatArray

_A_DECADE, _DECADES = 40, (-3, 2)
_MOST_VIEWS = 8
_BUDGETS = (2, 4, 10)
_AXES: tuple[AxisName, ...] = ("tokens", "usd", "seconds")


def page_data(
    title: str,
    table: Table,
    policy: CompiledPolicy,
    strategy: Strategy,
    *,
    models: Sequence[str | tuple[str, ...]],
    sure: Sequence[Certainty | None],
    deceptive: Sequence[Deceptive],
    rounds: Sequence[Round] | None,
    failures: FailureReport | None,
    written: Mapping[int, WrittenPrompt],
    student: int | None,
    complete: bool | None,
    outage: str | None,
    reliability: Sequence[Reliability | None] = (),
) -> PageData:
    """Return all that a report shows of a run.

    Args:
        title: Its heading.
        table: The arm of each preference.
        policy: The policy with its evidence.
        strategy: The strategy that it was compiled with.
        models: Model strings of the prompts' LMs [P].
        sure: How sure each preference's choice is [C].
        deceptive: Prompts that win on single completions only.
        rounds: The rounds of the run; None where they are not known.
        failures: Failed completions; None likewise.
        written: Where those prompts come from that the run wrote.
        student: The student's number among the prompts; None where it is not one of them.
        complete: Whether no budget ended the run early; None where that is not known.
        outage: The provider that was down for too long; None where none was.
        reliability: Of the confidence of each preference's calls [C]; None where it is not known.
    """
    spent = Spent.from_dict(policy.spent)
    names = [p.name or "ad hoc" for p in policy.preferences]
    labels = [p.label for p in policy.prompts]
    views, axes = views_and_axes(policy, strategy)
    return PageData(
        title=title,
        policy=table,
        prompts=page_prompts(policy.prompts, models, written, failures),
        student={} if student is None else instructions_of(policy.prompts[student]),
        cost_unit=policy.cost.unit,
        cost_scale=policy.cost_scale,
        axes=axes,
        views=views,
        deceptive=deceptive_sentences(deceptive, names, labels),
        rounds=None if rounds is None else page_rounds(rounds),
        spent=spent_in_words(spent),
        failures=None if failures is None else _failures(failures),
        larger=larger_budgets(dict(zip(names, sure, strict=True)), spent.completions, policy.n_queries),
        remarks=(
            *([f"{outage}. The run stopped there, with the policy that its completions support."] if outage else []),
            *(["A budget ended the run before its algorithm was done."] if complete is False and not outage else []),
        ),
        reliability=tuple(
            PageReliability(
                name=name, confidence=found.confidence, right=found.right, count=found.count, error=found.in_words
            )
            for name, found in zip(names, reliability, strict=False)
            if found is not None
        ),
    )


def slider_weights(policy: CompiledPolicy) -> tuple[float, ...]:
    """Return the cost weights that a report can be asked for: 0, forty a decade up to 100, and the compiled ones."""
    steps = np.arange(_DECADES[0] * _A_DECADE, _DECADES[1] * _A_DECADE + 1)
    grid = {float(f"{w:.6g}") for w in 10.0 ** (steps / _A_DECADE)}
    return tuple(sorted({0.0, *grid, *(p.cost for p in policy.preferences)}))


def views_and_axes(policy: CompiledPolicy, strategy: Strategy) -> tuple[tuple[View, ...], tuple[Axis, ...]]:
    """Return the estimates under each choice of the objectives' weights, and the resources that calls take.

    Args:
        policy: The policy.
        strategy: The strategy that it was compiled with.
    """
    weights = slider_weights(policy)
    known = dict(zip((p.wishes for p in policy.preferences), _calls(policy.outcome(strategy)), strict=True))
    views: list[View] = []
    axes: tuple[Axis, ...] = ()
    for chosen in list(dict.fromkeys(tuple((p.weights or {}).items()) for p in policy.preferences))[:_MOST_VIEWS]:
        preferences = [Preference(cost=w, weights=dict(chosen) or None) for w in weights]
        outcome = policy.solve(preferences, strategy, apart=True)
        use = _Use(policy, outcome)
        axes = axes or use.axes
        contexts = Contexts.from_preferences(preferences[:1], strategy.objectives, columns_of(strategy))
        bounds = Bounds.of(strategy.aggregator(), outcome.observations, contexts.weights[0])
        name = ", ".join(f"{objective} {w:g}" for objective, w in chosen) or "equal weights"
        found = [known.get(p.wishes, call) for p, call in zip(preferences, _calls(outcome), strict=True)]
        views.append(_view(name, outcome, weights, found, use, bounds, strategy.aggregator()))
    return tuple(views), axes


def _calls(outcome: Outcome) -> tuple[StoppedArm, ...]:
    """Return the arm of each context with its expected calls."""
    if outcome.stops is not None:
        return outcome.stops
    return tuple(as_drawn(outcome, context, arm) for context, arm in enumerate(outcome.policy.arms))


def _view(
    name: str,
    outcome: Outcome,
    weights: tuple[float, ...],
    found: Sequence[StoppedArm],
    use: _Use,
    bounds: Bounds,
    aggregator: Aggregator,
) -> View:
    """Return a view. Estimates are kept within the bounds of the rewards, as explanations keep them."""
    error = outcome.estimates.standard_error
    arms: dict[tuple[Arm, float, float, float, float], PageArm] = {}
    chosen = []
    for c, call in enumerate(found):
        arm = call.arm
        alike = arm, call.reward, call.completions, call.waves, call.cost  # the utility depends on the weight
        if alike not in arms:
            arms[alike] = PageArm(
                prompt=arm.prompt,
                n=arm.n,
                stop=arm.stop.in_words if arm.stop is not None and not arm.compound else "",
                words=arm_in_words(arm, aggregator) if arm.compound else "",
                prompts=arm.prompts,
                reward=min(max(call.reward, bounds.low), bounds.high),
                standard_error=_known(error_of(outcome, c, call)),
                completions=call.completions,
                use=use.of_call(call),
                abstains=call.abstains,
            )
        chosen.append(alike)
    return View(
        name=name,
        reward=_rows(np.clip(outcome.reward[0], bounds.low, bounds.high)),
        standard_error=None if error is None else _rows(error[0]),
        weights=weights,
        arms=tuple(arms.values()),
        chosen=tuple(list(arms).index(call) for call in chosen),
    )


class _Use:
    """How much calls take of each resource that is known and is not free."""

    def __init__(self, policy: CompiledPolicy, outcome: Outcome) -> None:
        unit = policy.cost.unit
        self._outcome = outcome
        found = [Axis(name="cost", title=_title(unit), values=_rows(outcome.estimates.cost))]
        self._parts = outcome.charges.parts() if outcome.charges is not None else None
        if outcome.charges is not None:
            use = outcome.charges.use()
            for name in _AXES:
                values = use[RESOURCES.index(name)]
                if UNITS[name] != unit and (np.nan_to_num(values) > 0).any():
                    found.append(Axis(name=name, title=_title(UNITS[name]), values=_rows(values)))
        self.axes = tuple(found)

    def of_call(self, call: StoppedArm) -> dict[AxisName, float]:
        """Return the expected use of a call: a part per wave, and a part per completion."""
        found: dict[AxisName, float] = {"cost": call.cost}
        if self._parts is not None:
            use = expected_use(call, *self._parts)
            for axis in self.axes[1:]:
                value = _known(use[RESOURCES.index(axis.name)])
                if value is not None:
                    found[axis.name] = value
        return found


def page_prompts(
    prompts: Sequence[PromptState],
    models: Sequence[str | tuple[str, ...]],
    written: Mapping[int, WrittenPrompt],
    failures: FailureReport | None,
) -> tuple[PagePrompt, ...]:
    """Return the prompts with their instructions.

    Args:
        prompts: The prompts [P].
        models: Model strings of their LMs [P].
        written: Where those come from that the run wrote.
        failures: Failed completions; None where they are not known.
    """
    return tuple(
        PagePrompt(
            label=prompt.label,
            model=model if isinstance(model, str) else ", ".join(model),
            decoding=", ".join(f"{k}={v}" for k, v in prompt.decoding.as_kwargs().items()),
            adapter="" if prompt.adapter is None else str(prompt.adapter),
            instructions=instructions_of(prompt),
            origin=_origin(written[i]) if i in written else "",
            failed=None if failures is None else _known(failures.share[i]),
            unreadable=None if failures is None else failures.unreadable_of(i),
        )
        for i, (prompt, model) in enumerate(zip(prompts, models, strict=True))
    )


def instructions_of(prompt: PromptState) -> dict[str, str]:
    """Return predictor -> its instructions."""
    return {name: str(state.get("signature", {}).get("instructions", "")) for name, state in prompt.state.items()}


def page_rounds(rounds: Sequence[Round]) -> tuple[PageRound, ...]:
    """Return the rounds of a run."""
    return tuple(
        PageRound(prompts=int(r.active.any(axis=(0, 2)).sum()), pulls=r.pulls, completions=r.completions)
        for r in rounds
    )


def deceptive_sentences(deceptive: Sequence[Deceptive], names: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Say of each deceptive prompt what it is beaten by, where, and by how much.

    Args:
        deceptive: The prompts.
        names: Names of the preferences [C].
        labels: The prompts in words [P].
    """
    return tuple(
        f"For {names[d.context]}, prompt {d.prompt} ({labels[d.prompt]}) has the best single samples. With N={d.n}, "
        f"prompt {d.beaten_by} ({labels[d.beaten_by]}) is ahead of it by {d.difference:.3f} ({d.interval[0]:.3f} to "
        f"{d.interval[1]:.3f})."
        for d in deceptive
    )


def larger_budgets(sure: Mapping[str, Certainty | None], completions: int, n_queries: int) -> Table:
    """Return how narrow the interval of each preference's utility would get with more completions.

    The width falls with the square root of the number of queries, as long as there are as many examples.

    Args:
        sure: Name of the preference -> how sure its choice is; None where that is not known.
        completions: Completions that the run took.
        n_queries: Training examples.
    """
    now = f"{completions:,} completions"
    columns = (
        "preference",
        f"now ({now})",
        *(f"x {k}" for k in _BUDGETS),
        f"completions for ±{WANTED:.0%}",
        "examples for that",
    )
    rows = []
    for name, found in sure.items():
        if found is None or math.isnan(found.half_width):
            rows.append(Line(cells=(name, *["not known"] * (len(columns) - 1))))
            continue
        widths = [found.half_width / math.sqrt(k) for k in (1, *_BUDGETS)]
        enough = found.needed <= found.queries
        wanted = completions if enough else math.ceil(completions * found.needed / found.queries)
        examples = "as now" if found.needed <= n_queries else f"{math.ceil(found.needed):,}"
        rows.append(
            Line(
                cells=(
                    name,
                    *(f"±{w:.3f}" for w in widths),
                    "these do" if enough else f"{wanted:,}",
                    examples,
                )
            )
        )
    return Table(
        columns=columns,
        rows=tuple(rows),
        numbers=frozenset(columns[1:]),
        notes=(
            "Half the width of the 95 % interval of the utility, with so many times as many completions. More "
            f"completions need more examples once all {n_queries:,} are drawn on.",
        ),
    )


def spent_in_words(spent: Spent) -> dict[str, str]:
    """Return what a run took, in words; what it took nothing of is left out."""
    minutes, seconds = divmod(round(spent.seconds), 60)
    judged, written = "for judges", "for writing prompts"
    found: dict[str, tuple[float, str]] = {
        "Completions": (spent.completions, f"{spent.completions:,}"),
        "Requests": (spent.requests, f"{spent.requests:,}"),
        "Input tokens": (spent.prompt_tokens, f"{spent.prompt_tokens:,}"),
        "Output tokens": (spent.completion_tokens, f"{spent.completion_tokens:,}"),
        "Dollars": (spent.usd, f"{spent.usd:.4g}"),
        "Time": (spent.seconds, f"{minutes} min {seconds} s" if minutes else f"{spent.seconds:.1f} s"),
        f"Tokens {judged}": (spent.judge_tokens, f"{spent.judge_tokens:,}"),
        f"Dollars {judged}": (spent.judge_usd, f"{spent.judge_usd:.4g}"),
        f"Tokens {written}": (spent.writer_tokens, f"{spent.writer_tokens:,}"),
        f"Dollars {written}": (spent.writer_usd, f"{spent.writer_usd:.4g}"),
    }
    return {words: text for words, (amount, text) in found.items() if amount}


def _failures(found: FailureReport) -> PageFailures:
    return PageFailures(
        completions=found.completions,
        total=found.total,
        causes=found.causes,
        examples=tuple((f"{e.prompt}", e.text, e.cause) for e in found.examples),
    )


def _origin(written: WrittenPrompt) -> str:
    parents = f" from {', '.join(f'prompt {p}' for p in written.parents)}" if written.parents else ""
    when = "by an earlier run" if written.generation < 0 else f"in generation {written.generation + 1}"
    return f"written by {written.by}{parents} {when}"


def _title(unit: str) -> str:
    return unit[:1].upper() + unit[1:]


def _rows(values: FloatArray) -> tuple[Row, ...]:
    return tuple(tuple(_known(v) for v in row) for row in values.tolist())


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
