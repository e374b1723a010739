"""Pulls are sent prompt after prompt; positions in the comments are those of the lists of pulls."""

from __future__ import annotations

from collections.abc import Sequence

from iapo_dspy.environments.live.dispatch import STINT, in_order
from iapo_dspy.types import Pull


def pulls(prompts: Sequence[int], size: int = 1) -> list[Pull]:
    return [Pull(prompt=p, query=i, size=size) for i, p in enumerate(prompts)]


def order(prompts: Sequence[int], size: int = 1, served: str = "AAAAAAAA", **more: object) -> list[int]:
    return in_order(pulls(prompts, size), deployment=served.__getitem__, behind=9, **more)  # type: ignore[arg-type]


def test_prompts_come_one_after_another_and_keep_the_order_of_their_own_pulls() -> None:
    assert order([2, 0, 1, 2, 0, 1]) == [1, 4, 2, 5, 0, 3]
    assert order([]) == []


def test_the_student_that_is_the_unit_of_costs_comes_first() -> None:
    assert order([0, 9, 1, 0, 9], served="AB-------A") == [1, 4, 0, 2, 3]


def test_new_prompts_are_tried_before_any_prompt_is_drawn_in_full() -> None:
    turns = [0, 1, 2] * 3
    assert order(turns, size=2, new=[0, 1, 2], few=4) == [0, 3, 1, 4, 2, 5, 6, 7, 8]
    assert order(turns, size=2, new=[2], few=4) == [2, 5, 0, 3, 6, 1, 4, 7, 8]
    assert order(turns, size=3, new=[0, 1, 2], few=4) == [0, 3, 1, 4, 2, 5, 6, 7, 8]  # 3 are less than 4
    assert order(turns, size=4, new=[0, 1, 2], few=4) == [0, 1, 2, 3, 6, 4, 7, 5, 8]


def test_deployments_take_turns_and_each_has_its_prompts_one_after_another() -> None:
    prompts = [0, 1, 2, 3] * 2
    found = order(prompts, served="ABAB")
    assert [prompts[i] for i in found] == [0, 1, 0, 1, 2, 3, 2, 3]
    for deployment in ((0, 2), (1, 3)):
        own = [prompts[i] for i in found if prompts[i] in deployment]
        assert own == sorted(own)


def test_a_limit_that_may_end_a_round_has_prompts_take_turns_by_stints() -> None:
    prompts = [0, 1] * (STINT + 2)
    found = [prompts[i] for i in order(prompts, limited=True)]
    assert found == [0] * STINT + [1] * STINT + [0, 0, 1, 1]


def test_every_pull_is_sent_once() -> None:
    prompts = [9, 3, 1, 0, 3, 3, 1, 9, 0, 2] * 5
    for more in ({}, {"limited": True}, {"new": [0, 3], "few": 3}):
        assert sorted(order(prompts, served="ABCAAAAAAB", **more)) == list(range(50))
