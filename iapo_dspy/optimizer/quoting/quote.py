"""Upper bounds of a run, known before its first LM call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import dspy
import numpy as np

from iapo_dspy.optimizer.fingerprint import facts_of, older_of, prompt_ids, serving, takes_all
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.quoting.affordable import first_pulls, most_pulls, shown_budget
from iapo_dspy.optimizer.quoting.expected_spend import Expected, expect
from iapo_dspy.optimizer.quoting.rewriting_calls import RewritingBounds, longest_rewrite
from iapo_dspy.optimizer.quoting.structure import DryRunFailed, LMCall, calls_of, is_direct
from iapo_dspy.optimizer.quoting.writers import Writers, writers_of
from iapo_dspy.optimizer.writing.earlier import with_earlier
from iapo_dspy.report.html import table_html
from iapo_dspy.report.tabular import Line, Table
from iapo_dspy.sampling.ledger.ledger import fingerprint_of, taken_over, unit_of
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.sampling.ledger.records import ProposalRecord, RunRecord
from iapo_dspy.sampling.lm.params import supports_n
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.pricing import LIKELY_MARGIN, count_text

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class Left:
    """The rest of a budget where something is paid for already; None where it has no such limit.

    Attributes:
        spent: What this run and others paid before, with the upper bounds of requests that a kill cut off. Completions
            are those that serve this run: at most, where not `exact`.
        unused: Why other completions do not serve it; "" where all do.
        exact: Whether the run surely takes these completions; algorithms other than "auto" may draw others.
        completions: Completions; at least, where not `exact`.
        tokens: Tokens.
        usd: Dollars.
        seconds: Seconds.
    """

    spent: Spent
    unused: str
    exact: bool
    completions: int | None
    tokens: int | None
    usd: float | None
    seconds: float | None

    def __str__(self) -> str:
        """Return one line for people."""
        most = "" if self.exact else "at most "
        least = "" if self.exact or self.completions is None else "at least "
        spent = f"{self.spent.completions:,} completions, {self.spent.tokens:,} tokens, {self.spent.usd:,.4g} dollars"
        units = {"completions": ",", "tokens": ",", "usd": ",.4g", "seconds": ",.0f"}
        left = [
            f"{getattr(self, name):{form}} {'dollars' if name == 'usd' else name}"
            for name, form in units.items()
            if getattr(self, name) is not None
        ]
        unused = f" (others do not serve this run: {self.unused})" if self.unused else ""
        return f"spent so far: {most}{spent}{unused}; left to pay: {least}{', '.join(left)}"


@dataclass(frozen=True, kw_only=True)
class Quote:
    """Upper bounds of one run, and what it will probably take; retries of failed requests come on top.

    LM calls of a metric or an objective (judges), and those that write prompts, are not in the bounds, because their
    number is not known before the run. The budget holds for them too. Bounds and expectation are those of the whole
    run, also where it goes on.

    Attributes:
        prompts: Size of the prompt set P.
        completions: Completions at most: the budget's, or as many as its tokens or dollars probably pay for. None where
            the lengths of completions are not known either.
        least_completions: The smallest budget that the algorithm accepts.
        requests: LM requests at most. A server whose count of several choices is in doubt is asked for them one by one
            where a budget limits tokens or dollars, which takes more.
        prompt_tokens: Input tokens at most, by the model's tokenizer as far as LiteLLM has it, and a quarter more.
        completion_tokens: Output tokens at most. None where some LM has no max_tokens.
        usd: Dollars at most; a dollar budget caps it. None where a price or one of the token counts is not known.
        expected: What the run will probably take. None where the lengths of completions are not known.
        left: What is left to spend, where `log_dir` has a run that goes on.
        writers: What writing prompts will probably take; None where the run writes none. It is part of the expectation,
            not of the bounds.
        notes: Reasons why a number is not known, and ways to make it known.
    """

    prompts: int
    completions: int | None
    least_completions: int
    requests: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None
    expected: Expected | None
    left: Left | None
    writers: Writers | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return a few lines for people."""

        def show(value: float | None, text: str = "{:,.0f}") -> str:
            return "unknown" if value is None else text.format(value)

        guess = self.expected
        shown = {"requests": "{:,.0f}", "prompt_tokens": "{:,.0f}", "completion_tokens": "{:,.0f}", "usd": "{:,.4g}"}
        lines = [
            f"at most {show(self.completions, '{:,}')} completions of {self.prompts} prompt{'s' * (self.prompts > 1)} "
            f"(least {self.least_completions:,})",
            f"{'':<20}{'at most':>14}" + ("" if guess is None else f"{'expected':>14}   between"),
        ]
        for name, text in shown.items():
            words = ("dollars" if name == "usd" else name.replace("_", " ")) + ":"
            expected = "" if guess is None else f"{show(getattr(guess, name), text):>14}"
            if guess is not None and name in guess.spread:
                expected += "   " + " and ".join(text.format(v) for v in guess.spread[name])
            lines.append(f"{words:<20}{show(getattr(self, name), text):>14}{expected}")
        lines += [] if guess is None else [f"lengths: {guess.basis}"]
        lines += [str(part) for part in (self.writers, self.left) if part is not None]
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        """Return the bounds and the expectation for a notebook."""
        head, _, *rest = str(self).split("\n")
        names = ("requests", "prompt_tokens", "completion_tokens", "usd")
        lines = []
        for name in names:
            spread = self.expected.spread.get(name) if self.expected is not None else None
            shown = [getattr(self, name), getattr(self.expected, name, None), *(spread or (None, None))]
            words = "dollars" if name == "usd" else name.replace("_", " ")
            form = ",.4g" if name == "usd" else ",.0f"
            lines.append(Line(cells=(words, *("" if v is None else f"{v:{form}}" for v in shown))))
        columns = ("", "at most", "expected", "from", "to")
        return table_html(
            Table(columns=columns, rows=tuple(lines), numbers=frozenset(columns[1:]), title=head, notes=tuple(rest[4:]))
        )


