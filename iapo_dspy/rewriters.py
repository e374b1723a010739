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

__all__ = ["BPO_AGGRESSIVE", "BPO_CHAT_TEMPLATE", "BPO_MARKS", "BPO_STABLE", "BPO_TEMPLATE", "Rewriter", "bpo"]
