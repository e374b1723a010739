"""Completions as the ledger keeps them, and those that runs have left there."""

from __future__ import annotations

from collections import Counter
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
from iapo_dspy.sampling.ledger.records import Cell, CompletionRecord, PullKey
from iapo_dspy.sampling.rollouts.rollout import InnerCall, Rollout


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

    @property
    def unreadable(self) -> bool:
        """Whether the LM answered, and nothing could be read from its text."""
        said = self.prediction if self.inner is None else self.inner.prediction
        return said is None and self.record.failure is not None and not self.record.error

    @classmethod
    def of_rollout(cls, rollout: Rollout, key: PullKey, draw: int) -> Completion:
        """Make the record of a rollout that is this draw of its cell."""
        call = rollout.inner
        record = CompletionRecord(
            prompt=key[0],
            query=key[1],
            draw=draw,
            first=key[2],
            text=rollout.text,
            fields=_encoded(rollout.prediction),
            failure=rollout.failure,
            error=rollout.error,
            usage=rollout.usage,
            seed=rollout.seed,
            finish=rollout.finish,
            logprob=rollout.logprob,
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
    """The completions that this run and others have paid for before, cell by cell.

    The draws of a cell are numbered. A run takes the numbers one after the other, wherever they come from; so the
    completions that an algorithm gets do not depend on what was stored when.

    Args:
        ledger: The run's ledger.
    """

    def __init__(self, ledger: LedgerPort) -> None:
        self._ledger = ledger
        self._next: Counter[Cell] = Counter()
        self._known: dict[Cell, set[int]] = {}  # taken as what was known when the run began

    def known(self, cell: Cell) -> tuple[int, ...]:
        """Return the draws of a cell that were stored when the run began, and take them."""
        draws = tuple(self._ledger.known.get(cell, ()))
        self._known.setdefault(cell, set()).update(draws)
        return draws

    def take(self, cell: Cell, size: int) -> tuple[int, ...]:
        """Return the numbers of the next draws of a cell that the run has not had."""
        taken = self._known.get(cell, ())
        draws: list[int] = []
        while len(draws) < size:
            if self._next[cell] not in taken:
                draws.append(self._next[cell])
            self._next[cell] += 1
        return tuple(draws)


def _signatures(program: Any) -> list[Any]:
    """Return the signatures of a program's predictors."""
    return [p.signature for p in program.predictors()] if hasattr(program, "predictors") else []


def _encoded(prediction: dspy.Prediction | None) -> dict[str, Any] | None:
    return encode_prediction(prediction) if prediction is not None else None


def _decoded(fields: Mapping[str, Any] | None, signatures: Sequence[Any], typed: bool) -> dspy.Prediction | None:
    return decode_prediction(fields, signatures, typed=typed) if fields is not None else None
