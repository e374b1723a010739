"""Record a live environment, so that it can be replayed, simulated and valued exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from iapo_dspy.environments.port import Environment
from iapo_dspy.environments.recorded.empirical import Cell, Kind, empirical_recording
from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.types import Contexts, Observations, Pulls


def record(
    environment: Environment,
    contexts: Contexts,
    *,
    kind: Kind,
    samples: int,
    cost_scale: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Draw S completions of every prompt on every query and keep their empirical law.

    Args:
        environment: The environment to record.
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

    return empirical_recording(
        kind,
        [_cells(observations, samples) for observations in seen],
        cost=np.array([observations.cost.mean() for observations in seen]),
        overhead=np.array([observations.overhead.mean() for observations in seen]),
        contexts=contexts,
        cost_scale=cost_scale,
    )


def _cells(observations: Observations, samples: int) -> list[Cell]:
    """Return the completions of one prompt by query [X]; failures have no vote."""
    label = np.where(observations.failed, -1, observations.label).reshape(-1, samples)
    return list(zip(label, observations.score.reshape(*label.shape, -1), strict=True))
