"""A small and a large model behind one server: what a cascade saves is found from the draws that choose single arms."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import CompiledProgram, Cost, Preference
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import questions, total

pytestmark = pytest.mark.slow

PRICES = {"openai/small": (0.0, 1.0), "openai/large": (0.0, 15.0)}  # dollars per million tokens
BUDGET, QUESTIONS = 1_200, 80
PREFERENCES = [Preference("quality"), Preference("balanced", cost=1.0), Preference("thrifty", cost=40.0)]


def two_models(body: dict[str, Any], i: int) -> str:
    """The large model is right 19 times of 20. The small one is, too, on even sums, and guesses on odd ones."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    correct = total(body)
    knows = "large" in body["model"] or correct % 2 == 0
    right = rng.random() < (0.95 if knows else 0.1)
    return chat(answer=str(correct if right else correct + rng.randint(1, 40)))


def compiled(server: Loopback, **settings: Any) -> CompiledProgram:
    lms = [server.lm(name, seed=3) for name in PRICES]
    common = {"preferences": PREFERENCES, "max_n": 8, "budget": BUDGET, "seed": 1, "candidates": ["Add."]}
    made = optimizers(lms=lms, cost_unit=Cost(usd_per_million=PRICES), **{**common, **settings})()
    return made.compile(dspy.Predict("question -> answer"), trainset=questions(QUESTIONS))


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[bool, tuple[Loopback, CompiledProgram, Counter[str]]]]:
    """Compiled with and without arms of several prompts, and the requests of each compile."""
    with Loopback(two_models) as plain, Loopback(two_models) as combining:
        found = {}
        for compound, server in ((False, plain), (True, combining)):
            program = compiled(server, compound=compound)
            found[compound] = server, program, Counter(map(asked, server.bodies))
        yield found


def asked(body: dict[str, Any]) -> str:
    return str([body["model"], body["messages"], body.get("n"), body.get("seed")])


def test_a_cascade_is_chosen_where_the_large_model_is_dear(runs: Any) -> None:
    _, program, _ = runs[True]
    arm = program.solve("balanced")
    assert arm.then is not None and arm.then.arm is not None
    small, large = (stage.prompt for stage in arm.stages)
    models = [program.policy.programs.label(prompt) for prompt in (small, large)]
    assert "small" in models[0] and "large" in models[1]
    assert not any(a.compound for a in runs[False][1].policy.ready.arms)


def test_the_same_draws_choose_it_and_no_more_are_paid_for(runs: Any) -> None:
    """Only what measures the chosen arms differs, and it comes out of the same share of the budget."""
    (_, alone, plain), (_, both, combining) = runs[False], runs[True]
    assert alone.detailed_results.spent.completions <= BUDGET and both.detailed_results.spent.completions <= BUDGET
    search = [[r.completions for r in program.detailed_results.rounds[:-1]] for program in (alone, both)]
    assert search[0] == search[1] and sum(search[0]) > BUDGET / 4
    drawn = [sum(r.pulls for r in program.detailed_results.rounds[:-1]) for program in (alone, both)]
    assert (plain & combining).total() >= drawn[0] == drawn[1]


def test_calls_are_as_right_and_as_dear_as_was_said(runs: Any) -> None:
    server, program, _ = runs[True]
    row = program.detailed_results.policy[1]
    right, took, escalated = [], [], []
    with dspy.context(lm=server.lm("openai/small", seed=9)):
        for example in questions(40, start=500):
            before, requests = server.completions, len(server.bodies)
            prediction = program(**example.inputs(), preference="balanced")
            took.append(server.completions - before)
            escalated.append(any("large" in body["model"] for body in server.bodies[requests:]))
            right.append(prediction.answer == example.answer)
    assert np.mean(right) == pytest.approx(0.95, abs=0.1)
    assert np.mean(took) == pytest.approx(row.completions, rel=0.3)
    assert 0.35 < np.mean(escalated) < 0.75


def test_the_two_runs_agree_where_no_cascade_is_chosen(runs: Any) -> None:
    alone, both = runs[False][1], runs[True][1]
    single = [p.name for p in PREFERENCES if not both.solve(p.name).compound]
    assert single and all(both.solve(name) == alone.solve(name) for name in single)
