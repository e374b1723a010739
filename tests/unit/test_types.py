"""The words of the package as types."""

from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Observations, Pulls


def test_prompts_take_turns() -> None:
    prompts = np.array([2, 2, 0, 1, 2, 0])
    pulls = Pulls(prompts, np.arange(6), np.ones(6, dtype=int))
    turns = pulls.take(pulls.in_turns())
    assert turns.prompt.tolist() == [0, 1, 2, 0, 2, 2]
    assert turns.query.tolist() == [2, 3, 0, 5, 1, 4]  # in the order given within a prompt
    assert not len(Pulls(*np.zeros((3, 0), dtype=int)).in_turns())


def test_only_prompts_that_are_present_can_have_been_drawn() -> None:
    pulls = Pulls(np.array([0, 2]), np.array([0, 0]), np.array([1, 1]))
    seen = Observations(pulls=pulls, label=np.zeros(2, dtype=int), score=np.zeros((2, 1)), cost=np.zeros(2), present=3)
    assert seen.present == 3
    with pytest.raises(ConfigurationError, match="present is 2"):
        Observations(pulls=pulls, label=np.zeros(2, dtype=int), score=np.zeros((2, 1)), cost=np.zeros(2), present=2)
