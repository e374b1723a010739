"""The words of the package as types."""

from __future__ import annotations

import numpy as np

from iapo_dspy.types import Pulls


def test_prompts_take_turns() -> None:
    prompts = np.array([2, 2, 0, 1, 2, 0])
    pulls = Pulls(prompts, np.arange(6), np.ones(6, dtype=int))
    turns = pulls.take(pulls.in_turns())
    assert turns.prompt.tolist() == [0, 1, 2, 0, 2, 2]
    assert turns.query.tolist() == [2, 3, 0, 5, 1, 4]  # in the order given within a prompt
    assert not len(Pulls(*np.zeros((3, 0), dtype=int)).in_turns())
