"""Runs in which every completion scores the same: they are ended early, because nothing can be learnt from them."""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from iapo_dspy.environments.live.stored import Completion
from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import Strategy, highest_of

COMPLETIONS, QUERIES = 16, 10  # without a difference, after which a run ends
_SHOWN = 3  # completions that a message shows
_LONGEST = 80


class EqualScores:
    """Looks at the scores of a run until two of them differ.

    Scores that are all the highest say that the task is easy, not that the metric is wrong: such a run goes on.

    Args:
        strategy: Says how many of the scores preferences weigh, and what the highest ones are.
        n_prompts: P.
        n_queries: Training queries.
        doubtful: Whether the metric gave its lowest value to the labels themselves: then half as much is enough.
    """

    def __init__(self, strategy: Strategy, n_prompts: int, n_queries: int, *, doubtful: bool = False) -> None:
        self._names = strategy.objectives
        self._highest = highest_of(strategy)
        part = 2 if doubtful else 1
        self._needed = min(3, n_prompts), min(QUERIES // part, n_queries), COMPLETIONS // part
        self._first: tuple[float, ...] | None = None
        self._differ = False
        self._prompts: set[int] = set()
        self._seen: dict[int, str] = {}  # query -> a completion in words
        self._completions = 0

    def add(
        self,
        prompt: int,
        query: int,
        example: dspy.Example,
        completions: Sequence[Completion],
        scored: Sequence[Scored | None],
    ) -> None:
        """Take in the scores of a pull."""
        if self._differ:
            return
        for completion, s in zip(completions, scored, strict=True):
            if s is None or s.scores is None:
                continue
            scores = s.scores[: len(self._names)]
            self._first = scores if self._first is None else self._first
            self._differ |= scores != self._first or scores == self._highest
            self._prompts.add(prompt)
            self._completions += 1
            said = completion.prediction or (completion.inner.prediction if completion.inner is not None else None)
            if said is not None:
                self._seen.setdefault(
                    query, f"trainset[{query}]: prediction {shown(said)}, labels {shown(example.labels())}"
                )

    @property
    def verdict(self) -> str | None:
        """Why nothing can be learnt, with some of what was seen; None while that may still be."""
        counts = len(self._prompts), len(self._seen), self._completions
        if self._differ or self._first is None or any(c < n for c, n in zip(counts, self._needed, strict=True)):
            return None
        scores = ", ".join(f"{name} {score:g}" for name, score in zip(self._names, self._first, strict=True))
        seen = "\n".join(f"  {self._seen[query]}" for query in sorted(self._seen)[:_SHOWN])
        return (
            f"All {self._completions} completions so far, on {len(self._seen)} training examples, have the same score "
            f"({scores}), so there is nothing to choose by. The run has stopped, and the rest of the budget is not "
            f"spent. Some of what was seen:\n{seen}\nMend the metric or the labels and compile again: with a log_dir "
            "the completions are kept and scored anew. If the scores are right, the task is too hard for these "
            "candidates; a larger budget has a larger first round."
        )


def shown(fields: dspy.Example) -> str:
    """Return fields in a few words."""
    parts = []
    for name, value in fields.items():
        text = repr(value if isinstance(value, str) else jsonable(value))
        parts.append(f"{name}={text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}")
    return "(" + ", ".join(parts) + ")"
