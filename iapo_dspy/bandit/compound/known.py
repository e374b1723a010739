"""Completions as a run knows them: what further calls of its prompts may bring on the queries that it has visited.

A compound arm was never drawn, so it is played on completions from the posterior predictive law: given everything that
was drawn, and of all prompts together, because a cascade or a mixture is worth what it is by how its prompts differ.
The model behind the estimates draws them where it can (`models.port.Simulates`). Other aggregators draw whole
completions from an urn: those of the prompt on the query, each with the weight 1, those of the other prompts on this
query, with a small weight together, and what the urn has dealt in the row before. This is the predictive law of a
Dirichlet process around the other prompts' completions; its weight makes completions of one prompt agree more often
than those of different prompts by as much as they were seen to.
"""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Sure
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.compound.sequences import Sequences
from iapo_dspy.bandit.models.port import Simulates
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import IntArray

COPIES = 24  # rows of each query
_OTHERS = 0.25, 16.0  # least and largest weight of other prompts' completions


def known_sequences(
    problem: Problem,
    outcome: Outcome,
    context: int,
    prompts: IntArray,
    n: int,
    *,
    copies: int = COPIES,
    seed: int = 0,
) -> Sequences | None:
    """Draw rows of completions from what a run knows of its prompts.

    Args:
        problem: The problem of the run.
        outcome: The run.
        context: Whose rewards count.
        prompts: Prompts [Q], ascending.
        n: Completions of each prompt in a row.
        copies: Rows of each visited query; rows of one query are neighbours.
        seed: Of the draws; the same seed gives the same rows.

    Returns:
        The rows; their query is a position in the visited ones. None where the run has no evidence, where the
        aggregator cannot tell how sure an answer is, and where a prompt was never drawn.
    """
    evidence = outcome.detail
    if evidence is None or not isinstance(problem.aggregator, Sure) or not evidence.queries[prompts, 0].all():
        return None
    rng = np.random.default_rng(seed)  # the same rows in every context
    aggregator, weights = problem.aggregator, problem.contexts.weights[context]
    query = np.repeat(np.arange(evidence.n_visited), copies)
    if not isinstance(evidence.model, Simulates):
        cells = Cells.of(outcome.observations, problem.n_prompts, problem.contexts.n_objectives)
        drawn = _dealt(cells, prompts, n, copies, rng)
        label, score = np.where(cells.failed, -1, cells.label)[drawn], cells.score[drawn]
    else:
        label, value = evidence.model.simulate(int(evidence.row[context]), prompts, n, copies, rng)
        score = value[..., None]
        if isinstance(aggregator, BestOfNAggregator):  # the value has the weights in it
            floor = 0.0 if aggregator.floors is None else float(np.dot(weights, aggregator.floors))
            aggregator = BestOfNAggregator(floors=(floor,))
        weights = evidence.factor[context : context + 1]
    return Sequences(
        prompts=prompts,
        label=label,
        score=score,
        query=query,
        n_queries=evidence.n_visited,
        aggregator=aggregator,
        weights=weights,
    )


def _dealt(cells: Cells, prompts: IntArray, n: int, copies: int, rng: np.random.Generator) -> IntArray:
    """Deal completions from urns, as positions in those of the cells [Q, V * copies, n]."""
    first, total = np.searchsorted(cells.query, np.arange(cells.n_visited)), cells.by_query(cells.size)
    first = np.repeat(cells.start[first], copies)  # where the query's completions begin
    others = _weight_of_others(cells)
    dealt = np.empty((len(prompts), len(first), n), dtype=np.int64)
    everyone = np.arange(len(first))
    for out, p in zip(dealt, prompts.tolist(), strict=True):
        _, mine = cells.of_prompts(np.array([p]))
        begin, size = np.zeros((2, cells.n_visited), dtype=np.int64)
        begin[cells.query[mine]], size[cells.query[mine]] = cells.start[mine], cells.size[mine]
        rest = np.repeat(total - size, copies).astype(np.int64)
        begin, size = np.repeat(begin, copies), np.repeat(size, copies)
        weight = np.where(rest > 0, others, 0.0)
        for i in range(n):
            u = rng.random(len(first)) * (size + weight + i)
            # A completion of another prompt: those of this one are skipped.
            other = first + (rng.random(len(first)) * rest).astype(np.int64)
            other += np.where((size > 0) & (other >= begin), size, 0)
            again = out[everyone, np.clip(u - size - weight, 0, max(i - 1, 0)).astype(np.int64)] if i else other
            own = begin + np.minimum(u, np.maximum(size - 1, 0)).astype(np.int64)
            out[:, i] = np.where(u < size, own, np.where(u < size + weight, other, again))
    return dealt


def _weight_of_others(cells: Cells) -> float:
    """Return the weight of other prompts' completions beside own ones of weight 1.

    Two completions of one cell agree with probability (1 + w a) / (1 + w), where those of different prompts agree with
    probability a.
    """
    label = np.where(cells.failed, -1, cells.label)

    def agreeing(group: IntArray) -> tuple[float, float]:
        """Return pairs of completions of one group that agree, and all pairs."""
        _, same = np.unique(np.stack([group, label]), axis=1, return_counts=True)
        size = np.bincount(group)
        return float((same * (same - 1)).sum()), float((size * (size - 1)).sum())

    (own, pairs), (everyone, all_pairs) = agreeing(cells.owner), agreeing(cells.query[cells.owner])
    within, across = (own + 1.0) / (pairs + 1.0), (everyone - own) / max(all_pairs - pairs, 1.0)
    least, largest = _OTHERS
    return float(np.clip((1.0 - within) / max(within - across, 1e-9), least, largest))
