"""Explains the arm of a preference, and one call, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import numpy as np
from pydantic_core import to_jsonable_python

from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.compound.chosen import as_called
from iapo_dspy.bandit.compound.uncertainty import queries_of
from iapo_dspy.bandit.inference import choices
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import Preference
from iapo_dspy.program.call_report import CallReport
from iapo_dspy.program.results.wording import considered_in_words
from iapo_dspy.program.table import PolicyTable
from iapo_dspy.report.html import table_html
from iapo_dspy.report.tabular import Line, Table
from iapo_dspy.scoring.strategies import columns_of
from iapo_dspy.types import Arm, Contexts, Policy

_LONGEST_LABEL = 60
_STOPPED = {
    "settled": "the rest could not have changed the result",
    "confident": "the leading answer was ahead by enough",
    "threshold": "a completion was good enough",
    "sure": "a stage was sure enough",
    "unsure": "the rest of a stage could not have made it sure enough",
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """An arm and its estimated worth to the preference.

    Attributes:
        what: Its part: "chosen", "best other prompt", "one completion of the same prompt", "best single completion";
            beside a cascade or a mixture "best arm of one prompt".
        prompt: Index of the prompt; of several, that of the first one.
        label: The prompt in words; of several, one after the other.
        n: Completions drawn and aggregated, at most; of several prompts, those of the first one.
        words: A cascade or a mixture in words; "" for an arm of one prompt.
        completions: Expected completions of a call: n, or fewer where it stops early.
        utility: Estimated utility (eq. 3); None without evidence.
        reward: Estimated task reward without the cost; None without evidence.
        cost: Estimated cost per query, in the unit of the run; None without evidence.
    """

    what: str
    prompt: int
    label: str
    n: int
    completions: float
    utility: float | None
    reward: float | None
    cost: float | None
    words: str = ""

    @property
    def arm(self) -> str:
        """The arm in words, with its prompt."""
        return self.words or f"N={self.n} of prompt {self.prompt}, {_short(self.label)}"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The wishes of a preference, the arm that serves them and why, and the report of one call.

    Estimates rest on the stored evidence; the best of many estimates is optimistic.

    Attributes:
        preference: The preference in words.
        chosen: The arm.
        stop: Its waves and its stopping rule in words; None where all completions are drawn at once.
        interval: The 95 % interval of the chosen arm's utility; None where there is none.
        measured: Whether the chosen arm's utility rests on completions that had no part in the choice. The estimates
            that it was chosen by, and those of the alternatives, tend to be too high.
        estimated: The chosen arm's utility by the same estimates as the alternatives'; None without evidence.
        standard_error: Of the chosen arm's utility; None for algorithms without standard errors.
        probability_best: Probability that the chosen prompt is the best one for this preference; of a cascade or a
            mixture, that it is better than any arm of one prompt. None as above.
        evidence: Observations behind the choice: queries on which each of its prompts was drawn; for `psst`, groups of
            N completions.
        abstains: Expected share of calls that end without an answer.
        prompts: The prompts of a cascade or a mixture in words; nothing for an arm of one prompt.
        considered: The cascade and the mixture that the preference was offered, in words.
        alternatives: Other arms, best first.
        cost_unit: The unit of costs.
        call: The call that is explained; None for a preference alone.
    """

    preference: str
    chosen: Option
    stop: str | None
    interval: tuple[float, float] | None
    measured: bool
    estimated: float | None
    standard_error: float | None
    probability_best: float | None
    evidence: int
    alternatives: tuple[Option, ...]
    cost_unit: str
    call: CallReport | None
    abstains: float = 0.0
    prompts: Mapping[int, str] = field(default_factory=dict)
    considered: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain

    def __str__(self) -> str:
        """Return a few lines for people."""
        stop = f"; {self.stop}" if self.stop else ""
        lines = [
            f"Preference: {self.preference}.",
            f"Arm: {self.chosen.arm}{stop}.",
            *(f"Prompt {number}: {_short(label)}." for number, label in self.prompts.items()),
            f"Expected: {self._estimates(self.chosen)}{self._sureness()}.",
        ]
        for option in self.alternatives:
            lines.append(f"Instead: {option.what}, {option.arm}: {self._estimates(option)}.")
        lines += [f"Considered: {found}." for found in self.considered]
        if self.call is not None:
            lines.append(f"This call: {_did(self.call)}.")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the arm and its alternatives for a notebook."""
        options = (self.chosen, *self.alternatives)
        lines = tuple(
            Line(
                cells=(
                    o.what, "" if o.words else str(o.n), f"{o.completions:.1f}",
                    *("not known" if v is None else f"{v:.3g}" for v in (o.utility, o.reward, o.cost)),
                    o.words or o.label,
                ),
                strong=o is self.chosen,
            )
            for o in options
        )  # fmt: skip
        columns = ("arm", "N", "draws", "utility", "reward", f"cost, {self.cost_unit}", "prompt")
        call = () if self.call is None else (f"This call: {_did(self.call)}.",)
        prompts = (f"Prompt {number}: {label}" for number, label in self.prompts.items())
        considered = (f"Considered: {found}." for found in self.considered)
        notes = (*prompts, f"Expected: {self._estimates(self.chosen)}{self._sureness()}.", *considered, *call)
        return table_html(
            Table(columns=columns, rows=lines, numbers=frozenset(columns[1:6]), title=self.preference, notes=notes)
        )

    def _estimates(self, option: Option) -> str:
        if option.utility is None or option.reward is None or option.cost is None:
            return "not known for lack of evidence"
        behind = ""
        if option is not self.chosen and self.estimated is not None:
            behind = f" ({option.utility - self.estimated:+.3f})"
        return (
            f"utility {option.utility:.3f}{behind}, reward {option.reward:.3f}, cost {option.cost:.3g} {self.cost_unit}"
        )

    def _sureness(self) -> str:
        parts = []
        if self.interval is not None:
            parts.append(f"utility {self.interval[0]:.3f} to {self.interval[1]:.3f}")
        elif self.probability_best is not None:
            parts.append("no interval from one query")
        if self.probability_best is not None and not self.measured:
            parts.append("not measured after the choice, tends to be too high")
        if self.probability_best is not None:
            what = "it is better than any arm of one prompt" if self.chosen.words else "its prompt is the best"
            parts.append(f"{what} with p={self.probability_best:.2f}")
        if self.abstains:
            parts.append(f"no answer to {self.abstains:.1%}")
        parts.append(f"from {self.evidence} observations")
        return f"; {', '.join(parts)}"


def report_of(call: Any) -> CallReport | None:
    """Return the report of a prediction, or the report itself.

    Raises:
        ConfigurationError: It is neither.
    """
    report = getattr(call, "iapo", None) if isinstance(call, dspy.Prediction) else call
    if (report is None and call is None) or isinstance(report, CallReport):
        return report
    raise ConfigurationError(
        f"explain({call!r}): give the prediction of a call of this program, or its `iapo` report; or preference=... "
        "to explain a call that was not made."
    )


def explain(table: PolicyTable, preference: Preference, report: CallReport | None = None) -> Explanation:
    """Explain a preference, and one call of it; see `CompiledProgram.explain`.

    Raises:
        ConfigurationError: The report is of another program.
    """
    data = table.ready
    arm = table.solver.choose(preference).arm
    if report is not None and not _made_by(report, arm):
        if report.prompt >= len(data.prompts) or report.planned > data.max_n or len(_drawn(report)) > 1:
            raise ConfigurationError(
                f"The report is of prompt {report.prompt} with N={report.planned}, which this program does not have: "
                "explain it by the program that made the call."
            )
        arm = Arm(report.prompt, report.planned)  # the program was compiled or loaded anew since that call
    outcome = data.solve([preference], table.strategy)
    if arm.compound and arm != outcome.policy[0]:
        call = as_called(data.problem([preference], table.strategy), outcome, 0, arm)
        outcome = replace(outcome, policy=Policy((arm,)), stops=(call,))
    chosen = _option(table, outcome, "chosen", arm)
    contexts = Contexts.from_preferences([preference], table.strategy.objectives, columns_of(table.strategy))
    measured = data.measurement(preference, arm)
    sure = choices(replace(outcome, measured=(measured,)), contexts, table.strategy.aggregator())
    solved = outcome.policy[0]
    own = sure is not None and (solved == arm or (solved.prompt == arm.prompt and not solved.compound))
    error = outcome.estimates.standard_error
    single = 0.01 * preference.cost
    meaning = f": an average single completion costs {single:.3g} of the objective" if single else ""
    estimated, told = chosen.utility, sure[0] if sure is not None and own else measured
    interval: tuple[float, float] | None = None
    if told is not None and estimated is not None and chosen.reward is not None:
        interval = told.interval if np.isfinite(told.interval).all() else None
        chosen = replace(chosen, utility=told.utility, reward=chosen.reward + told.utility - estimated)
    return Explanation(
        preference=f"{preference}{meaning}",
        chosen=chosen,
        stop=arm.stop.in_words if arm.stop is not None and not arm.compound else None,
        interval=interval,
        measured=measured is not None,
        estimated=estimated,
        standard_error=_known(told.standard_error) if told is not None else None,
        probability_best=_known(sure[0].probability_best) if sure is not None and own else None,
        evidence=queries_of(outcome, arm) if error is not None else int(outcome.count[arm.prompt, arm.n - 1]),
        abstains=outcome.stops[0].abstains if arm.compound and outcome.stops is not None else 0.0,
        prompts={prompt: table.programs.label(prompt) for prompt in arm.prompts} if arm.compound else {},
        considered=tuple(
            considered_in_words(found, arm_in_words(found.arm, table.strategy.aggregator()))
            for found in (outcome.considered[0] if outcome.considered else ())
        ),
        alternatives=_alternatives(table, outcome, arm),
        cost_unit=data.cost.unit,
        call=report,
    )


def _made_by(report: CallReport, arm: Arm) -> bool:
    """Tell whether a call drew this arm, as far as its report says."""
    return report.planned == arm.most and report.prompt in arm.prompts and _drawn(report) <= {*arm.prompts}


def _drawn(report: CallReport) -> set[int]:
    """Return the prompts that a call drew."""
    return {drawn.prompt for stage in report.stages for drawn in stage.prompts} or {report.prompt}


def _alternatives(table: PolicyTable, outcome: Outcome, arm: Arm) -> tuple[Option, ...]:
    """Return the arms that a reader would ask about, each once, best first."""
    q = np.where(np.isnan(outcome.q[0]), -np.inf, outcome.q[0])
    others = np.where((np.arange(len(q))[:, None] == arm.prompt) & (not arm.compound), -np.inf, q)
    asked: dict[Arm, str] = {}

    def ask(what: str, values: np.ndarray[Any, Any]) -> None:
        prompt, column = np.unravel_index(int(values.argmax()), values.shape)
        found = Arm(int(prompt), int(column) + 1)
        if np.isfinite(values[prompt, column]) and (arm.compound or found != Arm(arm.prompt, arm.n)):
            asked.setdefault(found, what)

    ask("best arm of one prompt" if arm.compound else "best other prompt", others)
    same = Arm(arm.prompt, 1)
    if not arm.compound and arm.n > 1 and np.isfinite(q[arm.prompt, 0]):
        asked.setdefault(same, "one completion of the same prompt")
    ask("best single completion", q[:, :1])
    ranked = sorted(asked, key=lambda a: -q[a.prompt, a.n - 1])
    return tuple(_option(table, outcome, asked[a], a) for a in ranked)


def _option(table: PolicyTable, outcome: Outcome, what: str, arm: Arm) -> Option:
    found = outcome.stops[0].arm if outcome.stops is not None else None
    if arm.stop is not None and arm.stop.waves[0] == 1 and found == Arm(arm.prompt, 1):
        arm = found  # saved by an older version: its calls always end after their first completion
    at = arm.prompt, arm.n - 1
    stopped = outcome.stops[0] if outcome.stops is not None and found == arm else None
    if stopped is not None:
        values = stopped.utility, stopped.reward, stopped.cost
    else:  # all N drawn at once
        values = outcome.q[0][at], outcome.reward[0][at], outcome.estimates.cost[at]
    utility, reward, cost = (_known(v) for v in values)
    return Option(
        what=what,
        prompt=arm.prompt,
        label="; ".join(map(table.programs.label, arm.prompts)),
        n=arm.n,
        words=arm_in_words(arm, table.strategy.aggregator()) if arm.compound else "",
        completions=stopped.completions if stopped is not None else float(arm.n),
        utility=utility,
        reward=reward if utility is not None else None,
        cost=cost if utility is not None else None,
    )


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _did(report: CallReport) -> str:
    drew = f"drew {report.n} of {report.planned}" if report.n < report.planned else f"drew all {report.n}"
    drew += "".join(f" on the query as {name!r} rewrote it, {_short(text)}," for name, text in report.rewritten.items())
    drew += "".join(f" on the query as it was, for {name!r} failed," for name in report.not_rewritten)
    parts = [f"{drew} in {report.waves} {'wave' if report.waves == 1 else 'waves'}"]
    if report.stopped is not None:
        parts[0] += f" ({report.stopped}: {_STOPPED.get(report.stopped, 'its rule said so')})"
    if report.way:
        parts.append(report.way)
    if report.votes is not None:
        shown = [f"{_short(answer)} {votes}" for answer, votes in list(report.votes.items())[:4]]
        parts.append(f"votes {', '.join(shown)}{', ...' if len(report.votes) > 4 else ''}")
    if report.utilities is not None and report.winner is not None:
        best = report.utilities[report.winner]
        parts.append(f"completion {report.winner} was the best" + (f" with {best:.3f}" if best is not None else ""))
    if report.failures:
        cause = next(iter(report.failures.values()))
        parts.append(f"{len(report.failures)} failed ({_short(cause)})")
    usd = f", ${report.usd:.3g}" if report.usd is not None else ""
    parts.append(f"{report.prompt_tokens:.0f} input and {report.completion_tokens:.0f} output tokens{usd}")
    parts.append(f"{report.seconds:.2f} s")
    return "; ".join(parts)


def _short(text: str) -> str:
    line = " ".join(str(text).split())
    return repr(line if len(line) <= _LONGEST_LABEL else line[: _LONGEST_LABEL - 3] + "...")
