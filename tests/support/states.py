"""Saved states of programs, as far as two runs of the same seed have them in common."""

from __future__ import annotations

import copy
from typing import Any

from iapo_dspy import CompiledProgram
from iapo_dspy.program.evidence.columns import unpacked


def state_of(program: CompiledProgram) -> dict[str, Any]:
    """Return the saved policy without the seconds that calls took, which no run repeats."""
    state: dict[str, Any] = copy.deepcopy(program.policy.dump_state())
    state["evidence"] = unpacked(state["evidence"])
    for observations in state["evidence"]:
        for part in ("used", "once"):
            observations.get(part, {}).pop("seconds", None)
    for row in (state.get("results") or {}).get("policy", ()):
        for arm in (row, *(baseline["estimate"] for baseline in row.get("baselines") or ())):
            arm.pop("seconds", None)
    return state
