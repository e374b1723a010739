"""What a job holds of the budget, and what it brought: put on disk together with its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import dspy

from iapo_dspy.errors import BudgetExceeded
from iapo_dspy.sampling.batches.jobs import JobStatus
from iapo_dspy.sampling.batches.lines import BatchLine, LineError, Outcome, read_choices
from iapo_dspy.sampling.ledger.field_values import encode_prediction
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import BatchRecord, CompletionRecord, Record
from iapo_dspy.sampling.requests.port import Choice
from iapo_dspy.sampling.rollouts.single_predictor import Plan
from iapo_dspy.sampling.spending.budget import Meter, Reservation
from iapo_dspy.sampling.spending.pricing import Price
from iapo_dspy.sampling.spending.usage import Usage

__all__ = ["Answer", "Books", "Drawn", "Entry"]

_LOST = "no_line"

Drawn = list[tuple[CompletionRecord, dspy.Prediction | None]]
"""Completions as the ledger keeps them and as programs return them; None for a failure."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of a job and what is needed to read its answer.

    Attributes:
        line: What is asked for.
        ready: The rendered request.
        price: Of the job's tokens; None where it is unknown.
        content: The line of the input file; empty where an earlier process wrote it.
    """

    line: BatchLine
    ready: Plan
    price: Price | None
    content: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of an entry.

    Attributes:
        entry: The entry.
        drawn: Its completions, as many as came.
        problem: Why none came; None where some did.
    """

    entry: Entry
    drawn: Drawn
    problem: LineError | None = None


class Books:
    """Holds the upper bounds of jobs and settles them.

    Args:
        meter: Holds the budget.
        ledger: Keeps jobs and completions.
        journal: Makes the record of what the run has taken by now.
        line: Turns an error into one line without keys.

    Attributes:
        held_tokens: Upper bound of the tokens of the jobs that run; the journal leaves it out, because a job that is
            on disk will tell what it took.
        held_usd: Upper bound of their dollars.
    """

    def __init__(
        self,
        meter: Meter,
        ledger: LedgerPort,
        *,
        journal: Callable[[], Record],
        line: Callable[[BaseException], str],
    ) -> None:
        self._meter = meter
        self._ledger = ledger
        self._journal = journal
        self._line = line
        self.held_tokens = 0
        self.held_usd = 0.0

    def hold(self, record: BatchRecord) -> Reservation | None:
        """Reserve a job's upper bound; None where it does not fit."""
        self.held_tokens += record.reserved_tokens
        self.held_usd += record.reserved_usd
        try:
            return self._meter.reserve(tokens=record.reserved_tokens, usd=record.reserved_usd)
        except BudgetExceeded:
            return None

    def let_go(
        self, record: BatchRecord, reservation: Reservation | None, *, requests: int = 0, usage: Usage | None = None
    ) -> None:
        """Replace the upper bound by what was spent."""
        self.held_tokens -= record.reserved_tokens
        self.held_usd -= record.reserved_usd
        (reservation or Reservation(self._meter)).settle(requests=requests, usage=usage)

    def close(
        self,
        record: BatchRecord,
        reservation: Reservation | None,
        status: JobStatus,
        entries: Sequence[Entry],
        outcomes: Mapping[str, Outcome],
        *,
        keep: bool = False,
    ) -> list[Answer]:
        """Put what a job brought on disk, together with what it took and its end.

        Args:
            record: The job.
            reservation: What was held for it.
            status: Its end.
            entries: Its lines.
            outcomes: What came back, by line.
            keep: Whether its completions can be looked up in the ledger from now on.
        """
        answers: list[Answer] = []
        total = Usage()
        for entry in entries:
            outcome = outcomes.get(entry.line.id) or _no_line(status)
            problem, drawn = outcome.error, Drawn()
            lost = problem is not None and problem.code == _LOST
            if outcome.body is not None:
                try:
                    choices, usage = read_choices(entry.ready, entry.line, outcome.body, entry.price)
                except Exception as error:  # noqa: BLE001 - an answer that is no chat completion, of whatever shape
                    problem, lost = LineError(self._line(error), status_code=502), True
                else:
                    total += usage
                    drawn = [self._read(entry, i, c) for i, c in zip(entry.line.indices, choices, strict=False)]
                    problem = None if drawn else LineError("The answer has no choice.", status_code=502)
            if lost:  # it may have been made and billed, and nobody will ever learn how much
                total += Usage(completion_tokens=entry.line.tokens, usd=entry.line.usd)
            answers.append(Answer(entry=entry, drawn=drawn, problem=problem))
        self.let_go(record, reservation, requests=len(entries), usage=total)
        closed = BatchRecord(tag=record.tag, state="closed", job=record.job, status=status.status)
        completions = [completion for a in answers for completion, _ in a.drawn]
        self._ledger.extend([self._journal(), *completions, closed], keep=keep)
        self._ledger.flush()
        return answers

    def _read(self, entry: Entry, index: int, choice: Choice) -> tuple[CompletionRecord, dspy.Prediction | None]:
        prediction, failure = None, None
        try:
            with dspy.context(send_stream=None, callbacks=[]):
                prediction = entry.ready.parse(choice.output)
        except Exception as error:  # noqa: BLE001 - adapters raise many kinds; each fails one completion
            failure = self._line(error) + (" (cut off at max_tokens)" if choice.finish_reason == "length" else "")
        record = CompletionRecord(
            round=entry.line.pull[0],
            position=entry.line.pull[1],
            index=index,
            prompt=entry.line.prompt,
            query=entry.line.query,
            text=choice.text,
            fields=None if prediction is None else encode_prediction(prediction),
            failure=failure,
            usage=choice.usage,
            seed=choice.seed,
        )
        return record, prediction


def _no_line(status: JobStatus) -> Outcome:
    """What it means that the files of a job have no line for a request."""
    if status.status == "completed":
        return Outcome(error=LineError("The job's files have no line for the request.", code=_LOST))
    return Outcome(error=LineError(f"The job {status.status} before the request was answered.", code=status.status))
