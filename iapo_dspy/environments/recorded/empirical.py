"""The recording whose laws are the shares among completions that were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.types import Contexts, FloatArray, IntArray

Kind = Literal["vote", "best-of"]
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
    """
    if cost_scale is None:
        call = float((overhead + cost).mean())
        cost_scale = 0.01 / call if call > 0 else 0.0
    cost, overhead = cost * cost_scale, overhead * cost_scale
    if kind == "best-of":
        outcomes, probs = _outcomes(cells, contexts.n_objectives)
        weights = np.column_stack([contexts.weights, contexts.cost])
        return BestOfRecording(outcomes=outcomes, probs=probs, cost=cost, overhead=overhead, weights=weights)
    probs, credit = _votes(cells)
    right = credit == 1.0
    exact = bool(((credit == 0.0) | right).all() and (right.sum(axis=1) <= 1).all())
    return VotingRecording(
        probs=probs,
        answers=np.where(right.any(axis=1), right.argmax(axis=1), -1),
        cost=cost,
        overhead=overhead,
        cost_weights=contexts.cost,
        credit=None if exact else credit,
    )


def _votes(cells: Sequence[Sequence[Cell]]) -> tuple[FloatArray, FloatArray]:
    """Return the share of each answer [P, X, A] and its mean score [X, A]."""
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
    return probs, credit


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
