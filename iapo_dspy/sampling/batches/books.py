"""Keeps the books of batch jobs: their upper bounds in the budget, and their completions on disk with their end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import dspy

from iapo_dspy.errors import BudgetExceeded
from iapo_dspy.sampling.batches.jobs import JobStatus
from iapo_dspy.sampling.batches.lines import BatchLine, LineError, LineResult, read_choices
from iapo_dspy.sampling.ledger.field_values import encode_prediction
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import BatchRecord, CompletionRecord, Record
from iapo_dspy.sampling.requests.port import Choice
from iapo_dspy.sampling.rollouts.single_predictor import PredictorCall
from iapo_dspy.sampling.spending.budget import Meter, Reservation, Spent
from iapo_dspy.sampling.spending.pricing import Price
from iapo_dspy.sampling.spending.usage import Usage

__all__ = ["Answer", "Books", "Drawn", "Entry"]

_LOST = "no_line"

Drawn = list[tuple[CompletionRecord, dspy.Prediction | None]]
"""Completions as the ledger keeps them and as programs return them; None for a failure."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of a job, with everything that is needed to read its answer.

    Attributes:
        line: The line.
        ready: The rendered request.
        price: Of the job's tokens; None where it is unknown.
        content: The line of the input file; empty where an earlier process wrote it.
    """

    line: BatchLine
    ready: PredictorCall
    price: Price | None
    content: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to an entry.

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
        journal: Makes the record of the run's spending by now.
        line: Turns an error into one line without keys.
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
        self._held: dict[str, BatchRecord] = {}
        self._reservations: dict[str, Reservation] = {}

    @property
    def held(self) -> Spent:
        """Upper bounds of the jobs that run; the tokens stand under `completion_tokens`.

        The journal leaves them out, because a job that is on disk has a record of its own.
        """
        jobs = list(self._held.values())
        return Spent(
            completion_tokens=sum(job.reserved_tokens for job in jobs), usd=sum(job.reserved_usd for job in jobs)
        )

    @contextlib.contextmanager
    def hold(self, record: BatchRecord) -> Iterator[bool]:
        """Reserve a job's upper bound while it runs; `close` replaces it by the job's usage.

        Yields:
            Whether the budget has room for it.
        """
        self._held[record.tag] = record  # before the reservation, which writes the journal
        try:
            self._reservations[record.tag] = self._meter.reserve(tokens=record.reserved_tokens, usd=record.reserved_usd)
        except BudgetExceeded:
            del self._held[record.tag]
        try:
            yield record.tag in self._held
        finally:
            self._let_go(record).release()

    def _let_go(self, record: BatchRecord) -> Reservation:
        """Return a job's reservation, and hold it no longer; one of nothing where there is none."""
        self._held.pop(record.tag, None)
        return self._reservations.pop(record.tag, Reservation(self._meter))

    def close(
        self,
        record: BatchRecord,
        status: JobStatus,
        entries: Sequence[Entry],
        results: Mapping[str, LineResult],
        *,
        keep: bool = False,
    ) -> list[Answer]:
        """Put a job's completions on disk, together with its usage and its end.

        Args:
            record: The job.
            status: Its end.
            entries: Its lines.
            results: The answers and errors that came back, by the id of their line.
            keep: Whether its completions can be looked up in the ledger from now on.
        """
        answers: list[Answer] = []
        total = Usage()
        for entry in entries:
            result = results.get(entry.line.id) or _no_line(status)
            problem, drawn = None, Drawn()
            if isinstance(result, LineError):
                problem, lost = result, result.code == _LOST
            else:
                try:
                    choices, usage = read_choices(entry.ready, entry.line, result, entry.price)
                except Exception as error:  # noqa: BLE001 - an answer that is not a chat completion, of whatever shape
                    problem, lost = LineError(self._line(error), status_code=502), True
                else:
                    total, lost = total + usage, False
                    drawn = [self._read(entry, i, c) for i, c in zip(entry.line.indices, choices, strict=False)]
                    problem = None if drawn else LineError("The answer has no choice.", status_code=502)
            if lost:  # it may be billed, at a price that the run cannot learn
                total += Usage(completion_tokens=entry.line.tokens, usd=entry.line.usd)
            answers.append(Answer(entry=entry, drawn=drawn, problem=problem))
        # A resumed job is paid for even where the budget has become too small for it.
        self._let_go(record).settle(requests=len(entries), usage=total)
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


def _no_line(status: JobStatus) -> LineError:
    """Return the error of a request for which the files of a job have no line."""
    if status.status == "completed":
        return LineError("The job's files have no line for the request.", code=_LOST)
    return LineError(f"The job {status.status} before the request was answered.", code=status.status)
