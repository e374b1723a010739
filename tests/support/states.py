"""Saved states of programs, as far as two runs of the same seed have them in common."""

from __future__ import annotations

import copy
from typing import Any

from iapo_dspy import CompiledProgram


def evidence_of(program: CompiledProgram) -> list[dict[str, Any]]:
    """Return the saved evidence without the seconds that calls took, which no run repeats."""
    evidence = copy.deepcopy(program.policy.dump_state()["evidence"])
    for observations in evidence:
        for part in ("used", "once"):
            observations.get(part, {}).pop("seconds", None)
    return list(evidence)
