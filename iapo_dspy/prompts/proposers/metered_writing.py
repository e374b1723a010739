"""Has proposers write within a run: their LM calls are in its budget and its ledger, and none of them can end it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.errors import BudgetExceeded, one_line
from iapo_dspy.prompts.candidates import Proposal
from iapo_dspy.prompts.copies import clone, program_state, restore
from iapo_dspy.prompts.proposers.mix import Mix
from iapo_dspy.prompts.proposers.port import ProposalEvidence, Proposed, Proposer
from iapo_dspy.sampling.concurrency.identity_cache import IdentityCache
from iapo_dspy.sampling.judges.metered import Case, Metering
from iapo_dspy.sampling.ledger.digests import digest, query_id
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import GenerationRecord, ProposalRecord
from iapo_dspy.sampling.lm.refusals import secrets_of
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import WRITERS

logger = logging.getLogger(__name__)


class MeteredWriting:
    """Has proposers write within one run.

    Their calls count as `Spent.writer_requests` and its like, and are held within the budget. The calls in flight end
    with the generation. The ledger keeps what each generation has brought, also where that is nothing: the same run
    started again asks nobody, so that its draws are the same ones. Where it was ended in the middle of a generation, it
    finds the answers by what was asked. Later runs know what was written (`earlier_proposals`).

    Args:
        lm: Writes; it is `dspy.settings.lm` for the proposers.
        sampler: Sends the calls of the run.
        ledger: Keeps the answers.
        timeout: Seconds that a proposer gets that is not a `Mix`, which has a timeout of its own, > 0.

    Raises:
        ConfigurationError: `timeout` is not above 0. (When it is used with a proposer.)
    """

    def __init__(self, lm: dspy.BaseLM, sampler: Sampler, ledger: LedgerPort, *, timeout: float = 600.0) -> None:
        self._lm = lm
        self._meter = sampler.meter
        self._ledger = ledger
        self._metering = Metering.of(sampler, sampler.meter, ledger, "writer")
        self._timeout = timeout
        self._mixes: IdentityCache[Mix] = IdentityCache()
        self._said: set[type] = set()
        self._ended = False
        self._seconds = 0.0  # that proposers have taken

    def propose(self, proposer: Proposer, evidence: ProposalEvidence, n: int) -> list[Proposed]:
        """Return at most n new candidates; fewer, or none, where the writing fails. Not to be called on the loop.

        What goes wrong is told by one warning of each kind: a call that the budget does not pay for, a provider that
        refuses or is down, answers without an instruction, a proposer that raises or hangs.

        Raises:
            ConfigurationError: It is not a proposer.
            KeyboardInterrupt: Ctrl-C.
        """
        before = self._ledger.generations.get(evidence.generation)
        if before is not None:
            return self._repeated(before, evidence)[:n]
        found = [] if self._ended else self._written(proposer, evidence, n)  # it ends where every call is refused
        records = [_record(proposed, evidence) for proposed in found]
        generation = GenerationRecord(
            generation=evidence.generation,
            proposals=[record.key for record in records],
            parents=[proposed.parents for proposed in found],
        )
        self._ledger.extend([*records, generation])
        return found

    def _written(self, proposer: Proposer, evidence: ProposalEvidence, n: int) -> list[Proposed]:
        mix = self._mixes.get(proposer, lambda: self._mix(proposer))
        name = f"proposals-{evidence.seed}-{evidence.generation}"
        start = time.monotonic()
        with dspy.context(lm=self._lm), self._metering.case(name) as case:
            try:
                found = mix.propose(evidence, n, seconds=self._seconds_left())
            finally:
                refused, fatal = case.refused, case.fatal  # before the calls in flight end, which is an error as well
                case.end(BudgetExceeded("The writing of this generation is over."))
                self._seconds += time.monotonic() - start
        self._ended = fatal is not None and not found
        self._tell(fatal or refused, case, found)
        return found

    def _repeated(self, before: GenerationRecord, evidence: ProposalEvidence) -> list[Proposed]:
        """Return what a generation has brought when the run was started before."""
        if not before.proposals and GenerationRecord not in self._said:
            self._said.add(GenerationRecord)
            logger.warning(
                "Generation %d brought no prompt when this run was started before, and a run that is started again "
                "does what it did. To have prompts written now, give a larger budget, which uses again what is paid "
                "for, or another log_dir.",
                evidence.generation + 1,
            )
        programs = [evidence.student, *(p.program for p in sorted(evidence.prompts, key=lambda p: p.index))]
        found = []
        for key, parents in zip(before.proposals, before.parents, strict=True):
            record = self._ledger.proposal(key)
            candidate = _candidate(record, programs) if record is not None else None
            if record is not None and candidate is not None:
                known = Proposed(
                    candidate=candidate, by=record.by, parents=tuple(parents), preference=record.preference
                )
                found.append(known)
        return found

    def _mix(self, proposer: Proposer) -> Mix:
        """Return a mix that has warned of nothing yet, whatever it did in other runs."""
        mix = proposer if isinstance(proposer, Mix) else Mix(proposers=(proposer,), timeout=self._timeout)
        return mix.fresh()

    def _seconds_left(self) -> float:
        limit = self._meter.budget.seconds if self._meter.budget is not None else None
        if limit is None:
            return math.inf
        return max(min(limit / WRITERS - self._seconds, limit - self._meter.spent.seconds), 0.0)

    def _tell(self, error: Exception | None, case: Case, found: list[Proposed]) -> None:
        """Warn of each kind of trouble once."""
        kind = type(None) if error is None else type(error)
        if (error is None and (found or not case.answers)) or kind in self._said:
            return
        self._said.add(kind)
        if error is None:
            logger.warning(
                "A generation brought no new prompt: the %d answers of %s hold no instruction that the run does not "
                "have. It goes on with its prompts. See what that LM answers, raise its max_tokens, or give another "
                "one: prompt_model=.",
                case.answers,
                self._lm.model,
            )
        elif isinstance(error, BudgetExceeded):
            logger.warning(
                "The budget does not pay for more prompts to be written (%s) The run goes on with the prompts that it "
                "has. A larger budget, or a smaller max_tokens of %s, pays for more.",
                error,
                self._lm.model,
            )
        else:
            logger.warning(
                "%s cannot write prompts (%s). The run goes on with the prompts that it has. See that it works, or "
                "give another one: prompt_model=.",
                self._lm.model,
                one_line(error, secrets_of(self._lm.kwargs)),
            )


def earlier_proposals(records: Sequence[ProposalRecord], programs: Sequence[dspy.Module]) -> list[Proposed]:
    """Return the prompts that proposers wrote, as a ledger has them.

    Those that are among `programs`, and those of programs with another class or other fields, are left out.

    Args:
        records: Those of the ledger.
        programs: The candidates that the run has, the student first.

    Returns:
        Proposals in the order in which they were written. Their `parents` count `programs` first and then these
        proposals themselves; parents that the run does not have are left out.
    """
    number = {_named(program)[0]: i for i, program in reversed(list(enumerate(programs)))}
    found: list[Proposed] = []
    for record in records:
        candidate = _candidate(record, programs) if record.key not in number else None
        if candidate is not None:
            parents = tuple(number[key] for key in record.parents if key in number)
            number[record.key] = len(programs) + len(found)
            found.append(Proposed(candidate=candidate, by=record.by, parents=parents, preference=record.preference))
    return found


def key_of(program: dspy.Module) -> str:
    """Return the key of a program among those that proposers wrote (`ProposalRecord.key`)."""
    return _named(program)[0]


def _record(proposed: Proposed, evidence: ProposalEvidence) -> ProposalRecord:
    if isinstance(proposed.candidate, dspy.Module):
        program = proposed.candidate
    else:
        program = clone(evidence.student)
        for name, predictor in program.named_predictors():
            text = proposed.candidate.get(name, predictor.signature.instructions)
            predictor.signature = predictor.signature.with_instructions(text)
    key, state = _named(program)
    keys = {p.index: _named(p.program)[0] for p in evidence.prompts if p.index in proposed.parents}
    return ProposalRecord(
        key=key,
        program=type(program).__qualname__,
        state=state,
        by=proposed.by,
        parents=[keys[parent] for parent in proposed.parents if parent in keys],
        generation=evidence.generation,
        preference=proposed.preference,
        read=[query_id(example) for example in evidence.examples],
    )


def _named(program: dspy.Module) -> tuple[str, dict[str, Any]]:
    """Return the key of a program in the ledger, and its state."""
    state = program_state(program)
    return digest([type(program).__qualname__, state]), state


def _candidate(record: ProposalRecord, programs: Sequence[dspy.Module]) -> Proposal | None:
    """Return what was written, as texts where these say all of it; None where it is of another kind of program."""
    states = [(program, program_state(program)) for program in programs if type(program).__qualname__ == record.program]
    base = next((pair for pair in states if _fields(pair[1]) == _fields(record.state)), None)
    if base is None:
        return None
    if base[0] is programs[0] and all(_beside(base[1][name]) == _beside(record.state[name]) for name in base[1]):
        return {name: state["signature"]["instructions"] for name, state in record.state.items()}
    return restore(base[0], record.state)


def _fields(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: predictor.get("signature", {}).get("fields") for name, predictor in state.items()}


def _beside(predictor: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in predictor.items() if k not in ("signature", "lm")}
