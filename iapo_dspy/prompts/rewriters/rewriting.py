"""Rewrites queries: once for each rewriter and query of a run, and once for each deployed call."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import dspy
import numpy as np

from iapo_dspy.errors import BudgetExceeded, one_line
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.rewriters.tilted_laws import tilted_law
from iapo_dspy.sampling.concurrency.once import AsyncOnce
from iapo_dspy.sampling.concurrency.threads import in_thread
from iapo_dspy.sampling.judges.judge_usage import JudgeUsage
from iapo_dspy.sampling.judges.metered import Metering
from iapo_dspy.sampling.ledger.digests import digest
from iapo_dspy.sampling.ledger.ledger import LedgerPort, NullLedger
from iapo_dspy.sampling.ledger.records import RewriteRecord
from iapo_dspy.sampling.lm.refusals import is_undrawn, secrets_of
from iapo_dspy.sampling.requests.history import recorder
from iapo_dspy.sampling.requests.port import CompletionRequest
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.types import FloatArray

logger = logging.getLogger(__name__)

Worth: TypeAlias = Callable[[str, Callable[[], float | None]], float | None]
"""(name of the rewrite, function that works its reward out) -> the reward."""


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """The result of rewriting a query.

    Attributes:
        inputs: The inputs that the student gets.
        text: The rewritten text; None where the query stays as it is.
        texts: All rewrites that were chosen from, where there were several.
        rewards: The reward of each of them.
        failure: Why it stays as it is; None where it was rewritten.
        usage: What the rewriting took. All of it is shared: a call pays for it once.
    """

    inputs: Mapping[str, Any]
    text: str | None = None
    texts: tuple[str, ...] = ()
    rewards: tuple[float, ...] = ()
    failure: str | None = None
    usage: Usage = field(default_factory=Usage)


async def rewritten(
    sampler: Sampler, rewriter: Rewriter, inputs: Mapping[str, Any], *, worth: Worth, record: bool = False
) -> Rewritten:
    """Rewrite the inputs of one query. To be awaited on the sampling loop.

    Args:
        sampler: Sends the request and counts it.
        rewriter: Knows its field.
        inputs: The inputs of the query.
        worth: Has a reward worked out: a number, or None where it fails.
        record: Write DSPy's history and usage tracker, as a deployed program should.

    Raises:
        BudgetExceeded: The request does not fit into the budget.
        ProviderDown: Its provider was down for too long.
        LMRefused: Its provider refuses every request.
        ConfigurationError: The budget cannot be held.
    """
    name, text = rewriter.field or "", inputs.get(rewriter.field or "")
    if not isinstance(text, str):
        return Rewritten(inputs=inputs, failure=f"the input {name!r} is not text")
    request = CompletionRequest(
        model=rewriter.lm.model,
        messages=rewriter.messages(text),
        n=rewriter.k,
        params=rewriter.params,
        key="rewriter",
        record=recorder(rewriter.lm) if record else None,
    )
    choices = await sampler.ask(rewriter.lm, request, "rewriter")
    for choice in choices:
        if choice.error is not None and is_undrawn(choice.error):
            raise choice.error
    usage = _shared(sum((choice.usage for choice in choices), Usage()))
    problems = [choice.problem for choice in choices if choice.problem is not None]
    texts = [text for choice in choices if choice.problem is None and (text := rewriter.read(choice.text or ""))]
    failure = None
    if not texts:
        secrets = secrets_of(rewriter.lm.kwargs)
        failure = one_line(problems[0], secrets) if problems else "the answer holds no text"
    elif rewriter.reward is not None:
        tried = [partial(rewriter.worth, inputs, text) for text in texts]
        found = await asyncio.gather(*(in_thread(partial(worth, str(i), call)) for i, call in enumerate(tried)))
        pairs = [(text, reward) for text, reward in zip(texts, found, strict=True) if reward is not None]
        if pairs:
            texts, rewards = [text for text, _ in pairs], [reward for _, reward in pairs]
            chosen = texts[chosen_of(rewriter, texts, rewards)]
            return Rewritten(
                inputs={**inputs, name: chosen}, text=chosen, texts=tuple(texts), rewards=tuple(rewards), usage=usage
            )
        failure = "no rewrite has a reward"
    if failure is not None:
        return Rewritten(inputs=inputs, failure=failure, usage=usage)
    return Rewritten(inputs={**inputs, name: texts[0]}, text=texts[0], usage=usage)


def law_of(rewriter: Rewriter, rewards: Sequence[float]) -> FloatArray:
    """Return the probability of each of the rewrites that a rewriter chooses from [k]."""
    return tilted_law(rewards, lam=0.0 if rewriter.choose == "best" else rewriter.tilt)


def chosen_of(rewriter: Rewriter, texts: Sequence[str], rewards: Sequence[float]) -> int:
    """Return the position of the chosen rewrite: the first of the best, or a draw that equal rewrites repeat."""
    if rewriter.choose == "best":
        return int(np.argmax(rewards))
    rng = random.Random(digest([rewriter.digest, list(texts), list(rewards)]))
    return rng.choices(range(len(texts)), weights=law_of(rewriter, rewards).tolist())[0]


def with_rewriting(usage: Usage, rewriting: Usage, n: int) -> Usage:
    """Return the usage of one of n completions with its part of a rewriting, which comes before it."""
    both = usage + rewriting.share(n)
    return replace(both, latency_s=usage.latency_s + rewriting.latency_s)


class CallRewrites:
    """The rewrites of one deployed call: each of its rewriters is asked once, before the first draw that needs it.

    A rewriter that fails leaves the query as it is, whatever the reason.

    Args:
        sampler: Sends the requests.
        inputs: The inputs of the call.
        judges: Counts the LMs that rewards ask.

    Attributes:
        found: What each rewriter made of the query, by the rewriter's name.
    """

    def __init__(self, sampler: Sampler, inputs: Mapping[str, Any], judges: JudgeUsage | None = None) -> None:
        self._sampler = sampler
        self._inputs = inputs
        self._judges = judges
        self._open: AsyncOnce[str, Rewritten] = AsyncOnce()
        self._done: dict[str, Rewritten] = {}
        self.found: dict[str, Rewritten] = {}

    @property
    def usage(self) -> Usage:
        """Their usage, all together."""
        return sum((found.usage for found in self._done.values()), Usage())

    async def of(self, rewriter: Rewriter | None) -> Mapping[str, Any]:
        """Return the inputs that a prompt with this rewriter gets."""
        if rewriter is None:
            return self._inputs
        key = rewriter.digest
        if key not in self._done:
            await self._open(key, lambda: self._ask(key, rewriter))
        return self._done[key].inputs

    async def _ask(self, key: str, rewriter: Rewriter) -> Rewritten:
        try:
            found = await rewritten(self._sampler, rewriter, self._inputs, worth=self._worth, record=True)
        except Exception as error:  # noqa: BLE001 - the call can be answered without it
            failure = one_line(error, secrets_of(rewriter.lm.kwargs))
            found = Rewritten(inputs=self._inputs, failure=failure)
        self._done[key] = self.found[rewriter.name] = found
        return found

    def _worth(self, name: str, call: Callable[[], float | None]) -> float | None:
        settings: dict[str, Any] = {"trace": [], "send_stream": None}  # a judge is not a step of the program
        if self._judges is not None:
            callbacks = [*(dspy.settings.callbacks or ()), self._judges.watcher]
            settings |= {"usage_tracker": self._judges, "callbacks": callbacks}
        with dspy.context(**settings):
            return call()


class Rewrites:
    """The rewrites of one run: each query is rewritten once by each rewriter, and kept before it is used.

    A rewrite that an earlier run has paid for, or a process that was killed, is found in the ledger. A failed one is
    kept as well, because completions were drawn on the query as it is.

    Args:
        sampler: Sends the requests.
        ledger: Keeps the rewrites.

    Attributes:
        found: What each rewriter made of its queries, by the digest of the rewriter.
        refused: Why the last one could not be asked for; None where none was refused.
    """

    def __init__(self, sampler: Sampler, ledger: LedgerPort | None = None) -> None:
        self._sampler = sampler
        self._ledger = ledger or NullLedger()
        self._metering = Metering.of(sampler, sampler.meter, self._ledger, "judge")
        self._done: dict[str, Rewritten] = {}
        self._open: AsyncOnce[str, Rewritten] = AsyncOnce()
        self.found: dict[str, list[Rewritten]] = {}
        self._names: dict[str, str] = {}
        self.refused: str | None = None
        self._said: set[str] = set()

    async def of(self, rewriter: Rewriter | None, query: str, inputs: Mapping[str, Any]) -> Rewritten | None:
        """Return a query as the student gets it; None where the budget does not pay for the rewrite.

        Args:
            rewriter: None leaves the query as it is.
            query: Digest of its inputs.
            inputs: Its inputs.

        Raises:
            LMRefused: The rewriter's provider refuses every request.
            ConfigurationError: The budget cannot be held.
        """
        if rewriter is None:
            return Rewritten(inputs=inputs)
        key = f"{rewriter.digest}/{query}"
        if key not in self._done:
            try:
                await self._open(key, lambda: self._find(key, rewriter, inputs))
            except Exception as error:
                if not is_undrawn(error):
                    raise
                self.refused = one_line(error)
                return None
        return self._done[key]

    def usage(self, rewriter: Rewriter, inputs: Mapping[str, Any]) -> Usage:
        """Return what the rewrite of an inner module's inputs took."""
        found = self._done.get(f"{rewriter.digest}/{digest(dict(inputs))}")
        return Usage() if found is None else found.usage

    async def _find(self, key: str, rewriter: Rewriter, inputs: Mapping[str, Any]) -> Rewritten:
        known = self._ledger.rewrite(key)
        if known is not None:
            text = known.text
            changed = inputs if text is None else {**inputs, rewriter.field or "": text}
            found = Rewritten(
                inputs=changed,
                text=text,
                texts=tuple(known.texts),
                rewards=tuple(known.rewards),
                failure=known.failure,
                usage=_shared(known.usage),
            )
        else:
            if self._ledger.full:
                raise BudgetExceeded("The disk is full, so that a rewrite could not be kept.")
            found = await rewritten(self._sampler, rewriter, inputs, worth=partial(self._worth, key))
            self._sampler.meter.write_journal()  # the spending first: after a crash, the ledger says too much
            self._ledger.append(
                RewriteRecord(
                    key=key,
                    text=found.text,
                    texts=found.texts,
                    rewards=found.rewards,
                    failure=found.failure,
                    usage=found.usage,
                )
            )
        self.found.setdefault(rewriter.digest, []).append(found)
        self._names[rewriter.digest] = rewriter.name
        if found.failure is not None:
            self._tell(rewriter, found.failure)
        self._done[key] = found
        return found

    def _worth(self, key: str, name: str, call: Callable[[], float | None]) -> float | None:
        with self._metering.case(f"{key}/{name}") as case:
            found = call()
        if not case.conclude() and case.refused is not None:
            raise case.refused
        return found

    def warn(self) -> None:
        """Say how many queries could not be rewritten."""
        for digest_of, found in self.found.items():
            if failed := sum(rewritten.failure is not None for rewritten in found):
                logger.warning(
                    "The rewriter %r failed on %d of %d queries; their completions were drawn on the query as it is. "
                    "See what its LM answers, or leave it out.", self._names[digest_of], failed, len(found),
                )  # fmt: skip

    def _tell(self, rewriter: Rewriter, failure: str) -> None:
        """Warn of the first failure of each rewriter."""
        if rewriter.name not in self._said:
            self._said.add(rewriter.name)
            logger.warning(
                "The rewriter %r (%s) failed: %s. The query stays as it is, as it would in a deployed call. Further "
                "failures are counted.", rewriter.name, rewriter.lm.model, failure,
            )  # fmt: skip


def _shared(usage: Usage) -> Usage:
    return replace(
        usage,
        shared_tokens=usage.prompt_tokens,
        shared_completion_tokens=usage.completion_tokens,
        shared_usd=usage.usd or 0.0,
    )
