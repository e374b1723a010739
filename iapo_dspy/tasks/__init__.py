"""Ready tasks: signature, prompts, data, strategy, metric and preferences of each, among them the paper's four.

```python
import iapo_dspy
from iapo_dspy.tasks import task

arithmetic = task("arithmetic")
optimizer = iapo_dspy.IAPO(
    metric=arithmetic.metric, strategy=arithmetic.strategy, preferences=arithmetic.preferences, max_n=16, budget=2_000
)
program = optimizer.compile(
    arithmetic.student(), trainset=arithmetic.load(limit=200), candidates=arithmetic.candidates()
)
```
"""

from iapo_dspy.tasks.data_source import DataSource
from iapo_dspy.tasks.known_tasks import TASKS, task
from iapo_dspy.tasks.right_answer import RightAnswer
from iapo_dspy.tasks.task import Task

__all__ = ["TASKS", "DataSource", "RightAnswer", "Task", "task"]
