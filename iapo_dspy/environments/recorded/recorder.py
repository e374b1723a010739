"""Record a live environment, so that it can be replayed, simulated and valued exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from iapo_dspy.environments.port import Environment
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.types import Contexts, FloatArray, IntArray, Observations, Pulls

__all__ = ["record"]


def record(
    environment: Environment,
    contexts: Contexts,
    *,
    kind: Literal["vote", "best-of"],
    samples: int,
    cost_scale: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Draw S completions of every prompt on every query and keep their empirical law.

    Args:
        environment: What to record.
        contexts: The contexts to store with the recording; "vote" stores their cost weights.
        kind: The strategy that the recording is for. "vote" keeps answer classes and the mean score of each class on a
            query; "best-of" keeps every completion's scores. Failed completions become missing probability.
        samples: S >= 1, completions per (prompt, query). One pull of S each.
        cost_scale: Utility of one raw cost unit. `None`: the average call for a single completion, overhead included
            (mean over prompts), costs 0.01.
        progress: Called with (completions drawn, completions in all) after each prompt.

    Returns:
        A recording with the mean cost and overhead of each prompt, in utility.

    Raises:
        ConfigurationError: An unusable argument.
        BudgetTooSmall: The environment ended before all P * X * S completions were drawn.
    """
    if samples < 1:
        raise ConfigurationError(f"samples is {samples}; give at least 1 completion per prompt and query.")
    if kind not in ("vote", "best-of"):
        raise ConfigurationError(f'kind is {kind!r}; give "vote" or "best-of".')
    n_prompts, n_queries = environment.n_prompts, environment.n_queries
    total = n_prompts * n_queries * samples
    queries = np.arange(n_queries)
    seen: list[Observations] = []
    for prompt in range(n_prompts):
        pulls = Pulls(np.full(n_queries, prompt), queries, np.full(n_queries, samples))
        observations = environment.pull(pulls)
        drawn = len(seen) * n_queries * samples + observations.pulls.completions
        if observations.pulls.completions < pulls.completions:
            raise BudgetTooSmall(
                f"The environment ended after {drawn} of {total} completions; a recording needs all of them.",
                given=drawn,
                least=total,
            )
        seen.append(observations)
        if progress:
            progress(drawn, total)

    cost = np.array([observations.cost.mean() for observations in seen])
    overhead = np.array([observations.overhead.mean() for observations in seen])
    if cost_scale is None:
        call = float((overhead + cost).mean())
        cost_scale = 0.01 / call if call > 0 else 0.0
    label = np.stack([o.label.reshape(n_queries, samples) for o in seen])
    score = np.stack([o.score.reshape(n_queries, samples, -1) for o in seen])
    failed = np.stack([o.failed.reshape(n_queries, samples) for o in seen])
    if kind == "best-of":
        return BestOfRecording(
            outcomes=np.where(failed[..., None], 0.0, score),
            probs=np.where(failed, 0.0, 1.0 / samples),
            cost=cost * cost_scale,
            overhead=overhead * cost_scale,
            weights=np.column_stack([contexts.weights, contexts.cost]),
        )
    probs, credit = _classes(np.where(failed, -1, label), score[..., 0])
    right = credit == 1.0
    exact = bool(((credit == 0.0) | right).all() and (right.sum(axis=1) <= 1).all())
    return VotingRecording(
        probs=probs,
        answers=np.where(right.any(axis=1), right.argmax(axis=1), -1),
        cost=cost * cost_scale,
        overhead=overhead * cost_scale,
        cost_weights=contexts.cost,
        credit=None if exact else credit,
    )


def _classes(label: IntArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Count the answers of each query over all prompts.

    Args:
        label: Labels [P, X, S], -1 where there is no vote.
        score: Scores [P, X, S].

    Returns:
        Share of each class [P, X, A] and mean score of each class [X, A].
    """
    n_prompts, n_queries, samples = label.shape
    names = [np.unique(label[:, x][label[:, x] >= 0]) for x in range(n_queries)]
    n_answers = max(1, *(len(n) for n in names)) if names else 1
    probs = np.zeros((n_prompts, n_queries, n_answers))
    credit = np.zeros((n_queries, n_answers))
    for x, answers in enumerate(names):
        for a, answer in enumerate(answers):
            votes = label[:, x] == answer
            probs[:, x, a] = votes.sum(axis=1) / samples
            credit[x, a] = score[:, x][votes].mean()
    return probs, credit
