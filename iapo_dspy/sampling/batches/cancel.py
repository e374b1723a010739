"""Stops the batch jobs of a run that is not to go on."""

from __future__ import annotations

import os

import dspy

from iapo_dspy.errors import BatchJobFailed, ConfigurationError, one_line
from iapo_dspy.sampling.batches.jobs import LiteLLMJobs
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.ledger.ledger import Ledger, open_batches
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.sampling.ledger.records import BatchRecord
from iapo_dspy.sampling.lm.refusals import secrets_of

_OVER_ALREADY = frozenset({400, 409})


def cancel_batches(log_dir: str | os.PathLike[str], lm: dspy.BaseLM | None = None) -> tuple[str, ...]:
    """Stop the batch jobs of a run at the provider.

    Their answers so far are billed, and are used when the run is started again. A job that the provider does not know
    is given up: its completions are drawn anew then.

    Args:
        log_dir: The run's directory.
        lm: The run's language model, for address and key; default: the configured one.

    Returns:
        The ids of the jobs that were stopped.

    Raises:
        LedgerError: There is no ledger, or a job is to be given up while the run goes on.
        ConfigurationError: No usable LM.
        BatchJobFailed: The provider does not stop a job.
    """
    lm = lm or dspy.settings.lm
    if not isinstance(lm, dspy.BaseLM):
        raise ConfigurationError(f"lm={lm!r}: give the dspy.LM of the run, or configure it, for its address and key.")
    contents = contents_of(log_dir)
    jobs = LiteLLMJobs(lm)
    secrets = secrets_of(lm.kwargs)
    stopped: list[str] = []
    unknown: list[BatchRecord] = []
    for record in open_batches(contents.all(BatchRecord)):
        problem = None
        try:
            job = record.job or run_on_loop(jobs.find(record.tag, record.at))
            if job is not None and run_on_loop(_stopped(jobs, job)):
                stopped.append(job)
        except Exception as error:  # noqa: BLE001 - raised anew without keys
            if getattr(error, "status_code", None) == 404 and record.job is not None:
                unknown.append(record)
            else:
                problem = one_line(error, secrets)
        if problem is not None:
            raise BatchJobFailed(f"The batch job {record.job or record.tag} could not be stopped: {problem}")
    if unknown and contents.run is not None:
        with Ledger.open(log_dir, fingerprint=contents.run.fingerprint) as ledger:
            for record in unknown:
                ledger.append(BatchRecord(tag=record.tag, state="closed", job=record.job, status="unknown"))
    return tuple(stopped)


async def _stopped(jobs: LiteLLMJobs, job: str) -> bool:
    """Stop a job; False where it is over already."""
    try:
        await jobs.cancel(job)
    except Exception as error:
        if getattr(error, "status_code", None) in _OVER_ALREADY and (await jobs.look(job)).over:
            return False
        raise
    return True
