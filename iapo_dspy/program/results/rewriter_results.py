"""Rewriters beside the queries as they are: reward, variance and win rate of the completions of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.measurement import Bounds
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.prompts.prompt import PromptState
from iapo_dspy.prompts.rewriters.rewrite_counts import RewriteCount
from iapo_dspy.scoring.strategies import Strategy, columns_of
from iapo_dspy.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class RewriterResult:
    """How single completions on rewritten queries fare beside those of the same prompts on the queries as they are.

    Only queries count on which both were drawn. A failed completion is worth 0.

    Attributes:
        name: The rewriter in words.
        rewrites: Its rewrites.
        compared: Queries behind the comparison; 0 where there is none, and the numbers below are NaN.
        reward: Mean score of a completion, by the objectives' weights of the first preference.
        plain: The same on queries as they are.
        variance: Variance of that score, over queries and completions.
        plain_variance: The same on queries as they are.
        win_rate: How often a completion beats one on the query as it is; a tie counts as half of a win.
        interval: 95 % interval of the win rate, by query.
    """

    name: str
    rewrites: RewriteCount
    compared: int
    reward: float
    plain: float
    variance: float
    plain_variance: float
    win_rate: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        count = self.rewrites
        parts = [f"the rewriter {self.name!r}: {count.queries} queries"]
        if count.failed:
            parts[0] += f", of which {count.failed} stay as they are"
        if self.compared:
            low, high = self.interval
            shown = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
            parts.append(
                f"beside the query as it is, single completions have the reward {self.reward:.3f} for "
                f"{self.plain:.3f}, the variance {self.variance:.3f} for {self.plain_variance:.3f}, and the win rate "
                f"{self.win_rate:.2f}{shown}"
            )
        if count.rewards is not None:
            parts.append(str(count.rewards))
        return "; ".join(parts)


def rewriter_results(
    policy: CompiledPolicy, strategy: Strategy, rewrites: Mapping[str, RewriteCount]
) -> tuple[RewriterResult, ...]:
    """Compare each rewriter of a run with the queries as they are, from the stored evidence.

    Args:
        policy: The policy with its evidence.
        strategy: Its strategy.
        rewrites: The rewrites of each rewriter, by its words.
    """
    if not rewrites:
        return ()
    cells = Cells.of(policy.evidence, len(policy.prompts), len(columns_of(strategy)))
    weights = policy.preferences[0].vector(strategy.objectives)
    worth = np.nan_to_num(cells.score[:, : len(weights)]) @ weights
    scores = {
        (int(p), int(x)): worth[start : start + size]
        for p, x, start, size in zip(cells.prompt, cells.query, cells.start, cells.size, strict=True)
    }
    plain = {_alike(prompt): i for i, prompt in enumerate(policy.prompts) if prompt.rewriter is None}
    found = []
    for name, count in rewrites.items():
        pairs = [
            (i, plain[_alike(prompt)])
            for i, prompt in enumerate(policy.prompts)
            if prompt.rewriter is not None and prompt.rewriter.words == name and _alike(prompt) in plain
        ]
        both = [
            (x, scores[p, x], scores[q, x])
            for p, q in pairs
            for x in range(cells.n_visited)
            if (p, x) in scores and (q, x) in scores
        ]
        found.append(_compared(name, count, both))
    return tuple(found)


def _alike(prompt: PromptState) -> Any:
    """Return what a prompt has in common with those that differ in their rewriter only."""
    bare = replace(prompt, rewriter=None, label="", mark="").to_dict()
    return repr(sorted(bare.items()))


def _compared(name: str, count: RewriteCount, both: list[tuple[int, FloatArray, FloatArray]]) -> RewriterResult:
    nan = float("nan")
    if not both:
        values = {"reward": nan, "plain": nan, "variance": nan, "plain_variance": nan, "win_rate": nan}
        return RewriterResult(name=name, rewrites=count, compared=0, interval=(nan, nan), **values)
    wins: dict[int, list[float]] = {}
    for x, mine, theirs in both:
        difference = mine[:, None] - theirs
        wins.setdefault(x, []).append(float(((difference > 0) + 0.5 * (difference == 0)).mean()))
    rate = np.array([np.mean(some) for some in wins.values()])
    mean, n = float(rate.mean()), len(rate)
    variance = float(rate.var(ddof=1)) / n if n > 1 else nan
    reward, spread = _moments([mine for _, mine, _ in both])
    plain, plain_spread = _moments([theirs for _, _, theirs in both])
    return RewriterResult(
        name=name,
        rewrites=count,
        compared=n,
        reward=reward,
        plain=plain,
        variance=spread,
        plain_variance=plain_spread,
        win_rate=mean,
        interval=Bounds(low=0.0, high=1.0, spread=1.0).interval(mean, variance, n - 1.0, n),
    )


def _moments(cells: list[FloatArray]) -> tuple[float, float]:
    """Return mean and variance of scores, with the same weight for each cell."""
    mean = float(np.mean([cell.mean() for cell in cells]))
    return mean, float(np.mean([((cell - mean) ** 2).mean() for cell in cells]))
