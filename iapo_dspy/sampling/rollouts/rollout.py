"""What one run of a program brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from iapo_dspy.sampling.spending.usage import Usage

__all__ = ["InnerCall", "Rollout"]


@dataclass(frozen=True, kw_only=True)
class InnerCall:
    """What the inner module of a pipeline was asked in one rollout, and what it said.

    Attributes:
        inputs: Its inputs by name.
        prediction: Its output; None where it failed.
    """

    inputs: Mapping[str, Any]
    prediction: dspy.Prediction | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One completion: what the program returned, or why it did not.

    A rollout of a pipeline around an inner module is one completion of that module. What it takes is counted as a
    deployed call pays for it: what is asked before and after the inner module is paid once per call, whatever the
    number m of completions, so each of m rollouts has an m-th of what it asked there, all of it shared.

    Attributes:
        prediction: The program's output; None for a failure.
        failure: Type and message of what went wrong, one line without keys; None for a success.
        error: True where transport, provider or the program itself raised; False where text could not be read.
        unpaid: True where the budget ended before the rollout did. It says nothing about the prompt and must not be
            counted against it.
        text: The raw completion; of several LM calls, the last one's, in a pipeline the inner module's last one's.
        usage: Its share of what the rollouts took; its shared parts are what all of them together paid once.
        seed: The seed sent with its (first) request, None if none was sent.
        trace: (predictor, inputs, prediction) for each predictor call, with the program's own predictors. Only
            filled when recording.
        inner: The call of the inner module, of a pipeline that was sampled for one.
    """

    prediction: dspy.Prediction | None = None
    failure: str | None = None
    error: bool = False
    unpaid: bool = False
    text: str | None = None
    usage: Usage = field(default_factory=Usage)
    seed: int | None = None
    trace: tuple[tuple[Any, Mapping[str, Any], Any], ...] = ()
    inner: InnerCall | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.prediction is not None
