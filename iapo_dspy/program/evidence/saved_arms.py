"""Arms as JSON data, and arms read from data that somebody else may have written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from iapo_dspy.types import Arm, Escalation, Share, Stop

_MOST_STAGES = 16  # a file of more was not written by a run


def saved_arm(arm: Arm) -> dict[str, Any]:
    """Return plain JSON data that `read_arm` reads back: `arm`, and where there are such, `stop`, `beside`, `then`."""
    data: dict[str, Any] = {"arm": [arm.prompt, arm.n]}
    if arm.stop is not None:
        data["stop"] = asdict(arm.stop)
    if arm.beside:
        data["beside"] = [[share.prompt, share.n] for share in arm.beside]
    if arm.then is not None:
        following = None if arm.then.arm is None else saved_arm(arm.then.arm)
        data["then"] = {"below": arm.then.below, "weight": arm.then.weight, "stage": following}
    return data


def read_arm(data: Mapping[str, Any], n_prompts: int, max_n: int, *, stage: int = 1) -> Arm:
    """Read an arm from data that may have other keys besides.

    Args:
        data: The data.
        n_prompts: P.
        max_n: The largest N.
        stage: Number of the stage, for messages.

    Raises:
        ValueError: The data are not an arm, or one outside of these ranges; the message says in which stage.
        LookupError: A key is missing.
        TypeError: A value has another type.
    """
    if stage > _MOST_STAGES:
        raise ValueError(f"the arm has more than {_MOST_STAGES} stages")
    try:
        shares = [_share(saved, n_prompts, max_n) for saved in [data["arm"], *data.get("beside", ())]]
        then = None
        if "then" in data:
            below, weight, following = (data["then"][name] for name in ("below", "weight", "stage"))
            next_arm = None if following is None else read_arm(following, n_prompts, max_n, stage=stage + 1)
            then = Escalation(below=below, arm=next_arm, weight=weight)
        return Arm(
            shares[0].prompt,
            shares[0].n,
            Stop(**data["stop"]) if "stop" in data else None,
            beside=tuple(shares[1:]),
            then=then,
        )
    except (ValueError, LookupError, TypeError) as error:
        if stage == 1 or str(error).startswith("stage "):
            raise
        raise ValueError(f"stage {stage}: {error}") from error


def _share(saved: Any, n_prompts: int, max_n: int) -> Share:
    prompt, n = saved
    if not (type(prompt) is type(n) is int and prompt < n_prompts and n <= max_n):
        raise ValueError(f"arm={saved}: the prompt must be below {n_prompts}, and n at most max_n={max_n}")
    return Share(prompt=prompt, n=n)
