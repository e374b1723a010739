"""A round of pulls as batch jobs at the provider: one request a line, half the price, hours instead of seconds.

Three rules keep a job from being paid for twice, whenever the process is killed:

1. Its tag, its lines and the upper bound of its cost are on disk before anything is sent ("intended").
2. It is submitted under that tag, and its id is on disk before anything else happens ("submitted").
3. Its completions, its usage and its end ("closed") are written together: all of them are on disk, or none.

A run that is started again first finishes the jobs that are not closed. A job without an id may or may not have
reached the provider, so the run searches the provider's list of jobs for its tag before it submits anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import dspy

from iapo_dspy.errors import BatchJobFailed, BudgetExceeded, ConfigurationError, LMRefused, one_line
from iapo_dspy.sampling.batches.jobs import JobStatus, LiteLLMJobs, check_lm
from iapo_dspy.sampling.batches.lines import (
    BatchLine,
    LineError,
    LineResult,
    chat_body,
    make_line,
    read_choices,
    write_line,
)
from iapo_dspy.sampling.batches.running import BatchAPI, JobRunner
from iapo_dspy.sampling.concurrency.identity_cache import IdentityCache
from iapo_dspy.sampling.ledger.field_values import encode_prediction
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import BatchRecord, CompletionRecord, PullKey, Record
from iapo_dspy.sampling.lm.params import supports_n
from iapo_dspy.sampling.lm.refusals import is_fatal, is_retryable, may_refuse_params, secrets_of
from iapo_dspy.sampling.lm.refused_params import ShrinkingRequest, refused_params_of
from iapo_dspy.sampling.requests.port import Choice
from iapo_dspy.sampling.rollouts.prepare import quiet_adapter
from iapo_dspy.sampling.rollouts.single_predictor import PredictorCall, predictor_call, predictor_of
from iapo_dspy.sampling.spending.budget import Meter, Reservation, Spent
from iapo_dspy.sampling.spending.pricing import Price, Prices
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.sampling.spending.usage_check import FirstChoiceCheck, whole_text
from iapo_dspy.types import Decoding

logger = logging.getLogger(__name__)

_MOST_LINES = 50_000  # of one job, at OpenAI; a round that is larger becomes several jobs
_MOST_BYTES = 190_000_000
_WORTH = 0.1  # the least part of the missing requests that is worth waiting for another job
_ROUNDING = 1e-9  # dollars; the meter counts in whole picodollars, rounded up
_NOT_ABOUT_N = ("context_length_exceeded", "content_filter", "content_policy_violation")
_LOST = "no_line"

Drawn = list[tuple[CompletionRecord, dspy.Prediction | None]]
"""Completions as the ledger keeps them and as programs return them; None for a failure."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request for completions of one pull.

    Attributes:
        key: Names the pull.
        missing: Numbers of the draws that are asked for.
        program: A single predictor.
        adapter: None is the configured one.
    """

    key: PullKey
    missing: tuple[int, ...]
    program: Any
    inputs: Mapping[str, Any]
    decoding: Decoding | None = None
    adapter: dspy.Adapter | None = None


def check_program(
    program: Any,
    inputs: Mapping[str, Any],
    decoding: Decoding | None = None,
    adapter: dspy.Adapter | None = None,
) -> PredictorCall:
    """Return the rendered request of a program, and refuse one that batch jobs cannot ask, before anything is sent.

    Raises:
        ConfigurationError: It has several predictors or a forward of its own, its LM cannot, or the adapter does more
            than format and parse.
    """
    predictor = predictor_of(program)
    if predictor is None:
        raise ConfigurationError(
            f"batch=... needs a student that is one dspy.Predict or dspy.ChainOfThought; {type(program).__name__} "
            "chooses its next request by its own code, and a job that runs for hours cannot wait for that. Leave out "
            "batch=..., or compile its predictors one by one."
        )
    lm = predictor.lm or dspy.settings.lm
    check_lm(lm)
    with dspy.context(send_stream=None, callbacks=[]):
        quiet = quiet_adapter(adapter, lambda own: own)
        ready = predictor_call(predictor, inputs, lm=lm, adapter=quiet, decoding=decoding)
    if ready is None:
        raise ConfigurationError(
            f"batch=... cannot use the adapter {type(quiet).__name__} for this signature: it does more "
            "than format, ask once and parse. Use dspy.ChatAdapter() or dspy.JSONAdapter(), or leave out batch=..."
        )
    return ready


@dataclass(kw_only=True, eq=False)
class _Want:
    """An ask while it is being answered."""

    ask: Ask
    ready: PredictorCall
    missing: list[int]
    jobs_left: int
    trial: ShrinkingRequest
    drawn: Drawn = field(default_factory=list)
    problem: LineError | None = None


@dataclass(kw_only=True, eq=False)
class _Entry:
    """A line of a job with the ask that it is for; `drawn` and `problem` are its answer."""

    want: _Want
    line: BatchLine
    content: bytes = b""  # of the input file; empty where an earlier process wrote it
    drawn: Drawn = field(default_factory=list)
    problem: LineError | None = None


class BatchSampler:
    """Draws the completions of whole rounds by batch jobs.

    Args:
        settings: How jobs are run.
        meter: Holds the budget.
        ledger: Keeps jobs and completions.
        journal: Makes the record of the run's spending by now.
        notify: Called with a few words about the job that the run waits for.
        prices: The user's own prices.
    """

    def __init__(
        self,
        settings: BatchAPI,
        *,
        meter: Meter,
        ledger: LedgerPort,
        journal: Callable[[], Record],
        notify: Callable[[str], None] = lambda _: None,
        prices: Prices | None = None,
    ) -> None:
        self._settings = settings
        self._meter = meter
        self._ledger = ledger
        self._journal = journal
        self._prices = prices
        self._terms: IdentityCache[tuple[LiteLLMJobs, Price | None]] = IdentityCache()
        self._secrets: tuple[str, ...] = ()
        self._one_by_one: set[str] = set()  # models that do not take n, or that leave doubt about several choices
        self._counts: dict[str, FirstChoiceCheck] = {}  # by model
        self._took_n: set[str] = set()
        self._sound: set[str] = set()  # models that have answered
        self._runner = JobRunner(settings, ledger=ledger, notify=notify, secrets=lambda: self._secrets)
        self._held: dict[str, BatchRecord] = {}

    @property
    def held(self) -> Spent:
        """Upper bounds of the jobs that run; the tokens stand under `completion_tokens`.

        The journal leaves them out, because a job that is on disk has a record of its own.
        """
        jobs = list(self._held.values())
        return Spent(completion_tokens=sum(j.reserved_tokens for j in jobs), usd=sum(j.reserved_usd for j in jobs))

    @property
    def running(self) -> tuple[str, ...]:
        """The ids of the jobs that are waited for."""
        return tuple(self._runner.running.values())

    async def resume(self, ask_of: Callable[[BatchLine], Ask | None]) -> None:
        """Finish the jobs of earlier processes; their completions are then stored like any others.

        A job of another run, with prompts or queries that this one does not have, is left as it is.

        Args:
            ask_of: Returns the request that a line belongs to; None where this run has no such prompt or query.

        Raises:
            LMRefused: The key is not valid any more.
            BatchJobFailed: A job has not ended in time, or the provider does not know it.
        """
        records = self._ledger.batches
        if records:
            logger.info("%d batch jobs of an earlier process are picked up.", len(records))
            await _together([self._resume(record, ask_of) for record in records])

    async def draw(self, asks: Sequence[Ask]) -> dict[PullKey, Drawn]:
        """Draw the completions of a round; all of them are in the ledger when this returns.

        Returns:
            The completions of every ask, in their order. Failed ones are among them; there are fewer than were asked
            for where the budget has ended.

        Raises:
            LMRefused: No request could succeed.
            BatchJobFailed: A job was refused as a whole, was cancelled, or does not end.
        """
        wants: list[_Want] = []
        drawn: dict[PullKey, Drawn] = {}
        for ask in asks:
            try:
                wants.append(self._want(ask))
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001 - inputs that cannot be rendered: failures, which cost nothing
                drawn[ask.key] = self._failed(ask, ask.missing, self._line(error))
        waiting, first = wants, True
        while waiting:
            entries = [e for w in waiting for e in self._entries(w)]
            chosen = self._affordable(entries)
            if not chosen or (not first and len(chosen) < _WORTH * len(entries)):
                break  # the budget does not pay for the rest
            answered = [e for some in await _together([self._job(c) for c in _chunks(chosen)]) for e in some]
            if not answered:
                break
            self._judge(answered)
            waiting, first = [w for w in waiting if w.missing], False
        drawn.update({w.ask.key: w.drawn for w in wants})
        return {key: sorted(some, key=lambda pair: pair[0].draw) for key, some in drawn.items()}

    # -- requests

    def _want(self, ask: Ask) -> _Want:
        ready = check_program(ask.program, ask.inputs, ask.decoding, ask.adapter)
        trial = refused_params_of(ready.lm).trial(ready.params, ready.lm.model)
        ready = replace(ready, params=trial.params)
        return _Want(ask=ask, ready=ready, missing=list(ask.missing), jobs_left=self._settings.retries, trial=trial)

    def _entries(self, want: _Want) -> list[_Entry]:
        """Return the lines for missing completions: one, or one for each completion where n is not taken."""
        ready, model = want.ready, want.ready.lm.model
        together = (
            model not in self._one_by_one
            and ready.params.get("temperature") != 0
            and supports_n(model, ready.params.get("custom_llm_provider"))
        )
        groups = [want.missing] if together else [[i] for i in want.missing]
        jobs, price = self._at(ready.lm)
        entries = []
        for indices in groups:
            line = make_line(
                want.ask.key,
                indices,
                ready=ready,
                price=price,
                bounded=self._meter.bounds_requests,
                alone=not together,
            )
            body = chat_body(ready.lm, ready.messages, ready.params, n=len(indices), seed=line.seed)
            entries.append(_Entry(want=want, line=line, content=write_line(line, body, url=jobs.url)))
        return entries

    def _affordable(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Return as many of the first entries as the budget surely pays for."""
        budget, spent, reserved = self._meter.budget, self._meter.spent + self._meter.others, self._meter.reserved
        if budget is None:
            return list(entries)
        if self._meter.exhausted:
            return []
        tokens = math.inf if budget.tokens is None else budget.tokens - spent.tokens - reserved.tokens
        usd = math.inf if budget.usd is None else budget.usd - spent.usd - reserved.usd - _ROUNDING
        for i, entry in enumerate(entries):
            tokens, usd = tokens - entry.line.tokens, usd - entry.line.usd
            if tokens < 0 or usd < 0:
                logger.info("The budget pays for %d of %d requests of a batch job.", i, len(entries))
                return list(entries[:i])
        return list(entries)

    # -- jobs

    def _at(self, lm: dspy.BaseLM) -> tuple[LiteLLMJobs, Price | None]:
        """Return the provider's jobs for an LM, and their price."""

        def make() -> tuple[LiteLLMJobs, Price | None]:
            self._secrets = tuple({*self._secrets, *secrets_of(lm.kwargs)})
            return LiteLLMJobs(lm), self._settings.price_of(lm, self._prices)

        return self._terms.get(lm, make)

    async def _job(self, entries: Sequence[_Entry]) -> Sequence[_Entry]:
        """Run one job from its intention to its end; return its entries, none where the budget has no room for it."""
        jobs, _ = self._at(entries[0].want.ready.lm)
        record = BatchRecord(
            tag=f"iapo-{uuid.uuid4().hex}",
            state="intended",
            lines=[asdict(e.line) for e in entries],
            reserved_tokens=sum(e.line.tokens for e in entries),
            reserved_usd=sum(e.line.usd for e in entries),
        )
        with self._hold(record) as reservation:
            if reservation is None:
                return []
            record = self._runner.write(record)
            record = await self._runner.submit(jobs, record, b"".join(e.content for e in entries))
            status = await self._finish(jobs, record, entries, reservation)
        if status.status in ("failed", "cancelled"):
            end = "was cancelled" if status.status == "cancelled" else "was refused"
            why = "; ".join(status.problems) or "the provider does not say why"
            raise BatchJobFailed(
                f"The batch job {status.id} {end}: {why}. Its answers so far are in the ledger; mend the cause and "
                "run the same again to go on."
            )
        return entries

    async def _resume(self, record: BatchRecord, ask_of: Callable[[BatchLine], Ask | None]) -> None:
        """Finish a job of an earlier process."""
        lines = [BatchLine.decode(data) for data in record.lines]
        found = [(line, ask) for line in lines if (ask := ask_of(line)) is not None]
        if len(found) < len(lines):
            logger.warning(
                "The batch job %s asks for prompts or examples that this run does not have. It is left to a run that "
                "has them; iapo_dspy.ledger.cancel_batches(log_dir) stops it.", record.job or record.tag,
            )  # fmt: skip
            return
        entries = [_Entry(want=self._want(ask), line=line) for line, ask in found]
        jobs, _ = self._at(entries[0].want.ready.lm)
        with self._hold(record) as reservation:  # it is paid for, even where the budget was lowered since
            if record.job is None:
                known = await self._runner.search(jobs, record)
                if known is None:
                    logger.info("The provider has no batch job %s: it was never submitted.", record.tag)
                    self._runner.write(BatchRecord(tag=record.tag, state="closed", status="not submitted"))
                    return
                record = known
            status = await self._finish(jobs, record, entries, reservation or Reservation(self._meter), keep=True)
        if status.problems:
            logger.warning("The batch job %s: %s.", status, "; ".join(status.problems))

    @contextlib.contextmanager
    def _hold(self, record: BatchRecord) -> Iterator[Reservation | None]:
        """Reserve a job's upper bound while it runs; None where the budget has no room for it."""
        self._held[record.tag] = record  # before the reservation, which writes the journal
        reservation = None
        try:
            reservation = self._meter.reserve(tokens=record.reserved_tokens, usd=record.reserved_usd)
        except BudgetExceeded:
            del self._held[record.tag]
        try:
            yield reservation
        finally:
            self._held.pop(record.tag, None)
            if reservation is not None:
                reservation.release()

    async def _finish(
        self,
        jobs: LiteLLMJobs,
        record: BatchRecord,
        entries: Sequence[_Entry],
        reservation: Reservation,
        *,
        keep: bool = False,
    ) -> JobStatus:
        """Wait for a job that was submitted; put its completions on disk, together with its usage and its end.

        `keep` says whether the completions can be looked up in the ledger from now on.
        """
        status = await self._runner.wait(jobs, record)
        results = await self._runner.fetch(jobs, status)
        total = sum((self._read(e, results.get(e.line.id) or _no_line(status)) for e in entries), Usage())
        self._held.pop(record.tag, None)
        reservation.settle(requests=len(entries), usage=total)
        closed = BatchRecord(tag=record.tag, state="closed", job=record.job, status=status.status)
        completions = [completion for e in entries for completion, _ in e.drawn]
        self._ledger.extend([self._journal(), *completions, closed], keep=keep)
        self._ledger.flush()
        return status

    def _read(self, entry: _Entry, result: LineResult) -> Usage:
        """Put an answer into its entry, and return the usage of the request."""
        ready, line = entry.want.ready, entry.line
        # A lost answer may be billed, at a price that the run cannot learn.
        lost = Usage(completion_tokens=line.tokens, usd=line.usd)
        if isinstance(result, LineError):
            entry.problem = result
            return lost if result.code == _LOST or result.status_code < 400 else Usage()
        try:
            choices, usage = read_choices(ready, line, result, self._at(ready.lm)[1])
        except Exception as error:  # noqa: BLE001 - an answer that is not a chat completion, of whatever shape
            entry.problem = LineError(self._line(error), status_code=502)
            return lost
        entry.drawn = [self._drawn(entry.want, i, c) for i, c in zip(line.draws, choices, strict=False)]
        if not entry.drawn:
            entry.problem = LineError("The answer has no choice.", status_code=502)
        doubt = self._counts.setdefault(ready.lm.model, FirstChoiceCheck())
        if doubt.doubts(usage, [whole_text(choice.output) for choice in choices]) and self._meter.bounds_requests:
            self._one_by_one.add(ready.lm.model)
            return usage.at_least(line.tokens, line.usd)
        return usage.at_least(line.tokens, line.usd) if usage.recounted else usage

    def _drawn(self, want: _Want, draw: int, choice: Choice) -> tuple[CompletionRecord, dspy.Prediction | None]:
        with dspy.context(send_stream=None, callbacks=[]):
            prediction, failure = want.ready.read(choice, self._secrets)
        record = _record(
            want.ask,
            draw,
            text=choice.text,
            fields=None if prediction is None else encode_prediction(prediction),
            typed=True,
            failure=failure,
            usage=choice.usage,
            seed=choice.seed,
            finish=choice.finish_reason,
            logprob=choice.logprob,
        )
        return record, prediction

    # -- second requests

    def _judge(self, answered: Sequence[_Entry]) -> None:
        """Decide which completions are asked for again and which have failed, after all jobs of a round are over.

        Raises:
            LMRefused: A request was refused as every other one would be: none of its model was answered.
        """
        self._sound |= {e.want.ready.lm.model for e in answered if e.drawn}
        for entry in answered:
            problem, want = entry.problem, entry.want
            if problem is not None and is_fatal(problem) and want.ready.lm.model not in self._sound:
                raise LMRefused(f"The provider refuses every request: {self._line(problem)}")
            want.drawn += entry.drawn
            came = {record.draw for record, _ in entry.drawn}
            want.missing = [i for i in want.missing if i not in came]
            want.problem = problem or want.problem
            if entry.drawn:
                want.trial.worked()
        smaller = self._learn_params(answered)
        switched = self._learn_n([e for e in answered if e.want not in smaller])
        for want in dict.fromkeys(e.want for e in answered):
            problem, want.problem = want.problem, None
            if not want.missing or want.ready.lm.model in switched or want in smaller:
                continue
            problem = problem or LineError("The provider answered with fewer completions than were asked for.")
            if want.jobs_left > 0 and is_retryable(problem):
                want.jobs_left -= 1
                continue
            want.drawn += self._failed(want.ask, want.missing, self._line(problem))
            want.missing = []

    def _learn_params(self, answered: Sequence[_Entry]) -> set[_Want]:
        """Return what is asked for again without a parameter that it was refused for."""
        refused = [e.want for e in answered if e.problem is not None and e.want.trial.leave_out(e.problem)]
        for want in refused:
            want.ready = replace(want.ready, params=want.trial.params)
        return set(refused)

    def _learn_n(self, answered: Sequence[_Entry]) -> set[str]:
        """Return the models found not to take n in this round: they refuse it, or answer with one choice."""
        several = [e for e in answered if len(e.line.draws) > 1]
        switched = set()
        for model in {e.want.ready.lm.model for e in several} - self._took_n:
            mine = [e for e in several if e.want.ready.lm.model == model]
            if any(len(e.drawn) > 1 for e in mine):
                self._took_n.add(model)
            elif any(len(e.drawn) == 1 or _may_refuse_n(e.problem) for e in mine):
                logger.info("%s does not take n; completions are asked for one by one.", model)
                switched.add(model)
        self._one_by_one |= switched
        return switched

    def _failed(self, ask: Ask, indices: Sequence[int], problem: str) -> Drawn:
        """Count completions as failed: nothing was paid for them."""
        records = [_record(ask, i, failure=problem, error=True) for i in indices]
        self._ledger.extend(records)
        return [(record, None) for record in records]

    def _line(self, error: BaseException) -> str:
        return one_line(error, self._secrets)


