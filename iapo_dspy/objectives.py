"""Built-in objectives: scores of completions that need no labels, ready for Best-of-N.

```python
from iapo_dspy import BestOfN, objectives

BestOfN([objectives.judge("Is the answer polite?"), objectives.length("answer", most=80)])
```
"""

from iapo_dspy.scoring.objectives import (
    REWARD_MODELS,
    json_valid,
    judge,
    length,
    regex_match,
    reward_model,
    served_reward_model,
    similarity,
)

__all__ = [
    "REWARD_MODELS",
    "json_valid",
    "judge",
    "length",
    "regex_match",
    "reward_model",
    "served_reward_model",
    "similarity",
]
