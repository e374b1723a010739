"""Arms as JSON: every arm comes back as it was, and arms of one prompt are written as they always were."""

import json

import pytest

from iapo_dspy.program.evidence.saved_arms import read_arm, saved_arm
from iapo_dspy.types import Arm, Escalation, Share, Stop

STOP = Stop(waves=(2, 4))
LAST = Arm(2, 8, beside=(Share(prompt=0, n=3), Share(prompt=3, n=1)), then=Escalation(below=0.25))
ARMS = [
    Arm(0, 1),
    Arm(1, 4, Stop(waves=(2, 4), confidence=0.9)),
    Arm(1, 4, beside=(Share(prompt=0, n=8),)),
    Arm(1, 4, STOP, then=Escalation(below=0.6)),
    Arm(1, 4, STOP, then=Escalation(below=0.6, arm=Arm(0, 8, Stop(waves=(4, 8), threshold=0.5)))),
    Arm(1, 4, then=Escalation(below=0.6, weight=3, arm=Arm(1, 4, then=Escalation(below=0.1, arm=LAST)))),
]


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_comes_back_as_it_was(arm: Arm) -> None:
    data = json.loads(json.dumps(saved_arm(arm)))
    assert read_arm({"name": "x", "cost": 0.1, **data}, n_prompts=4, max_n=8) == arm


def test_an_arm_of_one_prompt_is_written_as_before() -> None:
    assert saved_arm(Arm(3, 5)) == {"arm": [3, 5]}
    stop = {"waves": (2, 4), "confidence": 0.9, "threshold": None}
    assert saved_arm(ARMS[1]) == {"arm": [1, 4], "stop": stop}


@pytest.mark.parametrize(("n_prompts", "max_n"), [(3, 8), (4, 7)])
def test_every_stage_and_share_is_within_range(n_prompts: int, max_n: int) -> None:
    with pytest.raises(ValueError, match=f"stage 3: arm=.*below {n_prompts}, and n at most max_n={max_n}"):
        read_arm(saved_arm(ARMS[-1]), n_prompts, max_n)
