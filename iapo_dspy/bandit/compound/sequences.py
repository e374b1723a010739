"""Completions of several prompts on the same queries, in their order of drawing, on which calls of any arm are played.

Three sources make them: what a run knows (`known_sequences`), the law of a recording, and completions that were really
drawn after a choice, to measure it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.types import Arm, FloatArray, IntArray


class Part(NamedTuple):
    """Some completions of a call.

    Attributes:
        prompt: Their prompt.
        begin: The first of them, in the order of drawing.
        end: The last one, exclusive.
        weight: How often each of them counts, >= 1.
    """

    prompt: int
    begin: int
    end: int
    weight: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences:
    """Sequences of completions; S rows, each on one query.

    Attributes:
        prompts: Their prompts [Q], ascending.
        label: Answer classes in the order of drawing [Q, S, M]; -1 where there is no vote. Labels of one query mean the
            same for all prompts.
        score: Scores [Q, S, M, K]; NaN marks a failed completion.
        query: Query of each row [S], as a position among V.
        n_queries: V.
        aggregator: Values the completions that count.
        weights: Objective weights [K].
    """

    prompts: IntArray
    label: IntArray
    score: FloatArray
    query: IntArray
    n_queries: int
    aggregator: Aggregator
    weights: FloatArray

    def __len__(self) -> int:
        """Return S."""
        return len(self.query)

    def pool(self, parts: Sequence[Part], rows: IntArray | None = None) -> tuple[IntArray, FloatArray]:
        """Return the completions that count together, each as often as it counts.

        Args:
            parts: Which ones.
            rows: Of these rows; None: of all.

        Returns:
            Labels [S, m] and scores [S, m, K].
        """
        kept = slice(None) if rows is None else rows
        labels, scores = [], []
        for prompt, begin, end, weight in parts:
            at = int(np.searchsorted(self.prompts, prompt))
            drawn = slice(begin, end)
            labels.append(np.repeat(self.label[at, kept, drawn], weight, axis=1))
            scores.append(np.repeat(self.score[at, kept, drawn], weight, axis=1))
        return np.concatenate(labels, axis=1), np.concatenate(scores, axis=1)

    def reward(self, parts: Sequence[Part], rows: IntArray | None = None) -> FloatArray:
        """Return the expected reward of these completions together [S]."""
        label, score = self.pool(parts, rows)
        return np.asarray(self.aggregator.reward(label, score, self.weights[None])[0])

    def by_query(self, values: FloatArray) -> FloatArray:
        """Return the mean of values [S] over the rows of each query [V]; NaN for a query without rows."""
        count = np.bincount(self.query, minlength=self.n_queries)
        total = np.bincount(self.query, weights=values, minlength=self.n_queries)
        return np.asarray(np.divide(total, count, out=np.full(self.n_queries, np.nan), where=count > 0))


def needed(arm: Arm) -> dict[int, int]:
    """Return how many completions of each prompt a call of an arm draws by its worst path."""
    found = Counter[int]()
    for stage in arm.stages:
        for share in stage.shares:
            found[share.prompt] += share.n
    return dict(found)


def drawn_sequences(cells: Cells, arm: Arm, aggregator: Aggregator, weights: FloatArray) -> Sequences:
    """Return the completions that were really drawn, a row for each query with as many as a call of an arm may take.

    Args:
        cells: The completions.
        arm: The arm.
        aggregator: Values the completions.
        weights: Objective weights of a context [K].
    """
    sizes = needed(arm)
    prompts = np.array(sorted(sizes), dtype=np.int64)
    able = [np.flatnonzero((cells.prompt == p) & (cells.size >= sizes[p])) for p in prompts.tolist()]
    query = reduce(np.intersect1d, [cells.query[mine] for mine in able])
    most = max(sizes.values())
    label = np.full((len(prompts), len(query), most), -1, dtype=np.int64)
    score = np.full((*label.shape, cells.score.shape[1]), np.nan)
    for i, (p, mine) in enumerate(zip(prompts.tolist(), able, strict=True)):
        cell = mine[np.searchsorted(cells.query[mine], query)]
        at = cells.start[cell][:, None] + np.arange(sizes[p])
        label[i, :, : sizes[p]], score[i, :, : sizes[p]] = cells.label[at], cells.score[at]
    return Sequences(
        prompts=prompts,
        label=label,
        score=score,
        query=query,
        n_queries=cells.n_visited,
        aggregator=aggregator,
        weights=weights,
    )
