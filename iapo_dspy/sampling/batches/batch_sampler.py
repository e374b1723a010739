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
import logging
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from iapo_dspy.errors import BatchJobFailed, ConfigurationError, LMRefused, one_line
from iapo_dspy.sampling.batches.books import Answer, Books, Drawn, Entry
from iapo_dspy.sampling.batches.jobs import Jobs, JobStatus, LiteLLMJobs, check_lm
from iapo_dspy.sampling.batches.lines import BatchLine, LineError, chat_body, make_line, write_line
from iapo_dspy.sampling.batches.running import BatchAPI, JobRunner
from iapo_dspy.sampling.concurrency.identity_cache import IdentityCache
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import BatchRecord, CompletionRecord, PullKey, Record
from iapo_dspy.sampling.lm.params import supports_n
from iapo_dspy.sampling.lm.refusals import is_fatal, is_retryable, secrets_of
from iapo_dspy.sampling.rollouts.prepare import quiet_adapter
from iapo_dspy.sampling.rollouts.single_predictor import PredictorCall, predictor_call, predictor_of
from iapo_dspy.sampling.spending.budget import Meter, Spent
from iapo_dspy.sampling.spending.pricing import Price, Prices
from iapo_dspy.types import Decoding

__all__ = ["Ask", "BatchAPI", "BatchSampler", "Drawn", "check_program"]

logger = logging.getLogger(__name__)

