"""The table of a run's results, and the remarks below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.inference import WANTED, Deceptive
from iapo_dspy.bandit.outcome import Considered
from iapo_dspy.bandit.wins import WinRate
from iapo_dspy.program.results.flat_records import unreadable_of
from iapo_dspy.program.results.rewriter_results import RewriterResult
from iapo_dspy.program.results.rows import ArmEstimate, ComparedArm, Interval, PreferenceResult
from iapo_dspy.report.tabular import Line, Table
from iapo_dspy.scoring.comparisons import PositionBias
from iapo_dspy.scoring.failures import REMARKABLE, FailureReport
from iapo_dspy.types import Arm

_BASELINES = {
    "student": "student as it was",
    "best prompt": "best single prompt",
    "best prompt, N tuned": "  the same, N tuned",
    "best single arm": "best arm of one prompt",
}


def result_table(
    policy: Sequence[PreferenceResult],
    *,
    labels: Sequence[str],
    deceptive: Sequence[Deceptive],
    authors: Mapping[int, str],
    unit: str | None,
    student: bool,
    too_little: Sequence[str],
    failures: FailureReport | None = None,
    bias: Mapping[str, PositionBias] | None = None,
    rewriters: Sequence[RewriterResult] = (),
) -> Table:
    """Return the chosen arm of each preference with its baselines below it.

    Args:
        policy: One row per preference.
        labels: The prompts in words.
        deceptive: Prompts that win on single completions only.
        authors: Prompt -> the proposer that wrote it.
        unit: The unit of costs; None leaves the column of costs out, as tokens have their own.
        student: Whether the student as it was is among the prompts.
        too_little: Remarks about preferences whose utility rests on too little.
        failures: Failed completions; None where they are not known. The share that could not be read has a column
            where it is more than a fifth of some prompt's.
        bias: How judges that compare take places, by the objective.
        rewriters: Rewriters beside the queries as they are.
    """
    shown = [(row, row.preference.name or "ad hoc", row.estimate) for row in policy]
    lines: list[tuple[str, ArmEstimate, str, str, bool]] = []
    for row, name, chosen in shown:
        sure = row.choice.probability_best if row.choice is not None else math.nan
        best = "" if math.isnan(sure) else f"{sure:.2f}"
        lines.append((name, chosen, "", best, True))
        lines += [(f"  {_BASELINES[b.name]}", b.estimate, _gain(b, row), "", False) for b in row.baselines]
    found = [line[1] for line in lines]
    columns: dict[str, list[str]] = {"preference": [line[0] for line in lines]}
    columns["N"] = [_scale(e.arm) for e in found]
    if any(e.arm.stop is not None or e.arm.compound for e in found):
        columns["draws"] = [f"{e.completions:.1f}" for e in found]
    where = "utility on the valset" if any(row.held_out is not None for row in policy) else "utility"
    columns[where] = [f"{e.utility:.3f}{shown_interval(e.interval)}" for e in found]
    if any(row.baselines for row in policy):
        columns["chosen gains"] = [line[2] for line in lines]
    if any(row.choice is not None for row in policy):
        columns["best with p"] = [line[3] for line in lines]
    columns["tokens"] = [f"{e.tokens:.0f}" for e in found]
    if any(e.usd for e in found):
        columns["dollars"] = [shown_usd(e.usd) for e in found]
    if unit is not None and not (unit == "dollars" and "dollars" in columns):
        columns["cost"] = [f"{e.cost:.3g}" for e in found]
    if any(e.arm.abstains for e in found):
        columns["no answer"] = [f"{e.abstains:.1%}" if e.arm.abstains else "" for e in found]
    unread = [unreadable_of(e.arm, failures) for e in found]
    if any((share or 0.0) > REMARKABLE for share in unread):
        columns["unreadable"] = ["" if share is None else f"{share:.0%}" for share in unread]
    columns["prompt"] = [_prompts(e.arm) if e.arm.compound else e.label for e in found]
    return Table(
        columns=tuple(columns),
        rows=tuple(
            Line(cells=cells, strong=line[4])
            for line, cells in zip(lines, zip(*columns.values(), strict=True), strict=True)
        ),
        numbers=frozenset(_NUMBERS & columns.keys()),
        notes=(
            *(f"{name}: {chosen.words}" for _, name, chosen in shown if chosen.arm.compound),
            *(f"prompt {p}: {labels[p]}" for p in sorted({p for e in found if e.arm.compound for p in e.arm.prompts})),
            *_doubts(policy),
            *([] if student or not any(row.baselines for row in policy) else [_NO_STUDENT]),
            *(_deceptive(d, policy, labels) for d in deceptive),
            *(_left(row, authors[row.gain.prompt]) for row in policy if row.gain is not None),
            *(_won(row, name, rate) for row in policy for name, rate in row.wins.items()),
            *(f"{name}: {found}." for name, found in (bias or {}).items()),
            *(f"{found}." for found in rewriters),
            *_considered(policy),
            *_least_reliable(policy),
            *too_little,
            *([failures.remark] if failures is not None and failures.remark is not None else []),
            *([f"cost: {unit}"] if unit is not None else []),
        ),
    )


_NUMBERS = {"N", "draws", "tokens", "dollars", "cost", "best with p", "no answer", "unreadable"}
_NONE_BETTER = "No cascade and no mixture is surely better than the best arm of one prompt."
_NO_STUDENT = "The student as it was is not a candidate, so it was not drawn. Give it as one to compare with it."


def _scale(arm: Arm) -> str:
    """Return N, stage by stage and part by part."""
    return "+".join(str(share.n) for stage in arm.stages for share in stage.shares)


def _prompts(arm: Arm) -> str:
    *others, last = map(str, arm.prompts)
    return f"prompts {', '.join(others)} and {last}" if others else f"prompt {last}"


def considered_in_words(found: Considered, words: str = "") -> str:
    """Say what a cascade or a mixture would gain or gains over an arm of one prompt, and whether it is used.

    Args:
        found: The offer.
        words: Its arm in words, for one that is not used; "" leaves it out.
    """
    by = f"{found.gain:+.3f} (s.e. {found.standard_error:.3f})"
    beside = "the best arm of one prompt" if found.kind == "cascade" else "the best prompt at the same N"
    if found.chosen:
        return f"the {found.kind} gains {by} over {beside}, {arm_in_words(found.beside)}"
    if found.gain <= 0:
        return f"no {found.kind} gains over {beside}, {arm_in_words(found.beside)}"
    what = f"{found.kind} ({words})" if words else found.kind
    if found.gain <= found.standard_error:
        why = "not more than its uncertainty"
    else:
        why = "too little to be sure of, or less than another arm gains"
    return f"a {what} would gain {by} over {beside}: {why}, so it is not used"


def _considered(policy: Sequence[PreferenceResult]) -> list[str]:
    """Say which compound arms are used, or that none is; `PreferenceResult.considered` has all that were offered."""
    said: dict[str, list[str]] = {}
    for row in policy:
        for found in row.considered:
            if found.chosen:
                said.setdefault(considered_in_words(found), []).append(row.preference.name or "ad hoc")
    if not said and any(row.considered for row in policy):
        return [_NONE_BETTER]
    return [f"{', '.join(names)}: {text}." for text, names in said.items()]


def _least_reliable(policy: Sequence[PreferenceResult]) -> list[str]:
    """Say how far confidence is off where it is off by most."""
    known = [(row.reliability, row.preference.name or "ad hoc") for row in policy if row.reliability is not None]
    if not known:
        return []
    worst, name = max(known, key=lambda pair: pair[0].error)
    return [f"{name}: {worst.in_words}{'; the others less' if len(known) > 1 else ''}."]


def _gain(baseline: ComparedArm, row: PreferenceResult) -> str:
    if baseline.estimate.arm == row.arm:
        return "same arm"
    return f"{baseline.difference:+.3f}{shown_interval(baseline.interval)}"


def shown_interval(interval: Interval | None) -> str:
    """Return an interval in brackets, as it stands behind its estimate; "" for one that is not known."""
    return "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"


def shown_usd(usd: float | None) -> str:
    """Return dollars in words."""
    return "not known" if usd is None else f"{usd:.3g}"


def _doubts(policy: Sequence[PreferenceResult]) -> list[str]:
    """Say which preferences cannot be served, and which estimates are not to be trusted."""

    def named(rows: Sequence[PreferenceResult]) -> str:
        return ", ".join(row.preference.name or "ad hoc" for row in rows)

    broken = [row for row in policy if not row.keeps_caps]
    lucky = [row for row in policy if row.choice is not None and not row.choice.measured]
    alone = [row for row in policy if row.choice is not None and row.choice.queries < 2]
    return [
        *([f"NO ARM KEEPS THE CAPS of {named(broken)}: its calls will raise CapsTooTight."] if broken else []),
        *(
            [f"Not measured after the choice, so that the utility tends to be too high: {named(lucky)}."]
            if lucky
            else []
        ),
        *([f"One question gives no interval: {named(alone)}."] if alone else []),
    ]


def _deceptive(found: Deceptive, policy: Sequence[PreferenceResult], labels: Sequence[str]) -> str:
    return (
        f"{policy[found.context].preference.name or 'ad hoc'}: one prompt has the best single completions, but is "
        f"{found.difference:.3f}{shown_interval(found.interval)} behind at N={found.n}: {labels[found.prompt]}"
    )


def _won(row: PreferenceResult, name: str, found: WinRate) -> str:
    measured = "" if found.measured else ", by which the arm was chosen"
    return (
        f"{row.preference.name or 'ad hoc'}: the win rate against the baseline ({name}) is {found.rate:.3f}"
        f"{shown_interval(found.interval)}: {found.wins:.0%} won, {found.ties:.0%} tied, {found.losses:.0%} "
        f"lost on {found.queries} question{'s' * (found.queries > 1)}{measured}."
    )


def _left(row: PreferenceResult, by: str) -> str:
    """Say how much of a written prompt's gain is left on questions that no writer has read."""
    found = row.gain
    assert found is not None
    start = f"{row.preference.name or ''}: the prompt that {by} wrote gains {found.gain:.3f} over the best given one"
    if not found.queries:
        return f"{start}, but no question was left to confirm it: the given one is taken. Give a larger budget"
    error = "" if math.isnan(found.standard_error) else f" (standard error {found.standard_error:.3f})"
    where = f"{found.queries} question{'s' * (found.queries > 1)} that no writer has read"
    left = f"{start}, {found.left:.3f}{error} on {where}"
    return left if found.confirmed else f"{left}: the given one is taken"


def too_little(row: PreferenceResult, spent: int, n_queries: int) -> str | None:
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
