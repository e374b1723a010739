"""The rows of results as flat records, for tables of other packages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.program.results.rows import ArmEstimate, Interval, PreferenceResult
from iapo_dspy.scoring.failures import FailureReport
from iapo_dspy.types import Arm


def records_of(policy: Sequence[PreferenceResult], failures: FailureReport | None = None) -> list[dict[str, Any]]:
    """Return one record for the chosen arm of each preference ("row": "chosen") and for each of its baselines.

    Args:
        policy: One row per preference.
        failures: Says which share of a prompt's completions could not be read.

    "prompt", "n" and "stops_early" are those of the arm's first stage; "arm" has all of its stages.
    """
    found: list[dict[str, Any]] = []
    for row in policy:
        best = row.choice.probability_best if row.choice is not None else None
        found.append({**_record(row.estimate, "chosen"), **_gain(None, None), "probability_best": best})
        for b in row.baselines:
            found.append({**_record(b.estimate, b.name), **_gain(b.difference, b.interval), "probability_best": None})
    arms = [arm for row in policy for arm in (row.arm, *(b.estimate.arm for b in row.baselines))]
    return [{**r, "unreadable": unreadable_of(arm, failures)} for r, arm in zip(found, arms, strict=True)]


def considered_of(policy: Sequence[PreferenceResult], aggregator: Aggregator) -> list[dict[str, Any]]:
    """Return one record for each cascade and mixture that a preference was offered; stages as in `stages_of`."""
    return [
        {
            "preference": row.preference.name,
            "kind": found.kind,
            "arm": stages_of(found.arm),
            "words": arm_in_words(found.arm, aggregator),
            "beside": stages_of(found.beside),
            "gain": found.gain,
            "standard_error": found.standard_error,
            "chosen": found.chosen,
        }
        for row in policy
        for found in row.considered
    ]


def reliability_of(policy: Sequence[PreferenceResult]) -> list[dict[str, Any]]:
    """Return one record for each preference whose confidence was compared with calls that were really drawn."""
    return [
        {
            "preference": row.preference.name,
            "confidence": list(found.confidence),
            "right": list(found.right),
            "count": list(found.count),
            "error": found.error,
        }
        for row in policy
        if (found := row.reliability) is not None
    ]


def stages_of(arm: Arm) -> list[dict[str, Any]]:
    """Return the stages of an arm as plain data.

    Each has "draws": completions of each prompt, by its number; "waves": completions by the end of each wave, None
    where all are drawn at once; "below": the call goes on where it is less sure than this, None at the last stage;
    "then": "next stage" or "no answer"; "weight": how often each completion counts where those before count once, 0
    where those do not count.
    """
    found, weight = [], 0
    for stage in arm.stages:
        then = stage.then
        found.append(
            {
                "draws": {str(share.prompt): share.n for share in stage.shares},
                "waves": list(stage.stop.waves) if stage.stop is not None else None,
                "below": then.below if then is not None else None,
                "then": None if then is None else "no answer" if then.arm is None else "next stage",
                "weight": weight,
            }
        )
        weight = then.weight if then is not None else 0
    return found


def unreadable_of(arm: Arm, failures: FailureReport | None) -> float | None:
    """Return which share of a prompt's completions could not be read, the largest among an arm's prompts."""
    shares = [failures.unreadable_of(prompt) for prompt in arm.prompts] if failures is not None else []
    return max((share for share in shares if share is not None), default=None)


def _record(found: ArmEstimate, row: str) -> dict[str, Any]:
    low, high = found.interval or (None, None)
    return {
        "preference": found.preference.name,
        "row": row,
        "prompt": found.arm.prompt,
        "n": found.arm.n,
        "stops_early": found.arm.stop is not None,
        "arm": stages_of(found.arm),
        "words": found.words,
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
        "abstains": found.abstains,
    }


def _gain(difference: float | None, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"gain": difference, "gain_low": low, "gain_high": high}
