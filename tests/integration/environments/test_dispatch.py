"""A server sees the requests of a round prompt after prompt."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import dspy

from iapo_dspy import Budget, Cost
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import INSTRUCTIONS, adder, questions, student

optimizer = optimizers(budget=600, algorithm="psst", stopping=None, seed=3)
STUDENT = -1  # measures the unit of costs


def asked(server: Loopback) -> list[int]:
    """Return the prompt of each request, in the order in which they came."""
    systems = [body["messages"][0]["content"] for body in server.bodies]
    return [next((i for i, text in enumerate(INSTRUCTIONS) if text in system), STUDENT) for system in systems]


def runs(prompts: Sequence[int]) -> list[tuple[int, int]]:
    """Return (prompt, how often) of requests one after another."""
    return [(p, len(list(same))) for p, same in itertools.groupby(prompts)]


def content(server: Loopback) -> list[str]:
    """Return all requests with their seeds, whatever their order."""
    return sorted(json.dumps([b["messages"], b.get("seed"), b.get("n")]) for b in server.bodies)


def test_one_request_at_a_time_comes_prompt_after_prompt() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1, engine="litellm")):
        optimizer(num_threads=1).compile(student(), trainset=questions(30))
        (first, drawn), *found = runs(asked(server))
    assert first == STUDENT and drawn == 16
    # In the first round, each prompt is tried by 2 pulls of 4 completions.
    times = [n for _, n in found]
    assert [p for p, _ in found[:9]] == [0, 1, 2] * 3
    assert times[:3] == [2, 2, 2] and times[3] == times[4] == times[5] > 2 and times[6] == times[7] == times[8]
    assert {body["n"] for body in server.bodies[16:22]} == {4}


def test_several_at_a_time_do_not_mix_prompts_much_and_change_nothing() -> None:
    with Loopback(adder, latency=0.002) as server, dspy.context(lm=server.lm(seed=1, engine="litellm")):
        alone = optimizer(num_threads=1).compile(student(), trainset=questions(30)).detailed_results
        one_by_one, right = content(server), asked(server)
        server.bodies.clear()
        together = optimizer(num_threads=8).compile(student(), trainset=questions(30)).detailed_results
        assert content(server) == one_by_one
        mixed = asked(server)
    assert [row.arm for row in alone.policy] == [row.arm for row in together.policy]
    assert alone.q.tolist() == together.q.tolist()
    for i, prompt in enumerate(mixed):  # a request is at most sixteen places away from its own
        assert prompt in right[max(i - 16, 0) : i + 17]


def test_a_small_round_tries_no_prompt_before_the_others() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        optimizer(num_threads=1, budget=240).compile(student(), trainset=questions(30))
        _, *found = runs(asked(server))
    assert found[:3] == [(0, 4), (1, 4), (2, 4)]  # 48 completions


def test_each_of_several_lms_has_its_prompts_one_after_another() -> None:
    with Loopback(adder) as one, Loopback(adder) as other:
        lms = [one.lm("openai/one", seed=1), other.lm("openai/other", seed=1)]
        settings = {"lms": lms, "budget": 1500, "cost_unit": Cost(completion_tokens=1)}
        optimizer(num_threads=1, **settings).compile(student(), trainset=questions(30))
        for server in (one, other):
            found = [(p, n) for p, n in runs(asked(server)) if p != STUDENT]
            assert [p for p, _ in found[:6]] == [0, 1, 2] * 2
            times = [n for _, n in found]
            assert times[:3] == [2, 2, 2] and times[3] == times[4] == times[5] > 1


def test_where_a_limit_may_end_a_round_prompts_take_turns() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1, engine="litellm")):
        optimizer(num_threads=1, budget=Budget(900, seconds=600)).compile(student(), trainset=questions(60))
        _, *found = runs(asked(server))
    times = [n for _, n in found]
    assert [p for p, _ in found[:9]] == [0, 1, 2] * 3
    assert times[:3] == [2, 2, 2] and times[3:6] == [8, 8, 8]
