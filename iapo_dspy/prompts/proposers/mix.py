"""The mix of proposers: it shares the work, and keeps from the run whatever goes wrong in one of them."""

from __future__ import annotations

import concurrent.futures
import contextvars
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError, LMRefused, one_line
from iapo_dspy.prompts.proposers.asking import LONGEST, gathered, identity
from iapo_dspy.prompts.proposers.demonstrations import Demos
from iapo_dspy.prompts.proposers.merge import Merge
from iapo_dspy.prompts.proposers.pairwise import Pairwise
from iapo_dspy.prompts.proposers.port import ProposalEvidence, Proposed, Proposer, texts_of
from iapo_dspy.prompts.proposers.reflective import Gradients, Reflective
from iapo_dspy.prompts.proposers.scored_history import History
from iapo_dspy.prompts.proposers.task_based import Grounded, Paraphrase, Shorten
from iapo_dspy.sampling.concurrency.contained import exited
from iapo_dspy.sampling.concurrency.threads import WORKERS
from iapo_dspy.sampling.lm.refusals import is_undrawn

logger = logging.getLogger(__name__)

_POLL = 1.0  # seconds; a wait without a timeout cannot be interrupted by Ctrl-C on Windows
_Slot = tuple[int, Proposer]  # which of the candidates that are asked for, and who is asked for it


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares the candidates that are asked for among proposers, which work at the same time.

    They take turns, and go on in the next generation where they stopped, so one that stands twice writes twice as
    many. What one of them leaves, because it has nothing more to say, goes to the others. What comes is dropped where
    it is empty, too long, or the same as a prompt at hand or as another proposal but for case, white space, quotes and
    fences. A proposer that fails is left out of that generation, and one that hangs of all later ones, with a warning.

    Args:
        proposers: At least one.
        opening: Those that are asked as long as no completion is known; `proposers` where there are none.
        timeout: Seconds that each of them gets, > 0.

    Raises:
        ConfigurationError: Without proposers, or with something else than proposers.
    """

    proposers: Sequence[Proposer]
    opening: Sequence[Proposer] = ()
    timeout: float = 600.0
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _hung: set[int] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, found in (("proposers", self.proposers), ("opening", self.opening)):
            if not isinstance(found, Sequence) or not all(isinstance(p, Proposer) for p in found):
                raise ConfigurationError(f"{name}={found!r}: give a list of objects with propose(evidence, n).")
        if not self.proposers:
            raise ConfigurationError("A mix needs at least one proposer, such as Reflective().")
        if not self.timeout > 0:
            raise ConfigurationError(f"timeout={self.timeout!r}: give seconds > 0.")

    def propose(self, evidence: ProposalEvidence, n: int, *, seconds: float = math.inf) -> list[Proposed]:
        """Return at most n candidates, all different.

        Args:
            evidence: What the proposers may see.
            n: Candidates at most.
            seconds: Seconds that are left altogether.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        known = any(tries for prompt in evidence.prompts for tries in prompt.tries.values())
        turn = [p for p in (self.proposers if known or not self.opening else self.opening) if id(p) not in self._hung]
        if not turn:
            return []
        first = evidence.generation * n
        slots = [(i, turn[(first + i) % len(turn)]) for i in range(n)]
        kept = _Kept(evidence, self._say)
        end = time.monotonic() + seconds
        left, able, stopped = self._round(evidence, slots, kept, min(self.timeout, seconds))
        if left and able and not stopped and (rest := end - time.monotonic()) > 0:
            again = replace(evidence, seed=evidence.seed + 1)
            rest = min(self.timeout, rest)
            self._round(again, [(slot, able[i % len(able)]) for i, slot in enumerate(left)], kept, rest)
        return kept.found[:n]

    def fresh(self) -> Mix:
        """Return the mix, and the mixes in it, as they were made: they have warned of nothing, and left nobody out."""
        return self._fresh({})

    def _fresh(self, made: dict[int, Mix]) -> Mix:
        def of(proposer: Proposer) -> Proposer:
            return proposer._fresh(made) if isinstance(proposer, Mix) else proposer

        if id(self) not in made:  # one that stands twice is the same one twice
            made[id(self)] = replace(self, proposers=[*map(of, self.proposers)], opening=[*map(of, self.opening)])
        return made[id(self)]

    def _round(
        self, evidence: ProposalEvidence, slots: Sequence[_Slot], kept: _Kept, seconds: float
    ) -> tuple[list[int], list[Proposer], bool]:
        """Ask proposers at the same time for what falls to each of them, and keep what is new in their order.

        Returns:
            The slots that are left, by those that had nothing more to say; the others; and whether the budget or a
            provider said stop.
        """
        asked = [p for i, (_, p) in enumerate(slots) if all(p is not other for _, other in slots[:i])]
        shares = [[slot for slot, other in slots if other is proposer] for proposer in asked]
        futures = [self._start(p, evidence, share) for p, share in zip(asked, shares, strict=True)]
        _wait(futures, seconds)
        left, able, stopped = [], [], False
        for proposer, share, future in zip(asked, shares, futures, strict=True):
            name = type(proposer).__name__
            if not future.done() and seconds < self.timeout:
                self._say(f"The proposer {name} was left out: the seconds of the budget for writing are over.")
                continue
            if not future.done():
                self._hung.add(id(proposer))
                self._say(
                    f"The proposer {name} is left out from now on: it did not end within {seconds:.3g} seconds. Make "
                    "it faster, or give a Mix of proposers with a larger timeout."
                )
                continue
            error = future.exception()
            if isinstance(error, KeyboardInterrupt):
                raise error
            if error is not None:
                if is_undrawn(error) or isinstance(error, LMRefused):  # the run tells of these
                    stopped = True
                    logger.info("The proposer %s was stopped (%s).", name, one_line(error))
                else:
                    self._say(f"The proposer {name} was left out ({one_line(error)}).")
                continue
            found = future.result()
            kept.take(found, name)
            able += [proposer] if len(found) == len(share) else []
            left += share[len(found) :]
        return left, able, stopped

    def _say(self, text: str) -> None:
        """Warn of each kind of trouble once."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    def _start(
        self, proposer: Proposer, evidence: ProposalEvidence, share: Sequence[int]
    ) -> concurrent.futures.Future[list[Any]]:
        """Ask a proposer for its share, with the aims of these slots, in a daemon thread: one that hangs is left."""
        future: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
        aims = tuple(evidence.aims[slot % len(evidence.aims)] for slot in share) if evidence.aims else ()
        mine = replace(evidence, aims=aims)
        context = contextvars.copy_context()

        def propose() -> list[Any]:
            return gathered(iter(proposer.propose(mine, len(share)) or ()), len(share))  # generators work here

        def work() -> None:
            try:
                future.set_result(context.run(propose))
            except BaseException as error:  # noqa: BLE001 - handed to the waiting thread, which decides
                future.set_exception(error if isinstance(error, (Exception, KeyboardInterrupt)) else exited(error))

        WORKERS.submit(work)
        return future


class _Kept:
    """The proposals that are new."""

    def __init__(self, evidence: ProposalEvidence, say: Callable[[str], None]) -> None:
        self.found: list[Proposed] = []
        self._say = say
        self._evidence = evidence
        self._seen = {identity(evidence, prompt.program) for prompt in evidence.prompts}

    def take(self, proposals: Sequence[Any], name: str) -> None:
        """Keep those that are new and can be used."""
        for proposed in proposals:
            try:
                if (problem := problem_of(self._evidence, proposed)) is None:
                    known = identity(self._evidence, proposed.candidate)
                    if known not in self._seen:
                        self._seen.add(known)
                        self.found.append(proposed)
                    continue
            except Exception as error:  # noqa: BLE001 - a plug-in's program may be anything
                problem = one_line(error)
            self._say(f"A proposal of {name} was dropped: {problem}.")


def problem_of(evidence: ProposalEvidence, proposed: Any) -> str | None:
    """Return why a proposal cannot be used; None if it can."""
    if not isinstance(proposed, Proposed):
        return f"it is a {type(proposed).__name__}, not a Proposed"
    if not isinstance(proposed.candidate, (dspy.Module, dict)) or not proposed.candidate:
        return f"its candidate is {str(proposed.candidate)[:40]!r}, neither a program nor predictor -> instruction"
    names = dict(evidence.student.named_predictors())
    for name, text in texts_of(proposed.candidate).items():
        if not isinstance(proposed.candidate, dspy.Module) and name not in names:
            return f"it names the predictor {name!r}, and the student has {list(names)}"
        if not isinstance(text, str) or not text.strip():
            return f"the instruction of {name!r} is not a text, or is empty"
        if len(text) > LONGEST:
            return f"the instruction of {name!r} has {len(text):,} characters, more than {LONGEST:,}"
    if unknown := sorted(set(proposed.parents) - {prompt.index for prompt in evidence.prompts}):
        return f"its parents {unknown} are not numbers of prompts (KnownPrompt.index)"
    return None


def _wait(futures: Sequence[concurrent.futures.Future[Any]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not all(f.done() for f in futures) and (rest := end - time.monotonic()) > 0:
        concurrent.futures.wait(futures, timeout=min(rest, _POLL))


def default_proposers(timeout: float = 600.0) -> Mix:
    """Return the mix that IAPO uses: half of what is written after the first generation comes from reflection."""
    reflective = Reflective()
    others = (Merge(), History(), Gradients(), Demos(), Pairwise())
    turn = [p for other in others for p in (reflective, other)]
    grounded = Grounded()
    return Mix(proposers=turn, opening=(grounded, Paraphrase(), grounded, Shorten()), timeout=timeout)
