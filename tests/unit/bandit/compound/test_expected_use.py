"""What calls are expected to take, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.compound.expected_use import drawn_by, expected_use, priced
from iapo_dspy.bandit.outcome import StoppedArm
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.types import Arm, Escalation, Share

FIXED = np.array([[0.0, 0.0], [10.0, 20.0], [1.0, 2.0], [0.5, 4.0]])  # tokens, input tokens, dollars, seconds
EACH = np.array([[5.0, 30.0], [0.0, 0.0], [0.1, 0.3], [0.1, 1.0]])


def call(arm: Arm, *by_prompt: tuple[int, float, float]) -> StoppedArm:
    return StoppedArm(
        arm=arm, reward=1.0, gain=0.0, completions=3.0, waves=1.5, cost=0.0, utility=0.0, by_prompt=by_prompt
    )


def test_an_arm_of_one_prompt() -> None:
    one = call(Arm(1, 4))
    assert drawn_by(one) == ((1, 3.0, 1.5),)
    assert expected_use(one, FIXED, EACH).tolist() == [90.0, 30.0, pytest.approx(3.9), 9.0]
    assert priced(one, FIXED[2], EACH[2]) == pytest.approx(1.0 - 3.9)


def test_stages_come_one_after_the_other_and_parts_of_a_mixture_at_once() -> None:
    parts = (0, 2.0, 1.0), (1, 1.0, 0.25)
    cascade = call(Arm(0, 2, then=Escalation(below=0.5, arm=Arm(1, 4))), *parts)
    mixture = call(Arm(0, 2, beside=(Share(prompt=1, n=1),)), *parts)
    summed = [40.0, 15.0, pytest.approx(1.2 + 0.8)]
    assert expected_use(cascade, FIXED, EACH).tolist() == [*summed, pytest.approx(0.7 + 2.0)]
    assert expected_use(mixture, FIXED, EACH).tolist() == [*summed, 2.0]
    again = replace(cascade, arm=Arm(0, 2, then=Escalation(below=0.5, arm=replace(mixture.arm, prompt=0))))
    assert expected_use(again, FIXED, EACH)[3] == pytest.approx(0.7 + 2.0)  # no second is counted twice
    assert priced(cascade, FIXED[2], EACH[2]) == pytest.approx(1.0 - 2.0)


def test_what_is_not_known_of_one_prompt_is_not_known_of_the_call() -> None:
    fixed = FIXED.copy()
    fixed[2, 0] = fixed[3, 1] = math.nan
    arm = Arm(0, 2, beside=(Share(prompt=1, n=1),))
    use = expected_use(call(arm, (0, 2.0, 1.0), (1, 1.0, 0.25)), fixed, EACH)
    assert [math.isnan(v) for v in use] == [name in ("usd", "seconds") for name in RESOURCES]