_MOST_LINES = 50_000  # of one job, at OpenAI; a round that is larger becomes several jobs
_MOST_BYTES = 190_000_000
_WORTH = 0.1  # the least part of the missing requests that is worth waiting for another job
_ROUNDING = 1e-9  # dollars; the meter counts in whole picodollars, rounded up
_FATAL = frozenset({401, 402, 403, 404})
_NOT_ABOUT_N = ("context_length_exceeded", "content_filter", "content_policy_violation")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request for completions of one pull.

    Attributes:
        key: Round and position.
        prompt: Index of the prompt.
        query: Index of the query.
        missing: Which of the pull's completions.
        program: A single predictor.
        inputs: Its keyword arguments.
        decoding: How it decodes.
    """

    key: PullKey
    prompt: int
    query: int
    missing: tuple[int, ...]
    program: Any
    inputs: Mapping[str, Any]
    decoding: Decoding | None = None


def check_program(program: Any, inputs: Mapping[str, Any], decoding: Decoding | None = None) -> PredictorCall:
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
        adapter = quiet_adapter(dspy.settings.adapter, lambda own: own)
        ready = predictor_call(predictor, inputs, lm=lm, adapter=adapter, decoding=decoding)
    if ready is None:
        raise ConfigurationError(
            f"batch=... cannot use the adapter {type(dspy.settings.adapter).__name__} for this signature: it does more "
            "than format, ask once and parse. Use dspy.ChatAdapter() or dspy.JSONAdapter(), or leave out batch=..."
        )
    return ready


@dataclass
class _Want:
    """An ask while it is being answered."""

    ask: Ask
    ready: PredictorCall
    missing: list[int]
    jobs_left: int
    drawn: Drawn = field(default_factory=list)
    problem: LineError | None = None

    def take(self, answer: Answer) -> None:
        """Add the completions that a job brought."""
        self.drawn += answer.drawn
        came = {record.index for record, _ in answer.drawn}
        self.missing = [i for i in self.missing if i not in came]
        self.problem = answer.problem or self.problem


class BatchSampler:
    """Draws the completions of whole rounds by batch jobs.

    Args:
        settings: How jobs are run.
        meter: Holds the budget.
        ledger: Keeps jobs and completions.
        journal: Makes the record of the run's spending by now.
        notify: Called with a few words about the job that the run waits for.
        prices: The user's own prices.
        jobs: Makes the port to an LM's jobs; for tests and other transports.
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
        jobs: Callable[[dspy.BaseLM], Jobs] = LiteLLMJobs,
    ) -> None:
        self._settings = settings
        self._meter = meter
        self._ledger = ledger
        self._terms: IdentityCache[tuple[Jobs, Price | None]] = IdentityCache()
        self._make = jobs
        self._prices = prices
        self._secrets: tuple[str, ...] = ()
        self._one_by_one: set[str] = set()  # models that do not take n
        self._took_n: set[str] = set()
        self._runner = JobRunner(settings, ledger=ledger, notify=notify, secrets=lambda: self._secrets)
        self._books = Books(meter, ledger, journal=journal, line=self._line)

    @property
    def held(self) -> Spent:
        """Upper bounds of the jobs that run; the tokens stand under `completion_tokens`."""
        return self._books.held

    @property
    def running(self) -> tuple[str, ...]:
        """The ids of the jobs that are waited for."""
        return tuple(self._runner.running.values())

    async def resume(self, ask_of: Callable[[BatchLine], Ask]) -> None:
        """Finish the jobs of earlier processes; their completions are then stored like any others.

        Args:
            ask_of: Returns the request that a line belongs to.

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
        by_key = {w.ask.key: w for w in wants}
        waiting, first = wants, True
        while waiting:
            entries = [e for w in waiting for e in self._entries(w)]
            chosen = self._affordable(entries)
            if not chosen or (not first and len(chosen) < _WORTH * len(entries)):
                break  # the budget does not pay for the rest
            answers = [a for some in await _together([self._job(c) for c in _chunks(chosen)]) for a in some]
            if not answers:
                break
            for answer in answers:
                by_key[answer.entry.line.pull].take(answer)
            self._judge(answers, by_key)
            waiting, first = [w for w in waiting if w.missing], False
        drawn.update({key: w.drawn for key, w in by_key.items()})
        return {key: sorted(some, key=lambda pair: pair[0].index) for key, some in drawn.items()}

    # -- requests

    def _want(self, ask: Ask) -> _Want:
        ready = check_program(ask.program, ask.inputs, ask.decoding)
        return _Want(ask=ask, ready=ready, missing=list(ask.missing), jobs_left=self._settings.retries)

    def _entries(self, want: _Want) -> list[Entry]:
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
                want.ask.prompt,
                want.ask.query,
                indices,
                ready=ready,
                price=price,
                bounded=self._meter.bounds_requests,
                alone=not together,
            )
            body = chat_body(ready.lm, ready.messages, ready.params, n=len(indices), seed=line.seed)
            entries.append(Entry(line=line, ready=ready, price=price, content=write_line(line, body, url=jobs.url)))
        return entries

    def _affordable(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return as many of the first entries as the budget surely pays for."""
        budget, spent, reserved = self._meter.budget, self._meter.spent, self._meter.reserved
        if budget is None or not entries:
            return list(entries)
        if self._meter.exhausted:
            return []
        tokens = usd = math.inf
        if budget.tokens is not None:
            tokens = budget.tokens - spent.tokens - reserved.tokens
        if budget.usd is not None:
            usd = budget.usd - spent.usd - reserved.usd - _ROUNDING
        chosen: list[Entry] = []
        for entry in entries:
            tokens, usd = tokens - entry.line.tokens, usd - entry.line.usd
            if tokens < 0 or usd < 0:
                logger.info("The budget pays for %d of %d requests of a batch job.", len(chosen), len(entries))
                break
            chosen.append(entry)
        return chosen

    # -- jobs

    def _at(self, lm: dspy.BaseLM) -> tuple[Jobs, Price | None]:
        """Return the port to an LM's jobs, and their price."""

        def make() -> tuple[Jobs, Price | None]:
            self._secrets = tuple({*self._secrets, *secrets_of(lm.kwargs)})
            return self._make(lm), self._settings.price_of(lm, self._prices)

        return self._terms.get(lm, make)

    async def _job(self, entries: Sequence[Entry]) -> list[Answer]:
        """Run one job from its intention to its end."""
        jobs, _ = self._at(entries[0].ready.lm)
        record = BatchRecord(
            tag=f"iapo-{uuid.uuid4().hex}",
            state="intended",
            lines=[e.line.encode() for e in entries],
            reserved_tokens=sum(e.line.tokens for e in entries),
            reserved_usd=sum(e.line.usd for e in entries),
        )
        with self._books.hold(record) as fits:
            if not fits:
                return []
            record = self._runner.write(record)
            record = await self._runner.submit(jobs, record, b"".join(e.content for e in entries))
            status, answers = await self._finish(jobs, record, entries)
        if status.status in ("failed", "cancelled"):
            end = "was cancelled" if status.status == "cancelled" else "was refused"
            why = "; ".join(status.problems) or "the provider does not say why"
            raise BatchJobFailed(
                f"The batch job {status.id} {end}: {why}. Its answers so far are in the ledger; mend the cause and "
                "run the same again to go on."
            )
        return answers

    async def _resume(self, record: BatchRecord, ask_of: Callable[[BatchLine], Ask]) -> None:
        """Finish a job of an earlier process."""
        entries = []
        for line in (BatchLine.decode(data) for data in record.lines):
            ready = self._want(ask_of(line)).ready
            entries.append(Entry(line=line, ready=ready, price=self._at(ready.lm)[1]))
        jobs, _ = self._at(entries[0].ready.lm)
        with self._books.hold(record):  # it is paid for, even where the budget was lowered since
            if record.job is None:
                found = await self._runner.search(jobs, record)
                if found is None:
                    logger.info("The provider has no batch job %s: it was never submitted.", record.tag)
                    self._runner.write(BatchRecord(tag=record.tag, state="closed", status="not submitted"))
                    return
                record = found
            status, _ = await self._finish(jobs, record, entries, keep=True)
        if status.problems:
            logger.warning("The batch job %s: %s.", status, "; ".join(status.problems))

    async def _finish(
        self, jobs: Jobs, record: BatchRecord, entries: Sequence[Entry], *, keep: bool = False
    ) -> tuple[JobStatus, list[Answer]]:
        """Wait for a job that was submitted, and put its completions on disk."""
        status = await self._runner.wait(jobs, record)
        results = await self._runner.fetch(jobs, status)
        return status, self._books.close(record, status, entries, results, keep=keep)

    # -- second requests

    def _judge(self, answers: Sequence[Answer], wants: Mapping[PullKey, _Want]) -> None:
        """Decide which completions are asked for again and which have failed, after all jobs of a round are over.

        Raises:
            LMRefused: A request was refused as every other one would be.
        """
        for problem in (a.problem for a in answers):
            if problem is not None and (problem.status_code in _FATAL or is_fatal(problem)):
                raise LMRefused(f"The provider refuses every request: {self._line(problem)}")
        switched = self._learn_n(answers)
        for want in (wants[key] for key in dict.fromkeys(a.entry.line.pull for a in answers)):
            if want.ready.lm.model in switched:
                want.problem = None
            if not want.missing or want.ready.lm.model in switched:
                continue
            problem = want.problem or LineError("The provider answered with fewer completions than were asked for.")
            if want.jobs_left > 0 and is_retryable(problem):
                want.jobs_left -= 1
                want.problem = None
                continue
            want.drawn += self._failed(want.ask, want.missing, self._line(problem))
            want.missing = []

    def _learn_n(self, answers: Sequence[Answer]) -> set[str]:
        """Return the models found not to take n in this round: they refuse it, or answer with one choice."""
        several = [a for a in answers if len(a.entry.line.indices) > 1]
        switched = set()
        for model in {a.entry.ready.lm.model for a in several} - self._took_n:
            mine = [a for a in several if a.entry.ready.lm.model == model]
            if any(len(a.drawn) > 1 for a in mine):
                self._took_n.add(model)
            elif any(len(a.drawn) == 1 or _may_refuse_n(a.problem) for a in mine):
                logger.info("%s does not take n; completions are asked for one by one.", model)
                switched.add(model)
        self._one_by_one |= switched
        return switched

    def _failed(self, ask: Ask, indices: Sequence[int], problem: str) -> Drawn:
        """Count completions as failed: nothing was paid for them."""
        records = [
            CompletionRecord(
                round=ask.key[0],
                position=ask.key[1],
                index=i,
                prompt=ask.prompt,
                query=ask.query,
                failure=problem,
                error=True,
            )
            for i in indices
        ]
        self._ledger.extend(records)
        return [(record, None) for record in records]

    def _line(self, error: BaseException) -> str:
        return one_line(error, self._secrets)


def _may_refuse_n(problem: LineError | None) -> bool:
    return problem is not None and problem.status_code in (400, 422) and problem.code not in _NOT_ABOUT_N


def _chunks(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Divide entries into jobs: one LM each, and no larger than providers take."""
    chunks: list[list[Entry]] = []
    for lm in {id(e.ready.lm): None for e in entries}:
        size = _MOST_BYTES
        for entry in (e for e in entries if id(e.ready.lm) == lm):
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
