"""The common case without threads: a bare predictor is one request and n parses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from iapo_dspy.errors import one_line
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.sampling.lm.params import request_params
from iapo_dspy.sampling.requests.port import Choice
from iapo_dspy.sampling.rollouts.prepare import formats_and_parses_only
from iapo_dspy.types import Decoding


@dataclass(frozen=True, kw_only=True)
class PredictorCall:
    """One call of one predictor, ready to be sent, with all that is needed to read its completions."""

    predictor: dspy.Predict
    lm: dspy.BaseLM
    adapter: Any
    signature: Any
    rendered_signature: Any
    inputs: Mapping[str, Any]
    messages: Sequence[dict[str, Any]]
    config: dict[str, Any]
    params: dict[str, Any]

    def read(self, choice: Choice, secrets: Iterable[str]) -> tuple[dspy.Prediction | None, str | None]:
        """Return the prediction of a completion; or None, and in one line why there is none."""
        if (problem := choice.problem) is not None:
            return None, one_line(problem, secrets)
        try:
            with contained():  # fields of the user's own types are read here
                (value,) = self.adapter._call_postprocess(
                    self.rendered_signature, self.signature, [choice.output], self.lm, self.config
                )
                return dspy.Prediction.from_completions([value], signature=self.signature), None
        except Exception as error:  # noqa: BLE001 - adapters raise many kinds; each fails one completion
            return None, one_line(error, secrets)


def predictor_of(program: Any) -> dspy.Predict | None:
    """Return the predictor of a program that consists of it alone; None for every other program.

    A subclass may do anything in `forward`. So only the exact types count, and classes that say they stand for one.
    """
    if _kind(program) is dspy.ChainOfThought:
        program = program.predict
    return program if _kind(program) is dspy.Predict else None


def _kind(module: Any) -> type:
    kind: type = getattr(type(module), "_iapo_stands_for", type(module))
    return kind


def predictor_call(
    predictor: dspy.Predict, inputs: Mapping[str, Any], *, lm: dspy.BaseLM, adapter: Any, decoding: Decoding | None
) -> PredictorCall | None:
    """Take the steps of `Predict.forward` and of the adapter before the LM call.

    Returns:
        None where an adapter does more than format, ask and parse: such a program takes the general path.
    """
    # An adapter of the user's own, or one with an LM of its own, may call an LM while it parses; that needs a thread.
    if not formats_and_parses_only(adapter) or any(isinstance(v, dspy.BaseLM) for v in vars(adapter).values()):
        return None
    call = type(adapter).__call__
    json_mode = call is dspy.JSONAdapter.__call__
    if not json_mode and call is not dspy.ChatAdapter.__call__ and call is not Adapter.__call__:
        return None
    # n=1 keeps DSPy from changing the temperature; n itself is ours to choose.
    _, config, signature, demos, values = predictor._forward_preprocess(**inputs, config={"n": 1}, lm=lm)
    for name in ("n", "num_generations"):
        config.pop(name, None)
    if _decides(predictor, signature, lm, adapter):
        return None
    if json_mode:
        adapter._prepare_response_format(lm, config, signature)
    rendered = adapter._call_preprocess(lm, config, signature, values)
    messages = adapter.format(rendered, demos, values)
    if config.get("parallel_tool_calls") is not None:
        config.setdefault("tool_choice", "auto")
    return PredictorCall(
        predictor=predictor,
        lm=lm,
        adapter=adapter,
        signature=signature,
        rendered_signature=rendered,
        inputs=values,
        messages=messages,
        config=config,
        params=request_params(lm, config, decoding),
    )


def _decides(predictor: dspy.Predict, signature: Any, lm: dspy.BaseLM, adapter: Any) -> bool:
    """Whether DSPy puts a translation of its own between this predictor and the adapter (decision outputs)."""
    try:
        from dspy.adapters.decision import resolve_adapter
    except ImportError:
        return False
    return resolve_adapter(lm, adapter, signature, predictor.fields, predictor.signature) is not adapter
