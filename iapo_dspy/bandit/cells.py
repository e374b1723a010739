"""Everything drawn so far, sorted into cells: one cell is one prompt on one query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.types import FloatArray, IntArray, Observations


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Completions grouped by (prompt, query); cells in the order of query, then prompt.

    Attributes:
        n_prompts: P.
        prompt: Prompt of each cell [G].
        query: Query of each cell [G], ascending, as a position in `visited`.
        visited: The queries that were drawn at all [V], ascending.
        size: Completions of each cell [G], failed ones included.
        label: Answer class of each completion [S], cell after cell; -1 where there is no vote.
        score: Scores [S, K]; NaN in a row marks a failed completion.
    """

    n_prompts: int
    prompt: IntArray
    query: IntArray
    visited: IntArray
    size: IntArray
    label: IntArray
    score: FloatArray

    @classmethod
    def of(cls, observations: Sequence[Observations], n_prompts: int, n_objectives: int) -> Cells:
        """Sort all completions of these batches into their cells; the order within a cell is the order of drawing."""
        prompt = np.concatenate([np.repeat(o.pulls.prompt, o.pulls.size) for o in observations] or [_NOTHING])
        query = np.concatenate([np.repeat(o.pulls.query, o.pulls.size) for o in observations] or [_NOTHING])
        label = np.concatenate([o.label for o in observations] or [_NOTHING])
        score = np.concatenate([o.score for o in observations] or [np.empty((0, n_objectives))])
        key = query * n_prompts + prompt
        order = np.argsort(key, kind="stable")
        cells, size = np.unique(key, return_counts=True)
        visited, position = np.unique(cells // n_prompts, return_inverse=True)
        return cls(
            n_prompts=n_prompts,
            prompt=cells % n_prompts,
            query=position.reshape(-1),
            visited=visited,
            size=size,
            label=label[order],
            score=score[order],
        )

    def __len__(self) -> int:
        """Return G."""
        return len(self.size)

    @property
    def n_visited(self) -> int:
        """V."""
        return len(self.visited)

    @cached_property
    def start(self) -> IntArray:
        """Where each cell's completions begin [G]."""
        return np.asarray(np.cumsum(self.size) - self.size)

    @cached_property
    def owner(self) -> IntArray:
        """The cell of each completion [S]."""
        return np.repeat(np.arange(len(self)), self.size)

    @cached_property
    def failed(self) -> NDArray[np.bool_]:
        """Which completions failed [S]."""
        return np.asarray(np.isnan(self.score).any(axis=1))

    def only(self, kept: NDArray[np.bool_]) -> Cells:
        """Return some of the cells [G], in their order; `prompt`, `query` and `visited` keep their meaning."""
        completions = np.repeat(kept, self.size)
        return replace(
            self,
            prompt=self.prompt[kept],
            query=self.query[kept],
            size=self.size[kept],
            label=self.label[completions],
            score=self.score[completions],
        )

    @cached_property
    def _by_prompt(self) -> tuple[IntArray, IntArray]:
        """Cells in the order of prompts, then queries [G], and where each prompt's begin there [P + 1]."""
        order = np.argsort(self.prompt, kind="stable")
        return order, np.searchsorted(self.prompt[order], np.arange(self.n_prompts + 1))

    def of_prompts(self, prompts: IntArray) -> tuple[IntArray, IntArray]:
        """Return the cells of some prompts [Q], prompt after prompt: positions in `prompts`, and the cells."""
        order, begin = self._by_prompt
        count = begin[prompts + 1] - begin[prompts]
        at = np.repeat(np.arange(len(prompts)), count)
        inner = np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count)
        return at, order[begin[prompts][at] + inner]

    def by_query(self, values: FloatArray | IntArray) -> FloatArray:
        """Sum values [G, ...] over the cells of each visited query [V, ...]."""
        begin = np.flatnonzero(np.concatenate([[True], self.query[1:] != self.query[:-1]]))
        return np.asarray(np.add.reduceat(values, begin, axis=0))


_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ballots:
    """The votes of every cell.

    Attributes:
        votes: Votes for each answer [G, A]; answers are numbered densely within their query.
        silent: Completions without a vote [G].
        worth: Mean score of each answer in the cell [G, A]; 0 without votes. A metric may see more of a completion than
            its answer, and then the same answer of another prompt is worth something else.
        credit: Mean score of each answer over all prompts [V, A]; 0 where no completion gave it.
        seen: How often each answer was given under any prompt [V, A].
    """

    votes: IntArray
    silent: IntArray
    worth: FloatArray
    credit: FloatArray
    seen: IntArray


def ballots(cells: Cells) -> Ballots:
    """Count the votes of every cell (eq. 2); the first objective scores an answer."""
    voted = (cells.label >= 0) & ~cells.failed
    cell = cells.owner[voted]
    query = cells.query[cell]
    names, label = np.unique(cells.label[voted], return_inverse=True)  # labels may be any numbers, such as hashes
    known, answer = np.unique(query * max(len(names), 1) + label.reshape(-1), return_inverse=True)
    of_query = known // max(len(names), 1)
    first = np.searchsorted(of_query, np.arange(cells.n_visited))
    answer = answer.reshape(-1) - first[query]
    n_answers = int(answer.max(initial=-1)) + 1
    shape, own_shape = (cells.n_visited, n_answers), (len(cells), n_answers)
    score = cells.score[voted, 0]
    flat, own = query * n_answers + answer, cell * n_answers + answer
    seen = np.bincount(flat, minlength=cells.n_visited * n_answers).reshape(shape)
    total = np.bincount(flat, weights=score, minlength=seen.size).reshape(shape)
    votes = np.bincount(own, minlength=len(cells) * n_answers).reshape(own_shape)
    own_total = np.bincount(own, weights=score, minlength=votes.size).reshape(own_shape)
    return Ballots(
        votes=votes,
        silent=cells.size - votes.sum(axis=1),
        worth=own_total / np.maximum(votes, 1),
        credit=total / np.maximum(seen, 1),
        seen=seen,
    )
