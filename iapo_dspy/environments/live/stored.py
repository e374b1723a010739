"""Completions as rollouts and as records of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from iapo_dspy.sampling.ledger.field_values import decode_fields, decode_prediction, encode_prediction, jsonable
from iapo_dspy.sampling.ledger.records import CompletionRecord, PullKey
from iapo_dspy.sampling.rollouts.rollout import InnerCall, Rollout
from iapo_dspy.types import Pull, Pulls

__all__ = ["in_turns", "is_lost", "record_of", "signature_of", "stored_inner", "stored_prediction"]


def record_of(key: PullKey, index: int, pull: Pull, rollout: Rollout) -> CompletionRecord:
    """Return a rollout as the ledger keeps it."""
    return CompletionRecord(
        round=key[0],
        position=key[1],
        index=index,
        prompt=pull.prompt,
        query=pull.query,
        text=rollout.text,
        fields=encode_prediction(rollout.prediction) if rollout.prediction is not None else None,
        failure=rollout.failure,
        error=rollout.error,
        usage=rollout.usage,
        seed=rollout.seed,
        inner=_encode_inner(rollout.inner) if rollout.inner is not None else None,
    )


def _encode_inner(call: InnerCall) -> dict[str, Any]:
    said = call.prediction
    return {"inputs": jsonable(dict(call.inputs)), "fields": encode_prediction(said) if said is not None else None}


def stored_inner(record: CompletionRecord, signature: Any) -> InnerCall | None:
    """Return what the inner module of a pipeline was asked and said in a stored completion; None for other programs."""
    if record.inner is None:
        return None
    fields: Mapping[str, Any] | None = record.inner["fields"]
    return InnerCall(
        inputs=decode_fields(record.inner["inputs"], getattr(signature, "input_fields", None)),
        prediction=decode_prediction(fields, signature) if fields is not None else None,
    )


def stored_prediction(record: CompletionRecord, signature: Any) -> dspy.Prediction | None:
    """Return what a stored completion predicted; None for a failure."""
    return decode_prediction(record.fields, signature) if record.fields is not None else None


def signature_of(program: Any) -> Any:
    """Return the signature of a program's last predictor; None where it has none."""
    predictors = program.predictors() if hasattr(program, "predictors") else []
    return predictors[-1].signature if predictors else None


def is_lost(record: CompletionRecord) -> bool:
    """Whether an error kept this completion from being made."""
    return record.error and record.text is None


def in_turns(pulls: Pulls) -> list[int]:
    """Positions ordered such that prompts take turns: a budget that ends early must not starve the last of them."""
    seen: dict[int, int] = {}
    turns = []
    for position, prompt in enumerate(pulls.prompt.tolist()):
        seen[prompt] = seen.get(prompt, 0) + 1
        turns.append((seen[prompt], prompt, position))
    return [position for *_, position in sorted(turns)]
