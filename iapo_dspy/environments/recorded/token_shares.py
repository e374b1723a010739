"""From the completions of a ledger to those of a recording: tokens one by one, endings, and the causes of failures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from iapo_dspy.environments.recorded.drawn import Draws
from iapo_dspy.sampling.ledger.export import ScoredCompletion
from iapo_dspy.sampling.ledger.records import CompletionRecord
from iapo_dspy.types import IntArray

_TEXT = re.compile(r"[:'\"`\[({<\d]")  # behind it a failure's line may quote the completion
_LONGEST = 60  # characters of a cause


def drawn_of(
    table: Sequence[Sequence[Sequence[ScoredCompletion]]], sizes: Mapping[str, int], outcome: IntArray
) -> Draws:
    """Return the completions of a ledger, cell by cell.

    A server counts the tokens of a request, not of each of the n completions that it brought. They are shared out by
    the sizes of the texts; the sum stays as counted. Completions that came alone keep their own number.

    Args:
        table: The completions of every prompt on every query [P][X], S each.
        sizes: The size of each completion's text in pieces, by `CompletionRecord.key`.
        outcome: Their outcomes [P, X, S].
    """
    records = [[[s.completion for s in cell] for cell in row] for row in table]
    reasons = [[[r.finish or "" for r in cell] for cell in row] for row in records]
    endings = sorted({reason for row in reasons for cell in row for reason in cell})
    causes = [Counter(cause for cell in row for s in cell if (cause := _cause(s))) for row in table]
    names = sorted({cause for counted in causes for cause in counted})
    return Draws(
        outcome=outcome,
        tokens=np.array([[_tokens(cell, sizes) for cell in row] for row in records]),
        prompt_tokens=np.array([[_prompt_tokens(cell) for cell in row] for row in records]),
        finish=np.searchsorted(endings, reasons),
        endings=tuple(endings),
        failures=np.array([[counted[name] for name in names] for counted in causes], dtype=np.int64),
        causes=tuple(names),
    )


def _requests(cell: Sequence[CompletionRecord]) -> list[list[int]]:
    """Return the completions that came by one request, as positions in their cell: their usages are equal shares."""
    found: dict[object, list[int]] = {}
    for i, record in enumerate(cell):
        found.setdefault((record.first, record.seed, record.usage), []).append(i)
    return list(found.values())


def _tokens(cell: Sequence[CompletionRecord], sizes: Mapping[str, int]) -> list[int]:
    tokens = [0] * len(cell)
    for members in _requests(cell):
        total = round(sum(cell[i].usage.completion_tokens for i in members))
        for i, share in zip(members, _shares(total, [sizes[cell[i].key] for i in members]), strict=True):
            tokens[i] = share
    return tokens


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Share out a whole number in proportion to sizes, by largest remainders; evenly where all sizes are 0."""
    weights = np.array(sizes if any(sizes) else [1] * len(sizes), dtype=float)
    exact = total * weights / weights.sum()
    shares = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(shares - exact, kind="stable")  # the first of equal remainders comes first
    shares[order[: total - int(shares.sum())]] += 1
    return [int(share) for share in shares]


def _prompt_tokens(cell: Sequence[CompletionRecord]) -> int:
    """Return the tokens of the prompt of one request, the mean over those that were answered."""
    found = []
    for members in _requests(cell):
        usage = cell[members[0]].usage
        if usage.prompt_tokens:
            found.append(usage.prompt_tokens * (len(members) if usage.shared_tokens else 1))
    return round(float(np.mean(found))) if found else 0


def _cause(scored: ScoredCompletion) -> str | None:
    """Return why a completion failed, without anything that it says: the kind of the error, or the first words."""
    if not scored.failed:
        return None
    line = scored.completion.failure or (scored.score.failure if scored.score is not None else None) or "failed"
    return _TEXT.split(line)[0].strip()[:_LONGEST] or "failed"
