"""Rollouts: the results of single runs of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from iapo_dspy.sampling.spending.usage import Usage


@dataclass(frozen=True, kw_only=True)
class InnerCall:
    """The call of a pipeline's inner module in one rollout.

    Attributes:
        inputs: Its inputs by name.
        prediction: Its output; None where it failed.
    """

    inputs: Mapping[str, Any]
    prediction: dspy.Prediction | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One completion: the program's output, or the reason why there is none.

    A rollout of a pipeline around an inner module is one completion of that module. Its usage is counted as a deployed
    call pays for it: the steps before and after the inner module are paid once per call, whatever the number m of
    completions. So each of m rollouts has an m-th of the usage of these steps, all of it shared.

    Attributes:
        prediction: The program's output; None for a failure.
        failure: Type and message of the error, one line without keys; None for a success.
        error: True where transport, provider or the program itself raised; False where the text could not be read or is
            incomplete.
        undrawn: True where the budget ended, or the provider was down, before the rollout was done. It says nothing
            about the prompt and must not be counted against it.
        passing: True where transport or provider failed in a way that may pass by waiting; it is no final result.
        text: The raw completion; of several LM calls, the last one's, in a pipeline the inner module's last one's.
        usage: Its share of the usage of all rollouts; the shared parts were paid once for all of them.
        seed: The seed sent with its (first) request, None if none was sent.
        finish: Why the text ended, as the provider says ("stop", "length"); of several LM calls, as for `text`. None
            where it is not known.
        logprob: Mean logprob of the tokens of the text, <= 0, in nats; None where the LM gives none. Of several LM
            calls, as for `text`.
        trace: (predictor, inputs, prediction) for each predictor call, with the program's own predictors. Only
            filled when recording.
        inner: The call of the inner module, of a pipeline that was sampled for one.
    """

    prediction: dspy.Prediction | None = None
    failure: str | None = None
    error: bool = False
    undrawn: bool = False
    passing: bool = False
    text: str | None = None
    usage: Usage = field(default_factory=Usage)
    seed: int | None = None
    finish: str | None = None
    logprob: float | None = None
    trace: tuple[tuple[Any, Mapping[str, Any], Any], ...] = ()
    inner: InnerCall | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.prediction is not None
