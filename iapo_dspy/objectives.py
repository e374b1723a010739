"""Built-in objectives: scores of completions that need no labels, ready for Best-of-N.

```python
from iapo_dspy import BestOfN, objectives

BestOfN([objectives.judge("Is the answer polite?"), objectives.length("answer", most=80)])
```
"""

from iapo_dspy.scoring.objectives.constraints import json_valid, length, regex_match
from iapo_dspy.scoring.objectives.judging import judge
from iapo_dspy.scoring.objectives.pairs import REWARD_MODELS
from iapo_dspy.scoring.objectives.preferring import prefers
from iapo_dspy.scoring.objectives.rewards import reward_model
from iapo_dspy.scoring.objectives.served import served_reward_model
from iapo_dspy.scoring.objectives.similar import similarity

__all__ = [
    "REWARD_MODELS",
    "json_valid",
    "judge",
    "length",
    "prefers",
    "regex_match",
    "reward_model",
    "served_reward_model",
    "similarity",
]