def make_quote(plan: Plan, output_tokens: float | Sequence[float] | None = None) -> Quote:
    """Bound what a plan can take, and say what it will probably take. Nothing is sent.

    Raises:
        ConfigurationError: `output_tokens` does not fit the prompts.
    """
    budget, notes = plan.settings.budget, []
    writers = writers_of(plan)
    plan, expected, more = expect(plan, output_tokens, writers)
    requests = prompt_tokens = completion_tokens = usd = None
    if plan.completions is None:
        notes.append(
            f"{shown_budget(budget)} pays for as many completions as a first look at their lengths will show; the "
            "bounds are the budget's"
        )
    else:
        try:
            bounds = _Bounds.of(plan)
        except DryRunFailed as error:
            notes.append(f"the student's own forward decides how often it asks, and it cannot be tried: {error}")
        else:
            requests, prompt_tokens = bounds.requests, bounds.prompt_tokens
            completion_tokens, usd = bounds.completion_tokens, bounds.usd
            if completion_tokens is None:
                notes.append(
                    "set max_tokens on the LM, or Decoding(max_tokens=...), to bound output tokens and dollars"
                )
            elif usd is None:
                notes.append(
                    "LiteLLM knows no price of the model: give yours, "
                    "Search(cost_unit=Cost(usd_per_million=(input, output)))"
                )
            if not is_direct(plan):
                notes.append(
                    "the bounds come from running the student once with made-up answers; a program that asks more "
                    "often for other answers takes more"
                )
    return Quote(
        prompts=len(plan.prompts),
        completions=plan.completions,
        least_completions=plan.least,
        requests=requests,
        prompt_tokens=_least(prompt_tokens, budget.tokens),
        completion_tokens=_least(completion_tokens, budget.tokens),
        usd=_least(usd, budget.usd),
        expected=expected,
        left=_left(plan),
        writers=writers,
        notes=(*notes, *more),
    )


def _least(*bounds: Number | None) -> Number | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _left(plan: Plan) -> Left | None:
    """Return what is left of the budget, where the run's directory has a ledger."""
    log_dir, budget = plan.settings.log_dir, plan.settings.budget
    if log_dir is None or not (log_dir / "ledger.jsonl").is_file():
        return None
    id_of = prompt_ids(plan)
    facts = facts_of(plan)
    contents = contents_of(log_dir, partial(older_of, plan, id_of))
    run = RunRecord(fingerprint=fingerprint_of(facts), settings=facts)
    began = contents.run_of(run.fingerprint) is not None
    usable = contents.usable()
    plan = with_earlier(plan, contents.all(ProposalRecord), {prompt for prompt, _ in usable})
    found = serving(plan, usable, prompt_ids(plan), has_unit=unit_of(contents, run)[1], began=began)
    seconds = contents.paid(run.fingerprint).after.spent.seconds
    spent = taken_over(contents) + Spent(completions=found.restored, seconds=seconds)
    return Left(
        spent=spent,
        unused=found.rest,
        exact=takes_all(plan),
        completions=None if budget.completions is None else max(budget.completions - spent.completions, 0),
        tokens=None if budget.tokens is None else max(budget.tokens - spent.tokens, 0),
        usd=None if budget.usd is None else max(budget.usd - spent.usd, 0.0),
        seconds=None if budget.seconds is None else max(budget.seconds - spent.seconds, 0.0),
    )


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """The most that a run can take; None for a number that nothing limits."""

    requests: int
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None

    @classmethod
    def of(cls, plan: Plan) -> _Bounds:
        """Bound a plan by the prompts of its calls.

        Raises:
            DryRunFailed: The student's calls are not known.
        """
        total = plan.completions or 0
        longest = _longest([*plan.examples, *plan.held_out])
        calls = [calls_of(plan, prompt, longest) for prompt in plan.prompts.shown]
        requests, rewriting = _requests(plan, total, calls), RewritingBounds.of(plan)
        added = [longest_rewrite(prompt.rewriter) for prompt in plan.prompts.shown]
        prompts = [sum(_most_tokens(some)) + len(some) * (more or 0) for some, more in zip(calls, added, strict=True)]
        limits = [[call.limit for call in some] for some in calls]
        written = None
        if all(limit is not None for some in limits for limit in some):
            written = total * max(sum(limit or 0 for limit in some) for some in limits)
        read = requests * max(prompts) if is_direct(plan) else total * max(prompts)
        if is_direct(plan) and most_pulls(plan) is not None:
            read = min(read, _spread_evenly(plan, requests, prompts, longest))
        usd = _usd(plan, calls, prompts, requests, read, written)
        return cls(
            requests=requests + rewriting.requests,
            prompt_tokens=None if None in added else read + rewriting.prompt_tokens,
            completion_tokens=_both(written, rewriting.completion_tokens),
            usd=_both(usd, rewriting.usd),
        )


