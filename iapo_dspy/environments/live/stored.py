"""Completions as the ledger keeps them, and those that an earlier process of a run has left there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.sampling.ledger.field_values import (
    decode_fields,
    decode_prediction,
    encode_fields,
    encode_prediction,
)
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import CompletionRecord, PullKey
from iapo_dspy.sampling.rollouts.rollout import InnerCall, Rollout
from iapo_dspy.types import Pull


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One completion that is on disk and can be scored.

    Attributes:
        record: As the ledger keeps it.
        prediction: The program's output; None for a failure.
        inner: The call of the inner module, of a pipeline around one.
    """

    record: CompletionRecord
    prediction: dspy.Prediction | None
    inner: InnerCall | None = None

    @classmethod
    def of_rollout(cls, rollout: Rollout, key: PullKey, index: int, pull: Pull) -> Completion:
        """Make the record of a rollout that was drawn as number `index` of its pull."""
        call = rollout.inner
        record = CompletionRecord(
            round=key[0],
            position=key[1],
            index=index,
            prompt=pull.prompt,
            query=pull.query,
            text=rollout.text,
            fields=_encoded(rollout.prediction),
            failure=rollout.failure,
            error=rollout.error,
            usage=rollout.usage,
            seed=rollout.seed,
            inner=None if call is None else {"inputs": encode_fields(call.inputs), "fields": _encoded(call.prediction)},
            typed=True,
        )
        return cls(record=record, prediction=rollout.prediction, inner=call)

    @classmethod
    def of_record(cls, record: CompletionRecord, program: Any, inner: Any = None) -> Completion:
        """Read a record that was written for this program, and for the inner module if it is a pipeline."""
        call = None
        if record.inner is not None:
            asked = _signatures(inner)
            call = InnerCall(
                inputs=decode_fields(record.inner["inputs"], asked, "input", typed=record.typed),
                prediction=_decoded(record.inner["fields"], asked, record.typed),
            )
        return cls(record=record, prediction=_decoded(record.fields, _signatures(program), record.typed), inner=call)


class StoredCompletions:
    """The completions that an earlier process of the run has paid for.

    Args:
        ledger: The run's ledger.
    """

    def __init__(self, ledger: LedgerPort) -> None:
        self._ledger = ledger
        self._diverged = False
        self._used: set[tuple[PullKey, int]] = set()
        self._unused: dict[tuple[int, int], list[tuple[PullKey, int]]] | None = None

    def take(self, key: PullKey, pull: Pull) -> dict[int, CompletionRecord]:
        """Return the stored completions of a pull, by position in the pull.

        A completion that was lost to an error is drawn again, unless the run had come to its end: then it is part of
        the run's results.

        After a change of the metric, the algorithm asks for other pulls. From the first of those on, a stored
        completion serves any pull of its prompt and its query.
        """
        finished = self._ledger.spent.finished
        found = [r for r in self._ledger.completions(key) if r.index < pull.size]
        self._diverged |= any((r.prompt, r.query) != (pull.prompt, pull.query) for r in found)
        if self._diverged:
            pool = self._pool().get((pull.prompt, pull.query), [])
            names, pool[:] = pool[: pull.size], pool[pull.size :]
            return {i: self._read(*name) for i, name in enumerate(names)}
        self._used.update((r.pull, r.index) for r in found)
        return {r.index: r for r in found if finished or not _is_lost(r)}

    def _read(self, key: PullKey, index: int) -> CompletionRecord:
        return next(r for r in self._ledger.completions(key) if r.index == index)

    def _pool(self) -> dict[tuple[int, int], list[tuple[PullKey, int]]]:
        """Return the names of the stored completions that no pull has used, by prompt and query."""
        if self._unused is None:
            self._unused = {}
            for r in self._ledger.stored:
                if (r.pull, r.index) not in self._used and not _is_lost(r):
                    self._unused.setdefault((r.prompt, r.query), []).append((r.pull, r.index))
        return self._unused


def _is_lost(record: CompletionRecord) -> bool:
    """Whether an error kept this completion from being made."""
    return record.error and record.text is None


def _signatures(program: Any) -> list[Any]:
    """Return the signatures of a program's predictors."""
    return [p.signature for p in program.predictors()] if hasattr(program, "predictors") else []


def _encoded(prediction: dspy.Prediction | None) -> dict[str, Any] | None:
    return encode_prediction(prediction) if prediction is not None else None


def _decoded(fields: Mapping[str, Any] | None, signatures: Sequence[Any], typed: bool) -> dspy.Prediction | None:
    return decode_prediction(fields, signatures, typed=typed) if fields is not None else None
