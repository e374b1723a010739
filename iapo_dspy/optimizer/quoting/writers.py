"""The probable spend of writers of prompts: they are tried on made-up answers, without any LM call."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import one_line
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.quoting.structure import LMCall
from iapo_dspy.optimizer.writing.briefing import evidence_of
from iapo_dspy.prompts.proposers.mix import Mix
from iapo_dspy.prompts.proposers.port import ProposalEvidence, Proposer, Try
from iapo_dspy.sampling.lm.proxy import StandInLM
from iapo_dspy.sampling.spending.budget import WRITERS
from iapo_dspy.types import FloatArray

logger = logging.getLogger(__name__)

_TRIES = 4  # completions that are made up for a question
_OUTPUT = 150  # tokens that a writer answers with: an instruction, and some words around it
_FIELD = re.compile(r"`\[\[ ## (\w+) ## \]\]`")


@dataclass(frozen=True, kw_only=True)
class Writers:
    """The calls that write prompts, in the run of a plan.

    Attributes:
        model: Model string of the LM that writes.
        each: Requests, tokens read, tokens written and dollars of each generation [G, 4]; dollars are NaN where the
            price is not known. Tokens written are taken to be 150 a request.
        most: Tokens and dollars that the budget lets writers take [2].
        unknown: Proposers of other packages, whose calls are not known before the run.
    """

    model: str
    each: FloatArray
    most: FloatArray
    unknown: tuple[str, ...]

    @property
    def takes(self) -> FloatArray:
        """Tokens and dollars of all generations [2], within the writers' share; dollars not known count as none."""
        _, read, said, usd = self.each.sum(axis=0)
        return np.minimum([read + said, np.nan_to_num(usd)], self.most)

    def __str__(self) -> str:
        """Return one line for people."""
        requests, read, said, usd = self.each.sum(axis=0).tolist()
        dollars = "" if np.isnan(usd) else f", {usd:,.4g} dollars"
        others = f"; calls of {', '.join(self.unknown)} come on top" if self.unknown else ""
        return (
            f"writing prompts, in {len(self.each)} generations at most, beside the bounds: about {requests:,.0f} "
            f"requests to {self.model}, {read + said:,.0f} tokens{dollars}{others}"
        )


def writers_of(plan: Plan) -> Writers | None:
    """Return what the writers of a plan will probably take; None where nobody writes."""
    writing = plan.writing
    if writing is None:
        return None
    price, generations = plan.price_of(writing.lm), plan.settings.generations
    read, written = (price.prompt, price.completion) if price is not None else (np.nan, np.nan)
    known, unknown = _ours(writing.proposer)
    rows = []
    for generation in range(min(generations, 2)):
        calls = _tried(plan, known, generation) if known is not None else []
        tokens = float(sum(call.tokens for call in calls))
        said = float(sum(min(call.limit or _OUTPUT, _OUTPUT) for call in calls))
        rows.append((len(calls), tokens, said, tokens * read + said * written))
    budget = plan.settings.budget
    most = np.array([np.inf if limit is None else limit / WRITERS for limit in (budget.tokens, budget.usd)])
    each = np.array(rows + rows[-1:] * (generations - 2))
    return Writers(model=writing.lm.model, each=each, most=most, unknown=unknown)


def _ours(proposer: Proposer) -> tuple[Proposer | None, tuple[str, ...]]:
    """Return the proposers of this package, which can be tried without an LM, and the names of the others."""
    if not isinstance(proposer, Mix):
        own = type(proposer).__module__.startswith("iapo_dspy.")
        return (proposer, ()) if own else (None, (type(proposer).__qualname__,))
    parts = [_ours(p) for p in proposer.proposers]
    names = tuple(dict.fromkeys(name for _, unknown in parts for name in unknown))
    kept = [p for p, _ in parts if p is not None]
    return (Mix(proposers=kept, opening=proposer.opening) if kept else None), names


def _tried(plan: Plan, proposer: Proposer, generation: int) -> list[LMCall]:
    """Return the LM calls of one generation, in which about half of the answers were right."""
    writing = plan.writing
    assert writing is not None
    calls: list[LMCall] = []
    n = max(writing.most // (plan.settings.generations * writing.each), 1)
    lm = _Stand(writing.lm, calls)
    try:
        with dspy.context(lm=lm, callbacks=[], trace=[], disable_history=True):
            proposer.propose(_evidence(plan, generation, n), n)
    except Exception as error:  # noqa: BLE001 - answers are made up
        logger.debug("A writer could not be tried: %s", one_line(error))
    return calls


def _evidence(plan: Plan, generation: int, n: int) -> ProposalEvidence:
    shape = plan.problem.n_contexts, plan.problem.n_prompts, plan.problem.max_n
    rng = np.random.default_rng([plan.settings.seed, generation])
    q = rng.random(shape) if generation else np.full(shape, np.nan)
    front = np.ones(shape[:2]) if generation else np.zeros(shape[:2])
    writing = plan.writing
    assert writing is not None
    made = {p: {x: _tries(plan.examples[x], rng) for x in writing.read} for p in range(shape[1] if generation else 0)}
    return evidence_of(plan, q=q, front=front, tries=made, n=n, generation=generation)


def _tries(example: dspy.Example, rng: np.random.Generator) -> Sequence[Try]:
    labels: Mapping[str, Any] = dict(example.labels().items())
    said = {name: str(value) for name, value in labels.items()}
    right = rng.random(_TRIES) < rng.random()
    answers = [next(iter(said.values()), "text"), "text"]
    return [
        Try(answer=answers[0 if r else 1], score=float(r), label=0 if r else 1, tokens=50.0, output=said) for r in right
    ]


class _Stand(StandInLM):
    """Notes every call, and fills each field that is asked for with a text of its own."""

    def __init__(self, lm: dspy.BaseLM, calls: list[LMCall]) -> None:
        super().__init__(lm)
        self._calls = calls

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[str]:
        """Return one made-up answer."""
        asked = list(messages or [{"role": "user", "content": str(prompt)}])
        self._calls.append(LMCall(lm=self._lm, messages=asked, params={**self._lm.kwargs, **kwargs}))
        names = _FIELD.findall(str(asked[-1]["content"]).rpartition("Respond with ")[2])
        text = f"Do it in the way number {len(self._calls)}."
        return ["\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name in names) or text]
