"""Hard caps of a preference: which arms keep them, and which limits of a call make sure of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from iapo_dspy.bandit.costs.charges import Charges
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
    waves = len(arm.stop.waves) if arm.stop is not None else 1
    if charges.most_waves()[0, arm.prompt, arm.n - 1] >= waves:
        return
    upper = charges.upper()[:, arm.prompt, arm.n - 1]
    times = {"seconds": waves}
    least = {unit: float(upper[RESOURCES.index(unit)]) * times.get(unit, 1) for unit in preference.caps}
    broken = {unit: cap for unit, cap in preference.caps.items() if not least[unit] <= cap}
    wanted = ", ".join(f"{_NAMES[unit]}={cap:.6g}" for unit, cap in broken.items())
    takes = ", ".join(f"{_up(unit, least[unit])} {UNITS[unit]}" for unit in broken)
    raise CapsTooTight(
        f"No arm keeps {wanted} of {preference}. The cheapest is prompt {arm.prompt} with N={arm.n} ({label!r}): a "
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


def prompt_tokens_of_call(arm: Arm, charges: Charges) -> float:
    """Return the prompt tokens that a call of an arm takes at most, by estimate plus its uncertainty."""
    request, completion = (part[RESOURCES.index("prompt_tokens"), arm.prompt] for part in charges.upper_parts())
    waves = len(arm.stop.waves) if arm.stop is not None else 1
    return float(waves * request + arm.n * completion)


def tokens_of_each(preference: Preference, arm: Arm, prompt_tokens: float, price: Price | None) -> int | None:
    """Return the output tokens that each of the arm's completions may take, so that its caps are kept; None: any.

    `prompt_tokens` are those that a call takes at most; `price` is None where it is not known, or where the arm has
    several LMs.
    """
    limits = []
    if preference.max_tokens is not None:
        limits.append(preference.max_tokens // arm.n)
    if preference.max_usd is not None and price is not None and price.completion > 0:
        left = (preference.max_usd - prompt_tokens * price.prompt) / price.completion
        limits.append(math.floor(left / arm.n))
    return max(min(limits), 1) if limits else None
