"""Shares by hand, and the bound at which a run stops."""

from __future__ import annotations

import math

import pytest

from iapo_dspy.environments.live.unreadable import LEAST, TELLING, UnreadableShares, surely_above


def counted(
    shares: dict[int, tuple[int, int]], most: float | None = 0.5, n_prompts: int = 4
) -> tuple[bool, UnreadableShares]:
    """Return the verdict on prompts with so many unreadable ones of so many completions."""
    unreadable = UnreadableShares(n_prompts, most)
    unreadable.ask(shares)
    drawn = [0] * n_prompts
    for prompt, (found, of) in shares.items():
        unreadable.add(prompt, 0, [(i, "?", "cause") for i in range(found)])
        drawn[prompt] = of
    return unreadable.too_many(drawn), unreadable


def test_the_bound_is_the_tail_of_a_binomial() -> None:
    assert surely_above(0.5, 7, 7) and not surely_above(0.5, 6, 6)  # 1/128 < .01 < 1/64
    assert surely_above(0.5, 10, 11) and not surely_above(0.5, 9, 10)  # 12/2048 < .01 < 11/1024
    assert surely_above(0.5, 15, 19) and not surely_above(0.5, 14, 19)
    assert not surely_above(0.5, 0, 0) and not surely_above(0.5, 0, 100)
    assert not surely_above(1.0, 1000, 1000)
    assert surely_above(0.9, 44, 44) and not surely_above(0.9, 43, 43)  # .9 ** 44 < .01 < .9 ** 43
    assert surely_above(0.5, 2000, 2000)
    assert surely_above(0.5, 1_100, 2_000) and not surely_above(0.5, 1_040, 2_000)  # 4.5 and 1.8 standard deviations


def test_the_first_pulls_of_a_prompt_are_enough_to_judge_it() -> None:
    assert surely_above(0.5, TELLING, TELLING)


@pytest.mark.parametrize(("readable", "most"), [(0.5, 0.06), (0.6, 0.004)])
def test_a_prompt_that_can_be_read_half_the_time_is_seldom_misjudged(readable: float, most: float) -> None:
    """Exact: the law of the counts, without those that were misjudged at an earlier look."""
    law, misjudged = {0: 1.0}, 0.0
    for drawn in range(1, 129):
        after: dict[int, float] = {}
        for found, p in law.items():
            after[found + 1] = after.get(found + 1, 0.0) + p * (1.0 - readable)
            after[found] = after.get(found, 0.0) + p * readable
        misjudged += sum(p for found, p in after.items() if surely_above(0.5, found, drawn))
        law = {found: p for found, p in after.items() if not surely_above(0.5, found, drawn)}
    assert 0.0 < misjudged < most


def test_a_run_stops_where_no_prompt_can_be_read() -> None:
    assert counted({0: (30, 30), 1: (27, 34)})[0]
    assert not counted({0: (30, 30), 1: (20, 34)})[0]  # 20 of 34 may be chance
    assert not counted({0: (60, 60), 1: (1, 30)})[0]  # one readable prompt is enough


def test_a_run_does_not_stop_before_it_has_seen_enough() -> None:
    assert not counted({0: (LEAST - 8, LEAST - 8), 1: (7, 7)})[0]
    assert counted({0: (LEAST - 7, LEAST - 7), 1: (7, 7)})[0]
    assert not counted({0: (100, 100), 1: (6, 6)})[0]
    assert not counted({0: (100, 100), 1: (0, 0)})[0]  # asked, and not tried yet
    assert not counted({})[0]


@pytest.mark.parametrize("most", [None, 1, 1.0])
def test_without_a_bound_a_run_never_stops(most: float | None) -> None:
    assert not counted({0: (500, 500)}, most)[0]


def test_another_bound() -> None:
    shares = {0: (80, 100), 1: (75, 100)}
    assert counted(shares, 0.6)[0] and not counted(shares, 0.7)[0]


def test_shares_and_examples() -> None:
    unreadable = UnreadableShares(5, 0.5)
    unreadable.add(0, 2, [(0, "second", "b")])
    unreadable.add(0, 1, [(4, "later", "a"), (3, "  the \n first ", "AdapterParseError: x")])
    unreadable.add(1, 0, [(0, "x" * 1000, None)])
    unreadable.add(2, 0, [(0, None, "IncompleteCompletion: cut off")])
    unreadable.add(3, 0, [(0, "rare", "c")])
    drawn = [4, 1, 2, 10, 0]
    assert unreadable.total == 6
    assert unreadable.shares(drawn)[:4] == (0.75, 1.0, 0.5, 0.1) and math.isnan(unreadable.shares(drawn)[4])
    one, zero, two = unreadable.examples(drawn)  # the largest shares first, three at most
    assert (one.prompt, zero.prompt, two.prompt) == (1, 0, 2)
    assert (zero.text, zero.cause) == ("the first", "AdapterParseError: x")
    assert len(one.text) == 160 and one.text.endswith("x...") and one.cause
    assert str(two) == "prompt 2: an empty text"
