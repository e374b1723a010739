"""The calls of rewriters in a quote: each of them is asked once about each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dspy
import numpy as np

from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.quoting.structure import LMCall
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.sampling.ledger.reading import LedgerContents
from iapo_dspy.sampling.ledger.records import RewriteRecord
from iapo_dspy.sampling.lm.params import supports_n
from iapo_dspy.sampling.spending.pricing import count_text
from iapo_dspy.types import FloatArray, Pulls

_COUNTED = 32  # queries whose requests are counted by the tokenizer


@dataclass(frozen=True, kw_only=True)
class RewritingBounds:
    """The most that the rewriters of a run take; None for a number that nothing limits."""

    requests: int
    prompt_tokens: int
    completion_tokens: int | None
    usd: float | None

    @classmethod
    def of(cls, plan: Plan) -> RewritingBounds:
        """Bound the rewrites of all queries, those of the validation set included."""
        queries = [*plan.examples, *plan.held_out]
        found = cls(requests=0, prompt_tokens=0, completion_tokens=0, usd=0.0)
        for rewriter in plan.settings.rewriters:
            call = max((_call(rewriter, query) for query in queries), key=lambda call: len(str(call.messages)))
            asked = _requests(rewriter, len(queries))
            read, limit, price = asked * call.most_tokens, call.limit, plan.price_of(rewriter.lm)
            written = None if limit is None else limit * rewriter.k * len(queries)
            usd = None if price is None or written is None else price.bound(read, written)
            found = cls(
                requests=found.requests + asked,
                prompt_tokens=found.prompt_tokens + read,
                completion_tokens=_sum(found.completion_tokens, written),
                usd=None if found.usd is None or usd is None else found.usd + usd,
            )
        return found


def longest_rewrite(rewriter: Rewriter | None) -> int | None:
    """Return the tokens of a rewritten text at most; None where nothing limits them."""
    return 0 if rewriter is None else LMCall(lm=rewriter.lm, messages=(), params=rewriter.params).limit


class RewritesMade:
    """Counts the rewrites of a simulated run: requests, prompt tokens, completion tokens and dollars.

    Args:
        plan: The run.
        known: Its ledger, whose rewrites tell how long others will be; None takes them to be as long as the texts.
    """

    def __init__(self, plan: Plan, known: LedgerContents | None = None) -> None:
        self._of = [None if p.rewriter is None else p.rewriter.digest for p in plan.prompts]
        self._each = {r.digest: _mean(plan, r, known) for r in plan.settings.rewriters}
        self._seen: set[tuple[str, int]] = set()

    def of_query(self, prompt: int) -> FloatArray:
        """Return what the rewrite of a query takes for a prompt [4]; zeros where it has no rewriter."""
        rewriter = self._of[prompt] if prompt < len(self._of) else None
        return np.zeros(4) if rewriter is None else self._each[rewriter]

    def take(self, pulls: Pulls) -> FloatArray:
        """Return what rewrites of queries take that these pulls are the first to need [4]."""
        total = np.zeros(4)
        for prompt, query in zip(pulls.prompt.tolist(), pulls.query.tolist(), strict=True):
            rewriter = self._of[prompt] if prompt < len(self._of) else None
            if rewriter is not None and (rewriter, query) not in self._seen:
                self._seen.add((rewriter, query))
                total = total + self._each[rewriter]
        return total


def _mean(plan: Plan, rewriter: Rewriter, known: LedgerContents | None) -> FloatArray:
    """Return the mean use of a rewrite."""
    price = plan.price_of(rewriter.lm)
    mine = f"{rewriter.digest}/"
    usages = [r.usage for r in known.all(RewriteRecord) if r.key.startswith(mine)] if known is not None else []
    if usages:
        read, written = (
            float(np.mean([getattr(u, f"{kind}_tokens") for u in usages])) for kind in ("prompt", "completion")
        )
    else:
        step = max(1, len(plan.examples) // _COUNTED)
        some = plan.examples[::step][:_COUNTED]
        read = float(np.mean([_call(rewriter, query).tokens for query in some])) * _requests(rewriter, 1)
        texts = [count_text(rewriter.lm.model, _text(rewriter, query)) for query in some]
        written = min(float(np.mean(texts)), longest_rewrite(rewriter) or np.inf) * rewriter.k
    usd = np.nan if price is None else read * price.prompt + written * price.completion
    return np.array([_requests(rewriter, 1), read, written, usd])


def _call(rewriter: Rewriter, query: dspy.Example) -> LMCall:
    return LMCall(lm=rewriter.lm, messages=rewriter.messages(_text(rewriter, query)), params=rewriter.params)


def _text(rewriter: Rewriter, query: dspy.Example) -> str:
    """Return the text to rewrite; of an inner module that is not known, and taken to be as long as the query."""
    inputs = dict(query.inputs().items())
    return str(inputs.get(rewriter.field, " ".join(map(str, inputs.values()))))


def _requests(rewriter: Rewriter, queries: int) -> int:
    """Return the requests for so many queries: several rewrites are one request where the provider takes n."""
    return queries * (1 if supports_n(rewriter.lm.model, None) else rewriter.k)


def _sum(*parts: int | None) -> int | None:
    known: Sequence[int] = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
