"""Upper bounds of a run, known before its first LM call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import dspy

from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.quoting.expected_spend import Expected, expect, is_direct, messages_of, params_of
from iapo_dspy.prompts.prompt import Prompt
from iapo_dspy.sampling.lm.params import max_output_tokens, supports_n
from iapo_dspy.sampling.spending.pricing import prompt_bound

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class Quote:
    """Upper bounds of one run, and what it will probably take; retries of failed requests come on top.

    LM calls of a metric or an objective (judges) are not in the bounds, because their number is not known before the
    run. The budget holds for them too.

    Attributes:
        prompts: Size of the prompt set P.
        completions: Completions at most: the budget.
        least_completions: The smallest budget that the algorithm accepts.
        requests: LM requests at most. None for a student whose own `forward` decides how often it calls the LM.
        prompt_tokens: Input tokens at most. None where `requests` is.
        completion_tokens: Output tokens at most. None where some LM has no max_tokens, or where `requests` is None.
        usd: Dollars at most; a dollar budget caps it. None where a price or one of the token counts is not known.
        expected: What the run will probably take. None where the lengths of completions are not known.
        notes: Reasons why a number is not known, and ways to make it known.
    """

    prompts: int
    completions: int
    least_completions: int
    requests: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None
    expected: Expected | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return a few lines for people."""

        def show(value: float | None, text: str = "{:,.0f}") -> str:
            return "unknown" if value is None else text.format(value)

        guess = self.expected
        shown = {"requests": "{:,.0f}", "prompt_tokens": "{:,.0f}", "completion_tokens": "{:,.0f}", "usd": "{:,.4g}"}
        lines = [
            f"at most {self.completions:,} completions of {self.prompts} prompts (least {self.least_completions:,})",
            f"{'':<20}{'at most':>14}" + ("" if guess is None else f"{'expected':>14}   between"),
        ]
        for name, text in shown.items():
            words = ("dollars" if name == "usd" else name.replace("_", " ")) + ":"
            expected = "" if guess is None else f"{show(getattr(guess, name), text):>14}"
            if guess is not None and name in guess.spread:
                expected += "   " + " and ".join(text.format(v) for v in guess.spread[name])
            lines.append(f"{words:<20}{show(getattr(self, name), text):>14}{expected}")
        lines += [] if guess is None else [f"lengths: {guess.basis}"]
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def make_quote(plan: Plan, output_tokens: float | Sequence[float] | None = None) -> Quote:
    """Bound what a plan can take, and say what it will probably take. Nothing is sent.

    Raises:
        ConfigurationError: `output_tokens` does not fit the prompts.
    """
    budget, notes = plan.settings.budget, []
    total = budget.completions
    requests = prompt_tokens = completion_tokens = None
    if not is_direct(plan):
        notes.append("the student's own forward decides how often it calls the LM, so requests and tokens are unknown")
    else:
        requests = _requests(plan, total)
        longest = [_longest_prompt(p, plan.examples) for p in plan.prompts.shown]
        prompt_tokens = requests * max(longest)
        limits = [_output_limit(p) for p in plan.prompts.shown]
        known = [n for n in limits if n is not None]
        if len(known) < len(limits):
            notes.append("set max_tokens on the LM, or Decoding(max_tokens=...), to bound output tokens and dollars")
        else:
            completion_tokens = total * max(known)
    prompt_tokens, completion_tokens = _least(prompt_tokens, budget.tokens), _least(completion_tokens, budget.tokens)
    usd = _usd(plan, requests, prompt_tokens, completion_tokens)
    if usd is None and completion_tokens is not None:
        notes.append(
            "LiteLLM knows no price of the model: give yours, IAPO(cost=Cost(usd_per_million=(input, output)))"
        )
    expected, more = expect(plan, output_tokens)
    return Quote(
        prompts=len(plan.prompts),
        completions=total,
        least_completions=plan.least,
        requests=requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        usd=_least(usd, budget.usd),
        expected=expected,
        notes=(*notes, *more),
    )


def _least(*bounds: Number | None) -> Number | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _requests(plan: Plan, total: int) -> int:
    """The first batch is known; after it the worst case is one request per completion."""
    if not all(supports_n(lm.model, None) for p in plan.prompts.shown for lm in p.student.lms.values()):
        return total
    run = plan.start()
    first = next(run, None)
    run.close()
    return total if first is None else len(first) + total - first.completions


def _longest_prompt(prompt: Prompt, examples: Sequence[dspy.Example]) -> int:
    longest = max(examples, key=lambda e: sum(len(str(v).encode()) for v in e.inputs().values()))
    return prompt_bound(messages_of(prompt, longest), params_of(prompt))


def _output_limit(prompt: Prompt) -> int | None:
    return max_output_tokens(params_of(prompt))


def _usd(plan: Plan, requests: int | None, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
    """Bound the dollars of a run that may spend each request and each completion on the dearest prompt."""
    found = [plan.price_of(lm) for p in plan.prompts.shown for lm in p.student.lms.values()]
    prices = [p for p in found if p is not None]
    if prompt_tokens is None or completion_tokens is None or len(prices) < len(found):
        return None
    dearest = max(p.prompt_bound for p in prices) * prompt_tokens
    dearest += max(p.completion_bound for p in prices) * completion_tokens
    if requests is None:
        return dearest
    # One LM may have dear requests and another dear completions: a request brings one completion of its own LM at
    # least, and the other completions may be of another LM.
    total = plan.settings.budget.completions
    sizes = [
        (price, _longest_prompt(p, plan.examples), _output_limit(p) or 0)
        for price, p in zip(prices, plan.prompts.shown, strict=True)
    ]
    first = max(price.bound(prompt, limit) for price, prompt, limit in sizes)
    more = max(price.bound(0, limit) for price, _, limit in sizes)
    return min(dearest, requests * first + (total - requests) * more)