def _record(ask: Ask, draw: int, **more: Any) -> CompletionRecord:
    prompt, query, first = ask.key
    return CompletionRecord(prompt=prompt, query=query, draw=draw, first=first, **more)


def _no_line(status: JobStatus) -> LineError:
    """Return the error of a request for which the files of a job have no line."""
    if status.status == "completed":
        return LineError("The job's files have no line for the request.", code=_LOST)
    return LineError(f"The job {status.status} before the request was answered.", code=status.status)


def _may_refuse_n(problem: LineError | None) -> bool:
    return problem is not None and may_refuse_params(problem) and problem.code not in _NOT_ABOUT_N


def _chunks(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    """Divide entries into jobs: one LM each, and no larger than providers take."""
    chunks: list[list[_Entry]] = []
    for lm in {id(e.want.ready.lm): None for e in entries}:
        size = _MOST_BYTES
        for entry in (e for e in entries if id(e.want.ready.lm) == lm):
            if size + len(entry.content) > _MOST_BYTES or len(chunks[-1]) >= _MOST_LINES:
                chunks.append([])
                size = 0
            chunks[-1].append(entry)
            size += len(entry.content)
    return chunks


async def _together(coroutines: Sequence[Any]) -> list[Any]:
    """Await all; where one fails, do not wait for the others: the provider goes on with them, and so does a restart."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
