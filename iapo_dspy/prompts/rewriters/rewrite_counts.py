"""The rewrites of a run in numbers: how many there are, their rewards, and how far choosing by them goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.rewriters.rewriting import Rewritten, law_of
from iapo_dspy.prompts.rewriters.tilted_laws import best_of_k_divergence, kl_bound, kl_divergence


@dataclass(frozen=True, kw_only=True)
class TiltedRewards:
    """The rewards of rewrites under the law that they are chosen by, and under the reference prompter.

    Means are over queries. The law and the reference of a query are exact on the rewrites that it has.

    Attributes:
        k: Rewrites of a query.
        choose: "draw" or "best".
        tilt: Lambda of "draw".
        reward: Mean reward of a chosen rewrite.
        reference: Mean reward of a rewrite of the reference prompter.
        variance: Variance of the reward of a chosen rewrite, over queries and draws.
        reference_variance: The same of the reference prompter.
        kl: Mean divergence of the law from the reference, in nats.
        bound: The most that it can be: for "draw", the gain in reward over lambda (`kl_bound`); for "best",
            log k - (k - 1) / k, the divergence of the best of k rewrites from the prompter that wrote them.
    """

    k: int
    choose: str
    tilt: float
    reward: float
    reference: float
    variance: float
    reference_variance: float
    kl: float
    bound: float

    def __str__(self) -> str:
        if self.choose == "best":
            how = f"the best of {self.k} rewrites"
            far = f"log k - (k - 1) / k = {self.bound:.2f} nats from the reference"
        else:
            how = f"one of {self.k} rewrites, drawn with lambda {self.tilt:g}"
            far = f"KL {self.kl:.2f} nats, at most {self.bound:.2f}"
        return (
            f"{how}: reward {self.reward:.3f} for {self.reference:.3f} of the reference, variance {self.variance:.3f} "
            f"for {self.reference_variance:.3f}, {far}"
        )


@dataclass(frozen=True, kw_only=True)
class RewriteCount:
    """The rewrites of one rewriter in a run.

    Attributes:
        queries: Queries that it was asked for.
        failed: Those of them that stay as they are.
        rewards: Their rewards; None for a rewriter without a reward.
    """

    queries: int
    failed: int
    rewards: TiltedRewards | None = None

    @classmethod
    def of(cls, rewriter: Rewriter, found: Sequence[Rewritten]) -> RewriteCount:
        """Count what a rewriter made of its queries."""
        failed = sum(rewritten.failure is not None for rewritten in found)
        rewards = [np.array(rewritten.rewards) for rewritten in found if rewritten.rewards]
        return cls(queries=len(found), failed=failed, rewards=_tilted(rewriter, rewards) if rewards else None)


def _tilted(rewriter: Rewriter, rewards: Sequence[Any]) -> TiltedRewards:
    laws = [law_of(rewriter, r) for r in rewards]
    even = [np.full(len(r), 1.0 / len(r)) for r in rewards]
    draws = rewriter.choose == "draw"
    bounds = [kl_bound(r, lam=rewriter.tilt) if draws else best_of_k_divergence(len(r)) for r in rewards]

    def moments(of: Sequence[Any]) -> tuple[float, float]:
        mean = float(np.mean([p @ r for p, r in zip(of, rewards, strict=True)]))
        square = float(np.mean([p @ (r - mean) ** 2 for p, r in zip(of, rewards, strict=True)]))
        return mean, square

    (reward, variance), (reference, reference_variance) = moments(laws), moments(even)
    return TiltedRewards(
        k=rewriter.k,
        choose=rewriter.choose,
        tilt=rewriter.tilt,
        reward=reward,
        reference=reference,
        variance=variance,
        reference_variance=reference_variance,
        kl=float(np.mean([kl_divergence(p, q) for p, q in zip(laws, even, strict=True)])),
        bound=float(np.mean(bounds)),
    )
