"""Proposers: they write new candidates from what the run has drawn so far, and `Mix` shares the work among them.

```python
from iapo_dspy import IAPO, Search, proposers

IAPO(..., prompt_model=lm, search=Search(proposers=[proposers.Reflective(), proposers.Shorten()]))
```
"""

from iapo_dspy.prompts.proposers import (
    Aim,
    Demos,
    Gradients,
    Grounded,
    History,
    KnownPrompt,
    Merge,
    Mix,
    Pairwise,
    Paraphrase,
    ProposalEvidence,
    Proposed,
    Proposer,
    Reflective,
    Shorten,
    Try,
    default_proposers,
)

__all__ = [
    "Aim",
    "Demos",
    "Gradients",
    "Grounded",
    "History",
    "KnownPrompt",
    "Merge",
    "Mix",
    "Pairwise",
    "Paraphrase",
    "ProposalEvidence",
    "Proposed",
    "Proposer",
    "Reflective",
    "Shorten",
    "Try",
    "default_proposers",
]
