"""Reads the choices of a chat completion, and gives each its share of the usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from iapo_dspy.sampling.lm.params import canonical, derive_seed, max_output_tokens
from iapo_dspy.sampling.requests.endings import ending_of_choice
from iapo_dspy.sampling.requests.port import Choice
from iapo_dspy.sampling.spending.pricing import Price
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.sampling.spending.usage_check import FirstChoiceCheck, check_usage, whole_text


def seed_of(lm: dspy.BaseLM, key: Any, messages: Sequence[Mapping[str, Any]], index: int) -> int | None:
    """Return the seed of a request, made from the LM's own seed; None where the LM has none.

    `key` names the draw, and `index` says how many identical requests were made before.
    """
    base = lm.kwargs.get("seed")
    if isinstance(base, bool) or not isinstance(base, int):
        return None
    return derive_seed(base, key, canonical(messages), index)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The content of one chat completion."""

    outputs: Sequence[Any]  # its choices as DSPy adapters expect them
    reasons: Sequence[str | None]  # why each of them ended, as the provider says
    usage: Usage  # of the request

    def choices(self, n: int, *, shared: bool, price: Price | None, seed: int | None) -> list[Choice]:
        """Return the first n choices, each with its share of the usage.

        Args:
            n: How many were asked for; fewer may have come.
            shared: Whether n completions pay for the prompt once.
            price: Tells the prompt's part of the dollars; None where it is not known.
            seed: The seed that was sent.
        """
        usage = self.usage
        if shared:
            written = usage.completion_tokens * (price.completion if price is not None else 0.0)
            prompt_usd = 0.0 if usage.usd is None or price is None else max(usage.usd - written, 0.0)
            usage = replace(usage, shared_tokens=usage.prompt_tokens, shared_usd=prompt_usd)
        each = usage.share(max(min(len(self.outputs), n), 1))
        return [
            Choice(
                text=output if isinstance(output, str) else (output or {}).get("text"),
                output=output,
                finish_reason=reason,
                usage=each,
                seed=seed,
            )
            for output, reason in zip(self.outputs[:n], self.reasons[:n], strict=True)
        ]


def read_response(
    lm: dspy.BaseLM,
    response: Any,
    params: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    *,
    reported: tuple[Any, Any],
    first_choice: FirstChoiceCheck | None = None,
) -> Reading:
    """Read LiteLLM's response to a request with these settings and this prompt.

    `reported` are the prompt and completion tokens as the server says; see `check_usage`, also for `first_choice`.

    Raises:
        Exception: It is not a chat completion.
    """
    outputs = lm._process_completion(response, params)
    reasons = [ending_of_choice(c) for c in response.choices or ()]
    usage = check_usage(
        model=lm.model,
        messages=messages,
        texts=[whole_text(o) for o in outputs],
        truncated=reasons.count("length"),
        limit=max_output_tokens(params),
        reported=reported,
        first_choice=first_choice,
    )
    return Reading(outputs=outputs, reasons=reasons, usage=usage)
