"""The LMs that a program will ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError


def lms_of(program: dspy.Module, predictors: Sequence[tuple[str, Any]] | None = None) -> list[dspy.BaseLM]:
    """Return the LM of every predictor (or of these ones, with their names): its own, or the configured one.

    Raises:
        ConfigurationError: A predictor has none.
    """
    found = []
    for name, predictor in program.named_predictors() if predictors is None else predictors:
        lm = predictor.lm or dspy.settings.lm
        if not isinstance(lm, dspy.BaseLM):
            raise ConfigurationError(
                f"Predictor {name!r} has no LM (found {lm!r}): call dspy.configure(lm=dspy.LM('provider/model')) first."
            )
        found.append(lm)
    return found
