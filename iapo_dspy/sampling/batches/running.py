"""The life of one batch job: submitted once, polled, fetched."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
from tenacity import AsyncRetrying

from iapo_dspy.errors import BatchJobFailed, ConfigurationError, LMRefused, one_line
from iapo_dspy.preferences import is_number
from iapo_dspy.sampling.batches.jobs import JobStatus, LiteLLMJobs
from iapo_dspy.sampling.batches.lines import LineResult, read_results
from iapo_dspy.sampling.concurrency.retrying import retrying
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import BatchRecord
from iapo_dspy.sampling.lm.refusals import is_fatal
from iapo_dspy.sampling.spending.pricing import Price, Prices, batch_price

logger = logging.getLogger(__name__)

_ATTEMPTS = 8  # of a request that is not a poll; with the waits in between, some minutes
_WITHOUT_FILES = 10  # looks at a completed job that has no file yet


@dataclass(frozen=True, kw_only=True)
class BatchAPI:
    """Settings of batch jobs: `IAPO(execution=Execution(batch=BatchAPI(...)))`; `batch=True` takes these defaults.

    Attributes:
        poll_seconds: The longest time between two looks at a job, > 0; the first looks come sooner.
        timeout_hours: A run stops with `BatchJobFailed` when a job has not ended after so many hours of waiting, > 0.
            The job goes on, and so does the run when it is started again. Providers promise 24 hours.
        discount: Share of the ordinary price that jobs are cheaper by, in [0, 1). Default: LiteLLM's own batch prices
            of the model; where it has none, or the user gives prices, the price as it stands.
        retries: Further jobs of a round for requests that a job left unanswered, >= 0; then they count as failed.
        settle_seconds: How long to look for a job whose submission was cut off, before it is submitted again, >= 0. A
            provider may list a job some seconds after it was made.

    Raises:
        ConfigurationError: A value outside its range.
    """

    poll_seconds: float = 30.0
    timeout_hours: float = 26.0
    discount: float | None = None
    retries: int = 2
    settle_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, positive in (("poll_seconds", True), ("timeout_hours", True), ("settle_seconds", False)):
            value = getattr(self, name)
            if not is_number(value) or value < 0 or (positive and not value):
                raise ConfigurationError(
                    f"BatchAPI {name}={value!r}: give a finite number {'>' if positive else '>='} 0."
                )
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigurationError(f"BatchAPI retries={self.retries!r}: give a whole number >= 0.")
        share = self.discount
        if share is not None and not (is_number(share) and 0 <= share < 1):
            raise ConfigurationError(f"BatchAPI discount={share!r}: give the share saved, e.g. 0.5, or leave it out.")

    def price_of(self, lm: dspy.BaseLM, prices: Prices | None = None) -> Price | None:
        """Return the price of an LM's jobs, of the user's prices where there are any; None where it is not known."""
        return batch_price(lm, self.discount, prices)

    @classmethod
    def of(cls, value: bool | BatchAPI | None) -> BatchAPI | None:
        """Return the settings; None where there are to be no jobs.

        Raises:
            ConfigurationError: Neither a truth value nor settings.
        """
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if not isinstance(value, cls):
            raise ConfigurationError(f"batch={value!r}: give True, or BatchAPI(poll_seconds=..., discount=...).")
        return value


class JobRunner:
    """Submits jobs and waits for them. The ledger learns of every state of a job before anything else happens."""

    def __init__(
        self,
        settings: BatchAPI,
        *,
        ledger: LedgerPort,
        notify: Callable[[str], None],
        secrets: Callable[[], Sequence[str]],
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._notify = notify
        self._secrets = secrets
        self._rng = random.Random(0)
        self.running: dict[str, str] = {}

    def write(self, record: BatchRecord) -> BatchRecord:
        """Put a job's state on disk, beyond the death of the machine."""
        record = replace(record, at=time.time())
        self._ledger.append(record)
        self._ledger.flush()
        return record

    async def submit(self, jobs: LiteLLMJobs, record: BatchRecord, content: bytes) -> BatchRecord:
        """Submit a job whose intention is on disk; return its record with the provider's id.

        Raises:
            LMRefused: A wrong key, an unknown model, no such endpoint.
            BatchJobFailed: The provider does not take the job.
        """
        try:
            file_id: str = await self._again("upload of a batch file", jobs.upload, content, f"{record.tag}.jsonl")
        except (LMRefused, BatchJobFailed):
            self.write(replace(record, state="closed", lines=(), status="not uploaded"))
            raise

        async def attempt() -> BatchRecord:
            try:
                return self._submitted(record, await jobs.submit(file_id, record.tag))
            except Exception as error:  # noqa: BLE001 - raised below, outside the handler: it may show keys
                failure = error
            # Where the answer was lost, the job may be there all the same.
            found = None if _is_refusal(failure) else await self.search(jobs, record)
            if found is None:
                raise failure
            return found

        try:
            submitted: BatchRecord = await self._retrying(_ATTEMPTS - 1)(attempt)
            return submitted
        except (LMRefused, BatchJobFailed):
            raise
        except Exception as error:  # noqa: BLE001 - sorted into refusals, and those after which nobody knows
            refused, fatal, problem = _is_refusal(error), is_fatal(error), self._line(error)
        if refused:
            self.write(replace(record, state="closed", lines=(), status="not submitted"))
        if fatal:
            raise LMRefused(f"The provider refuses batch jobs: {problem}")
        raise BatchJobFailed(f"The provider does not take the batch job {record.tag}: {problem}")

    async def search(self, jobs: LiteLLMJobs, record: BatchRecord) -> BatchRecord | None:
        """Look for a job that may have been submitted; None where the provider does not have it."""
        deadline = time.monotonic() + self._settings.settle_seconds
        while True:
            last = time.monotonic() >= deadline  # the last look begins after the time that a list may lag behind
            job: str | None = await self._again("search for a batch job", jobs.find, record.tag, record.at)
            if job is not None:
                return self._submitted(record, job)
            if last:
                return None
            pause = min(self._settings.poll_seconds, 2.0)
            await asyncio.sleep(max(min(pause, deadline - time.monotonic()), 0.0))

    def _submitted(self, record: BatchRecord, job: str) -> BatchRecord:
        self.write(BatchRecord(tag=record.tag, state="submitted", job=job))
        return replace(record, state="submitted", job=job)

    async def wait(self, jobs: LiteLLMJobs, record: BatchRecord) -> JobStatus:
        """Return when nothing more will come of a job.

        Raises:
            LMRefused: The key is not valid any more; the job goes on.
            BatchJobFailed: It has not ended in time, or the provider does not know it.
        """
        job = str(record.job)
        self.running[record.tag] = job
        logger.info("Waiting for the batch job %s.", job)
        deadline = time.monotonic() + 3600 * self._settings.timeout_hours
        delay, without_files = min(1.0, self._settings.poll_seconds), 0
        while True:
            status: JobStatus = await self._again(f"look at batch job {job}", jobs.look, job, deadline=deadline)
            empty = status.status == "completed" and not (status.output_file or status.error_file)
            without_files += empty
            if status.over and (not empty or without_files > _WITHOUT_FILES):
                del self.running[record.tag]
                return status
            self._notify(str(status))
            logger.debug("Batch job %s.", status)
            if time.monotonic() >= deadline:
                raise BatchJobFailed(
                    f"The batch job {status} after {self._settings.timeout_hours:g} hours of waiting. It goes on at "
                    "the provider: run the same again to go on waiting, or stop it with "
                    "iapo_dspy.ledger.cancel_batches(log_dir)."
                )
            await asyncio.sleep(delay)
            delay = min(1.5 * delay, self._settings.poll_seconds)

    async def fetch(self, jobs: LiteLLMJobs, status: JobStatus) -> dict[str, LineResult]:
        """Return the results of a job that is over, by `custom_id`."""
        found: dict[str, LineResult] = {}
        for file_id in (status.error_file, status.output_file):
            if not file_id:
                continue
            for _ in range(2):  # a file that was cut off on its way is whole the next time
                content: bytes = await self._again(f"fetch of the files of batch job {status.id}", jobs.fetch, file_id)
                outcomes, whole = read_results(content)
                if whole:
                    break
                logger.warning("A file of the batch job %s has a line that cannot be read.", status.id)
            found.update(outcomes)
        return found

    async def _again(
        self, what: str, call: Callable[..., Awaitable[Any]], *args: Any, deadline: float | None = None
    ) -> Any:
        """Make a request that costs nothing until it succeeds or there is no point."""

        def allowed(_: BaseException) -> int:
            if deadline is None:
                return _ATTEMPTS
            return 0 if time.monotonic() >= deadline else sys.maxsize

        def tell(error: BaseException, delay: float) -> None:
            logger.info("The %s failed (%s); next in %.1f s.", what, self._line(error), delay)

        try:
            return await self._retrying(allowed, tell)(call, *args)
        except Exception as error:  # noqa: BLE001 - the provider's message may show keys: raised anew below
            fatal, problem = is_fatal(error), self._line(error)
            unknown = getattr(error, "status_code", None) == 404
        if unknown and deadline is not None:
            raise BatchJobFailed(
                f"The provider does not know the job ({what}: {problem}). If it runs elsewhere, restore api_base and "
                "key; to give it up and have its completions drawn and paid for anew, call "
                "iapo_dspy.ledger.cancel_batches(log_dir)."
            )
        hint = "A vLLM server has no batch endpoints of its own. " if unknown else ""
        if fatal:
            raise LMRefused(f"The provider refuses the {what}: {problem}. {hint}Jobs that run go on; run again later.")
        raise BatchJobFailed(f"The {what} failed: {problem}. Jobs that run go on; run the same again to go on.")

    def _retrying(
        self,
        retries: int | Callable[[BaseException], int],
        before_sleep: Callable[[BaseException, float], None] | None = None,
    ) -> AsyncRetrying:
        return retrying(AsyncRetrying, retries=retries, rng=self._rng, longest=math.inf, before_sleep=before_sleep)

    def _line(self, error: BaseException) -> str:
        return one_line(error, self._secrets())


def _is_refusal(error: BaseException) -> bool:
    """Whether a provider has surely not made a job."""
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status != 408