def _both(one: Number | None, other: Number | None) -> Number | None:
    return None if one is None or other is None else one + other


def _longest(examples: Sequence[dspy.Example]) -> dspy.Example:
    return max(examples, key=lambda e: sum(len(str(v).encode(errors="surrogatepass")) for v in e.inputs().values()))


def _most_tokens(calls: Sequence[LMCall]) -> list[int]:
    """Return the prompt tokens of each call at most; a prompt may have the answers to the calls before."""
    before, found = 0, []
    for call in calls:
        found.append(call.most_tokens + before)
        before += call.limit or 0
    return found


def _requests(plan: Plan, total: int, calls: Sequence[Sequence[LMCall]]) -> int:
    """Return the requests at most. Without n, and in programs of several steps, each completion may have its own."""
    most = total * max(len(some) for some in calls)
    if not is_direct(plan) or not all(supports_n(call.lm.model, None) for some in calls for call in some):
        return most
    pulls = most_pulls(plan)
    if pulls is None:  # the first batch is known; after it the worst case is one request per completion
        first, rest = first_pulls(plan), total - plan.reserved
        pulls = len(first) + rest - first.completions
    # Where tokens are limited, one request of each LM shows how it counts several choices.
    probes = len({id(call.lm) for some in calls for call in some}) if plan.settings.budget.bounds_requests else 0
    return min(pulls + _measuring(plan) + probes, most)


def _measuring(plan: Plan) -> int:
    """Return the requests at most that measure the chosen arms: each arm asks a query once."""
    return min(plan.reserved, plan.problem.n_contexts * len(plan.held_out or plan.examples))


def _spread_evenly(plan: Plan, requests: int, prompts: Sequence[int], longest: dspy.Example) -> int:
    """Return the prompt tokens at most of requests that each prompt spreads evenly over the queries.

    A prompt asks no query a second time before it has asked all of them. So it cannot take more than the mean of its
    prompts, but for the longest queries of a turn that is not over.
    """
    model = next(iter(plan.prompts.shown[0].student.lms.values())).model
    sizes = LIKELY_MARGIN * np.array([_size(model, e) for e in plan.examples])
    most = LIKELY_MARGIN * _size(model, longest)
    mean = max(prompts) - most + float(sizes.mean())
    descending = np.sort(sizes)[::-1]
    turn = float((np.cumsum(descending) - np.arange(1, len(sizes) + 1) * sizes.mean()).max())
    held_out = _measuring(plan) * most
    return math.ceil(requests * mean + len(plan.prompts) * max(turn, 0.0) + held_out)


def _size(model: str, example: dspy.Example) -> int:
    return count_text(model, " ".join(str(value) for value in example.inputs().values()))


def _usd(
    plan: Plan,
    calls: Sequence[Sequence[LMCall]],
    prompts: Sequence[int],
    requests: int,
    read: int,
    written: int | None,
) -> float | None:
    """Bound the dollars of a run that may spend each request and each completion on the dearest prompt."""
    found = [[plan.price_of(call.lm) for call in some] for some in calls]
    prices = [price for some in found for price in some if price is not None]
    if written is None or len(prices) < sum(map(len, found)):
        return None
    dearest = max(p.prompt_bound for p in prices) * read + max(p.completion_bound for p in prices) * written
    if not is_direct(plan):
        return dearest
    # One LM may have dear requests and another dear completions: a request brings one completion of its own LM at
    # least, and the other completions may be of another LM.
    total = plan.completions or 0
    sizes = [(price, size, some[0].limit or 0) for price, size, some in zip(prices, prompts, calls, strict=True)]
    first = max(price.bound(prompt, limit) for price, prompt, limit in sizes)
    more = max(price.bound(0, limit) for price, _, limit in sizes)
    return min(dearest, requests * first + (total - requests) * more)
