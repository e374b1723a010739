"""A program and what a run needs to know of it: its predictors, their fields and their LMs, each looked up once."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError


@dataclass(frozen=True)
class Student:
    """A program with one or several predictors. The program must not be changed while this is used.

    Attributes:
        module: The program.
    """

    module: dspy.Module

    @functools.cached_property
    def predictors(self) -> dict[str, Any]:
        """Name -> predictor, in DSPy's order."""
        return dict(self.module.named_predictors())

    @functools.cached_property
    def input_fields(self) -> tuple[str, ...] | None:
        """The input fields; None for a module whose `forward` alone knows them."""
        if isinstance(self.module, (dspy.Predict, dspy.ChainOfThought)) and len(self.predictors) == 1:
            (predictor,) = self.predictors.values()
            return tuple(predictor.signature.input_fields)
        return None

    @functools.cached_property
    def output_fields(self) -> dict[str, Any]:
        """Output field -> annotation, over all predictors; of two fields of one name the later one counts."""
        signatures = [p.signature for p in self.predictors.values()]
        return {name: field.annotation for s in signatures for name, field in s.output_fields.items()}

    @functools.cached_property
    def instructions(self) -> dict[str, str]:
        """Name of a predictor -> its instruction."""
        return {name: p.signature.instructions for name, p in self.predictors.items()}

    @functools.cached_property
    def lms(self) -> dict[str, dspy.BaseLM]:
        """Name of a predictor -> the LM that it will ask: its own, or the configured one.

        Raises:
            ConfigurationError: A predictor has none.
        """
        return {name: lm_of(name, predictor) for name, predictor in self.predictors.items()}


def lm_of(name: str, predictor: Any) -> dspy.BaseLM:
    """Return the LM that a predictor will ask: its own, or the configured one.

    Raises:
        ConfigurationError: It has none.
    """
    lm = predictor.lm or dspy.settings.lm
    if not isinstance(lm, dspy.BaseLM):
        raise ConfigurationError(
            f"Predictor {name!r} has no LM (found {lm!r}): call dspy.configure(lm=dspy.LM('provider/model')) first."
        )
    return lm
