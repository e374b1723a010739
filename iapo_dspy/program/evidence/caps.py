"""Hard caps of a preference: which arms keep them, and which limits of a call make sure of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.bandit.costs.worst_path import keeps_caps, most_used
from iapo_dspy.errors import CapsTooTight, ConfigurationError
from iapo_dspy.preferences import CAPS, RESOURCES, UNITS, Preference
from iapo_dspy.sampling.spending.pricing import Price
from iapo_dspy.types import Arm, Observations

_NAMES = {unit: name for name, unit in CAPS.items()}


def check_known(preference: Preference, evidence: Sequence[Observations]) -> None:
    """Refuse a preference that prices or caps something that was not measured.

    Raises:
        ConfigurationError: The evidence lacks something that it prices or caps.
    """
    if not preference.resources:
        return
    used = [o.used for o in evidence if o.used is not None and len(o.pulls)]
    if not used:
        raise ConfigurationError(
            f"{preference} prices or caps {sorted(preference.resources)}, and this program does not know how much "
            "calls take of them: it was saved by an older version. Compile it again, or use Preference(cost=...)."
        )
    if "usd" in preference.resources and np.isnan(np.concatenate(used)[:, RESOURCES.index("usd")]).any():
        raise ConfigurationError(
            f"{preference} counts dollars, and the prices of this program's LMs were not known when it was compiled. "
            "Give them: program.reprice(usd_per_million=(0.15, 0.60)), or compile with "
            "Search(cost_unit=Cost(usd_per_million=...)) or LMs that LiteLLM knows the price of."
        )
    if "seconds" in preference.resources and np.isnan(np.concatenate(used)[:, RESOURCES.index("seconds")]).all():
        raise ConfigurationError(
            f"{preference} counts seconds, and the run measured none, as with batch=...: compile without batch jobs, "
            "or leave the seconds out."
        )


def check_caps(preference: Preference, arm: Arm, charges: Charges, label: str) -> None:
    """Refuse an arm that breaks the caps of a preference: then every arm does, and this one comes nearest.

    Raises:
        CapsTooTight: It breaks a cap.
    """
    if keeps_caps(charges, 0, arm):
        return
    used = most_used(charges, arm)
    least = {unit: float(used[RESOURCES.index(unit)]) for unit in preference.caps}
    broken = {unit: cap for unit, cap in preference.caps.items() if not least[unit] <= cap}
    wanted = ", ".join(f"{_NAMES[unit]}={cap:.6g}" for unit, cap in broken.items())
    takes = ", ".join(f"{_up(unit, least[unit])} {UNITS[unit]}" for unit in broken)
    what = arm_in_words(arm) if arm.compound else f"prompt {arm.prompt} with N={arm.n} ({label!r})"
    raise CapsTooTight(
        f"No arm keeps {wanted} of {preference}. The cheapest is {what}: a "
        f"call of it takes up to {takes}, by estimate plus its uncertainty. Raise the cap to that, or compile "
        "with cheaper candidates, LMs or decodings.",
        arm=arm,
        needs={_NAMES[unit]: least[unit] for unit in broken},
    )


def _up(unit: str, value: float) -> str:
    """Write a need such that a cap of the number that is shown is high enough."""
    if not value > 0 or math.isinf(value):
        return "an unknown number of"
    step = 1.0 if unit == "tokens" else 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step) * step:.6g}"


@dataclass(frozen=True, kw_only=True)
class PromptUse:
    """The most that a call takes of one prompt, by its worst path.

    Attributes:
        completions: Completions.
        prompt_tokens: Prompt tokens of all of them, by estimate plus its uncertainty.
        tokens_each: Output tokens of one of them, by estimate plus its uncertainty.
        tokens_once: Output tokens that it takes whatever their number, likewise.
        usd_once: Dollars that it takes whatever their number, likewise.
    """

    completions: int
    prompt_tokens: float
    tokens_each: float
    tokens_once: float = 0.0
    usd_once: float = 0.0


def most_of_prompts(arm: Arm, charges: Charges) -> dict[int, PromptUse]:
    """Return the most that a call takes of each prompt of its arm."""
    request, completion = (part[RESOURCES.index("prompt_tokens")] for part in charges.upper_parts())
    each = charges.upper_parts()[1][RESOURCES.index("tokens")]
    tokens, usd = (charges.upper_parts()[0][RESOURCES.index(name)] for name in ("tokens", "usd"))
    found: dict[int, PromptUse] = {}
    for stage in arm.stages:
        waves = len(stage.stop.waves) if stage.stop is not None else 1
        for share in stage.shares:
            before = found.get(share.prompt)
            used = waves * request[share.prompt] + share.n * completion[share.prompt]
            found[share.prompt] = PromptUse(
                completions=share.n + (before.completions if before is not None else 0),
                prompt_tokens=float(used) + (before.prompt_tokens if before is not None else 0.0),
                tokens_each=float(each[share.prompt]),
                tokens_once=float(tokens[share.prompt]),
                usd_once=waves * float(usd[share.prompt]) + (before.usd_once if before is not None else 0.0),
            )
    return found


def tokens_of_each(
    preference: Preference,
    uses: Mapping[int, PromptUse],
    prices: Mapping[int, Price | None],
    rewritten: Collection[int] = (),
) -> dict[int, int]:
    """Return the output tokens that a completion of each prompt may take, so that caps are kept on the worst path.

    Prompts that take more tokens may take more of what there is.

    Args:
        preference: The preference.
        uses: The most that a call takes of each prompt.
        prices: The price of each prompt's tokens; None where it is not known, or where it has several LMs.
        rewritten: Prompts with a rewriter of queries, which takes its part before.

    Returns:
        The limits; nothing where there are none.
    """
    if len(uses) > 1:
        part = {p: max(use.tokens_each, 1.0) for p, use in uses.items()}
    else:
        part = dict.fromkeys(uses, 1.0)
    limits = []
    if preference.max_tokens is not None:
        whole = sum(use.completions * part[p] for p, use in uses.items())
        apart = sum(uses[p].tokens_once for p in rewritten)
        limits.append({p: math.floor((preference.max_tokens - apart) * part[p] / whole) for p in uses})
    known = {p: price for p, price in prices.items() if price is not None}
    if preference.max_usd is not None and len(known) == len(uses):
        read = {p: use.prompt_tokens * known[p].prompt for p, use in uses.items()}
        read |= {p: max(read[p], uses[p].usd_once) for p in rewritten}
        left = preference.max_usd - sum(read.values())
        whole = sum(use.completions * part[p] * known[p].completion for p, use in uses.items())
        if whole > 0:
            limits.append({p: math.floor(left * part[p] / whole) for p in uses})
    return {p: max(min(limit[p] for limit in limits), 1) for p in uses} if limits else {}
