"""Proposers: they write new candidates from what the run has drawn so far, and `Mix` shares the work among them.

```python
from iapo_dspy import IAPO, Search, proposers

IAPO(..., prompt_model=lm, search=Search(proposers=[proposers.Reflective(), proposers.Shorten()]))
```
"""

from iapo_dspy.prompts.proposers.demonstrations import Demos
from iapo_dspy.prompts.proposers.merge import Merge
from iapo_dspy.prompts.proposers.mix import Mix, default_proposers
from iapo_dspy.prompts.proposers.pairwise import Pairwise
from iapo_dspy.prompts.proposers.port import Aim, KnownPrompt, ProposalEvidence, Proposed, Proposer, Try
from iapo_dspy.prompts.proposers.reflective import Gradients, Reflective
from iapo_dspy.prompts.proposers.scored_history import History
from iapo_dspy.prompts.proposers.task_based import Grounded, Paraphrase, Shorten

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
