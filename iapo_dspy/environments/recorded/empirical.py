"""The recording whose laws are the shares among completions that were drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from iapo_dspy.environments.recorded.drawn import Draws
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.types import Contexts, FloatArray, IntArray

Kind = Literal["vote", "best-of"]
Tokens = Callable[[IntArray], Draws]
Cell = tuple[IntArray, FloatArray]
"""The completions of one prompt on one query: labels [S], -1 without a vote, and scores [S, K], NaN for a failure."""


def empirical_recording(
    kind: Kind,
    cells: Sequence[Sequence[Cell]],
    *,
    cost: FloatArray,
    overhead: FloatArray,
    contexts: Contexts,
    cost_scale: float | None,
    tokens: Tokens | None = None,
) -> Recording:
    """Return a recording of these completions; failures become missing probability.

    Args:
        kind: "vote" keeps the share of each answer, and the mean score of each answer on a query over all prompts.
            "best-of" keeps every completion's scores, each with the same probability.
        cells: The completions of every prompt on every query [P][X], at least one in each cell.
        cost: Mean raw cost of a prompt's completion [P].
        overhead: Mean raw cost of a prompt's pull beside its completions [P].
        contexts: The contexts; "vote" stores their cost weights.
        cost_scale: Utility of one raw cost unit. `None`: the average call for a single completion, overhead included
            (mean over prompts), costs 0.01.
        tokens: Returns the recording's completions from their outcomes [P, X, S], -1 for a failure; `None` where only
            the law is kept. It needs cells of one size.
    """
    if cost_scale is None:
        call = float((overhead + cost).mean())
        cost_scale = 0.01 / call if call > 0 else 0.0
    cost, overhead = cost * cost_scale, overhead * cost_scale
    if kind == "best-of":
        outcomes, probs = _outcomes(cells, contexts.n_objectives)
        weights = np.column_stack([contexts.weights, contexts.cost])
        index = np.where(probs > 0, np.arange(probs.shape[2]), -1)
        drawn = None if tokens is None else tokens(index)
        return BestOfRecording(
            outcomes=outcomes, probs=probs, cost=cost, overhead=overhead, weights=weights, drawn=drawn
        )
    probs, credit, place = _votes(cells)
    right = credit == 1.0
    exact = bool(((credit == 0.0) | right).all() and (right.sum(axis=1) <= 1).all())
    return VotingRecording(
        probs=probs,
        answers=np.where(right.any(axis=1), right.argmax(axis=1), -1),
        cost=cost,
        overhead=overhead,
        cost_weights=contexts.cost,
        credit=None if exact else credit,
        drawn=None if tokens is None else tokens(np.array(place)),
    )


def _votes(cells: Sequence[Sequence[Cell]]) -> tuple[FloatArray, FloatArray, list[list[IntArray]]]:
    """Return the share of each answer [P, X, A], its mean score [X, A], and every completion's answer [P][X] [S]."""
    n_queries = len(cells[0])
    names = [np.unique(np.concatenate([row[x][0] for row in cells])) for x in range(n_queries)]
    names = [found[found >= 0] for found in names]
    n_answers = max([1, *map(len, names)])
    probs, credit = np.zeros((len(cells), n_queries, n_answers)), np.zeros((n_queries, n_answers))
    for x, answers in enumerate(names):
        label = np.concatenate([row[x][0] for row in cells])
        score = np.concatenate([row[x][1][:, 0] for row in cells])
        for a, answer in enumerate(answers):
            probs[:, x, a] = [(row[x][0] == answer).mean() for row in cells]
            credit[x, a] = score[label == answer].mean()
    place = [
        [np.where(row[x][0] < 0, -1, np.searchsorted(answers, row[x][0])) for x, answers in enumerate(names)]
        for row in cells
    ]
    return probs, credit, place


def _outcomes(cells: Sequence[Sequence[Cell]], n_objectives: int) -> tuple[FloatArray, FloatArray]:
    """Return scores [P, X, M, K] and probabilities [P, X, M]; smaller cells are padded with impossible outcomes."""
    shape = (len(cells), len(cells[0]), max(len(score) for row in cells for _, score in row))
    outcomes, probs = np.zeros((*shape, n_objectives)), np.zeros(shape)
    for p, row in enumerate(cells):
        for x, (_, score) in enumerate(row):
            drawn = np.asarray(~np.isnan(score).any(axis=1))
            outcomes[p, x, : len(score)] = np.where(drawn[:, None], score, 0.0)
            probs[p, x, : len(score)] = drawn / len(score)
    return outcomes, probs
