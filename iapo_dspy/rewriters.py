"""Rewriters of queries, for users; the code is in `iapo_dspy.prompts.rewriters`."""

from iapo_dspy.prompts.rewriters.bpo import (
    BPO_AGGRESSIVE,
    BPO_CHAT_TEMPLATE,
    BPO_MARKS,
    BPO_STABLE,
    BPO_TEMPLATE,
    bpo,
)
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.rewriters.tilted_laws import best_of_k_divergence, kl_bound, kl_divergence, tilted_law

__all__ = [
    "BPO_AGGRESSIVE",
    "BPO_CHAT_TEMPLATE",
    "BPO_MARKS",
    "BPO_STABLE",
    "BPO_TEMPLATE",
    "Rewriter",
    "best_of_k_divergence",
    "bpo",
    "kl_bound",
    "kl_divergence",
    "tilted_law",
]
