"""The rows of results as flat records, for tables of other packages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iapo_dspy.program.results.rows import ArmEstimate, Interval, PreferenceResult
from iapo_dspy.scoring.failures import FailureReport


def records_of(policy: Sequence[PreferenceResult], failures: FailureReport | None = None) -> list[dict[str, Any]]:
    """Return one record for the chosen arm of each preference ("row": "chosen") and for each of its baselines.

    Args:
        policy: One row per preference.
        failures: Says which share of a prompt's completions could not be read.
    """
    found: list[dict[str, Any]] = []
    for row in policy:
        best = row.choice.probability_best if row.choice is not None else None
        found.append({**_record(row.estimate, "chosen"), **_gain(None, None), "probability_best": best})
        for b in row.baselines:
            found.append({**_record(b.estimate, b.name), **_gain(b.difference, b.interval), "probability_best": None})
    return [{**r, "unreadable": None if failures is None else failures.unreadable_of(r["prompt"])} for r in found]


def _record(found: ArmEstimate, row: str) -> dict[str, Any]:
    low, high = found.interval or (None, None)
    return {
        "preference": found.preference.name,
        "row": row,
        "prompt": found.arm.prompt,
        "n": found.arm.n,
        "stops_early": found.arm.stop is not None,
        "label": found.label,
        "model": found.model,
        "utility": found.utility,
        "utility_low": low,
        "utility_high": high,
        "reward": found.reward,
        "completions": found.completions,
        "tokens": found.tokens,
        "usd": found.usd,
        "seconds": found.seconds,
        "cost": found.cost,
    }


def _gain(difference: float | None, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"gain": difference, "gain_low": low, "gain_high": high}
