"""Choosing an arm for a preference from stored evidence."""

from __future__ import annotations

from dataclasses import dataclass

from iapo_dspy.types import Arm

__all__ = ["Chosen"]


MOST_SOLVED = 256  # ad hoc preferences whose arms are remembered


THIN_EVIDENCE = 8  # blocks below which the estimate of an arm that was never compiled for deserves a warning


WIDE_ERROR = 0.1  # standard error, in units of the range of the completions' rewards, above which it does, too


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a preference gets.

    Attributes:
        arm: Its arm.
        tokens_each: Output tokens that each of its completions may take, so that its caps are kept; None: any.
    """

    arm: Arm
    tokens_each: int | None = None
