"""The tasks by name."""

from __future__ import annotations

from iapo_dspy.errors import ConfigurationError, nearest
from iapo_dspy.tasks.generated_sums import ARITHMETIC, ONE_STEP
from iapo_dspy.tasks.labelled_sentences import SST2, SUBJ
from iapo_dspy.tasks.mathematics import GSM8K, MATH
from iapo_dspy.tasks.multiple_choice import BIG_BENCH_HARD, COMMONSENSE_QA
from iapo_dspy.tasks.rewarded import HELPFUL_HARMLESS, SUMMARIZATION
from iapo_dspy.tasks.task import Task

_BY_NAME = {
    t.name: t
    for t in (
        MATH,
        COMMONSENSE_QA,
        HELPFUL_HARMLESS,
        SUMMARIZATION,
        GSM8K,
        *BIG_BENCH_HARD,
        SST2,
        SUBJ,
        ARITHMETIC,
        ONE_STEP,
    )
}

TASKS = tuple(_BY_NAME)
"""The names that `task` knows: the paper's four tasks first."""


def task(name: str) -> Task:
    """Return a task by its name, one of `TASKS`.

    Raises:
        ConfigurationError: There is not such a task.
    """
    if name not in TASKS:
        raise ConfigurationError(f"task({name!r}): give one of {', '.join(TASKS)}.{nearest(str(name), TASKS, 0.4)}")
    return _BY_NAME[name]
