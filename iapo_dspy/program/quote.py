"""What a run takes at most, told before its first LM call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.program.plan import Plan, lms_of
from iapo_dspy.program.prompts import Prompt
from iapo_dspy.sampling.params import max_output_tokens, request_params, supports_n
from iapo_dspy.sampling.pricing import price_of, prompt_bound

__all__ = ["Quote", "make_quote"]


@dataclass(frozen=True, kw_only=True)
class Quote:
    """Upper bounds of one run; retries of failed requests come on top, and are rarely billed.

    LM calls that a metric or an objective makes (judges) are not counted.

    Attributes:
        prompts: Size of the prompt set P.
        completions: Completions at most: the budget.
        least_completions: The smallest budget that the algorithm accepts.
        requests: LM requests at most. None for a student whose own `forward` decides how often it calls the LM.
        prompt_tokens: Input tokens at most. None where `requests` is.
        completion_tokens: Output tokens at most. None where some LM has no max_tokens, or where `requests` is None.
        usd: Dollars at most; a dollar budget caps it. None where a price or one of the token counts is not known.
        notes: What keeps a number from being known, and what to do about it.
    """

    prompts: int
    completions: int
    least_completions: int
    requests: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return a few lines for people."""

        def show(value: float | None, text: str = "{:,.0f}") -> str:
            return "unknown" if value is None else text.format(value)

        lines = [
            f"at most {self.completions:,} completions of {self.prompts} prompts (least {self.least_completions:,})",
            f"requests:          {show(self.requests)}",
            f"prompt tokens:     {show(self.prompt_tokens)}",
            f"completion tokens: {show(self.completion_tokens)}",
            f"dollars:           {show(self.usd, '{:,.2f}')}",
        ]
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def make_quote(plan: Plan) -> Quote:
    """Bound what a plan can take. Nothing is sent."""
    budget, notes = plan.budget, []
    total = budget.completions
    direct = type(plan.student) in (dspy.Predict, dspy.ChainOfThought)
    requests = prompt_tokens = completion_tokens = None
    if not direct:
        notes.append("the student's own forward decides how often it calls the LM, so requests and tokens are unknown")
    else:
        requests = _requests(plan, total)
        longest = [_longest_prompt(p, plan.examples) for p in plan.prompts]
        prompt_tokens = requests * max(longest)
        limits = [_output_limit(p) for p in plan.prompts]
        known = [n for n in limits if n is not None]
        if len(known) < len(limits):
            notes.append("set max_tokens on the LM, or Decoding(max_tokens=...), to bound output tokens and dollars")
        else:
            completion_tokens = total * max(known)
    if budget.tokens is not None:
        prompt_tokens = min(prompt_tokens if prompt_tokens is not None else budget.tokens, budget.tokens)
        completion_tokens = min(completion_tokens if completion_tokens is not None else budget.tokens, budget.tokens)
    usd = _usd(plan, prompt_tokens, completion_tokens)
    if usd is None and completion_tokens is not None:
        notes.append(
            "LiteLLM knows no price of the model: pass input_cost_per_token and output_cost_per_token to the LM"
        )
    if budget.usd is not None:
        usd = min(usd if usd is not None else budget.usd, budget.usd)
    return Quote(
        prompts=len(plan.prompts),
        completions=total,
        least_completions=plan.least,
        requests=requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        usd=usd,
        notes=tuple(notes),
    )


def _requests(plan: Plan, total: int) -> int:
    """The first batch is known; after it the worst case is one request per completion."""
    if not all(supports_n(lm.model, None) for p in plan.prompts for lm in lms_of(p.program)):
        return total
    run = plan.start()
    first = next(run, None)
    run.close()
    return total if first is None else len(first) + total - first.completions


def _settings(prompt: Prompt) -> tuple[dspy.BaseLM, Any, dict[str, Any]]:
    ((_, predictor),) = prompt.program.named_predictors()
    lm = lms_of(prompt.program)[0]
    return lm, predictor, request_params(lm, predictor.config, prompt.decoding)


def _longest_prompt(prompt: Prompt, examples: Sequence[dspy.Example]) -> int:
    _, predictor, params = _settings(prompt)
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    longest = max(examples, key=lambda e: sum(len(str(v).encode()) for v in e.inputs().values()))
    messages = adapter.format(predictor.signature, predictor.demos, dict(longest.inputs().items()))
    return prompt_bound(messages, params)


def _output_limit(prompt: Prompt) -> int | None:
    return max_output_tokens(_settings(prompt)[2])


def _usd(plan: Plan, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
    prices = [price_of(lm) for p in plan.prompts for lm in lms_of(p.program)]
    if prompt_tokens is None or completion_tokens is None or any(p is None for p in prices):
        return None
    return max(p.bound(prompt_tokens, completion_tokens) for p in prices if p is not None)
