"""A run against a server where a third of all requests go wrong, and many runs against tight budgets."""

from __future__ import annotations

import random
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, Budget, CompiledProgram, Execution, MajorityVote, Preference
from tests.support.compiling import iapo
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import CAREFUL, INSTRUCTIONS, QUICK, adder, exact, questions, total

PRICE = 1e-3
CHAOS = {429: 0.10, 500: 0.05, "hang": 0.05, "truncated": 0.05, "fewer": 0.05, "garbage": 0.05}


def clear(body: dict[str, Any], i: int) -> str:
    """Arms far apart: votes of three lift the careful prompt from 0.7 to 0.8; the quick one is right half the time."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    system, correct = body["messages"][0]["content"], total(body)
    if CAREFUL in system:
        return "step " * 25 + "\n\n" + chat(answer=str(correct if rng.random() < 0.7 else correct + rng.randint(1, 9)))
    return chat(answer=str(correct if QUICK in system and correct % 2 == 0 else correct + 10))


def compile_clear(server: Loopback, **kwargs: Any) -> CompiledProgram:
    settings: dict[str, Any] = {
        "metric": exact,
        "strategy": MajorityVote("answer"),
        "preferences": [Preference("quality", cost=0.0), Preference("thrifty", cost=50.0)],
        "max_n": 3,
        "budget": Budget(450, usd=100.0),
        "candidates": INSTRUCTIONS,
        "progress": False,
        "stopping": None,  # a vote of two that ends after the first one is as good as no vote
    }
    lm = server.lm(
        seed=1, num_retries=8, timeout=0.5, max_tokens=60, input_cost_per_token=PRICE, output_cost_per_token=PRICE
    )
    with dspy.context(lm=lm):
        return iapo(**{**settings, **kwargs}).compile(dspy.Predict("question -> answer"), trainset=questions(40))


@pytest.mark.slow
def test_chaos_changes_what_a_run_takes_but_not_what_it_finds() -> None:
    with Loopback(clear) as server:
        clean = compile_clear(server)
    with Loopback(clear, faults=Faults(shares=CHAOS, retry_after="0.05", hang=5.0)) as server:
        program = compile_clear(server)
        results, spent = program.detailed_results, program.detailed_results.spent
        billed = (server.prompt_tokens + server.completion_tokens) * PRICE
        assert server.statuses[429] and server.statuses[500]  # it was chaos
        assert server.completions <= spent.completions <= 450
        assert billed <= spent.usd <= 100.0
        assert spent.requests >= server.requests > sum(r.pulls for r in results.rounds)  # retries are seen and counted
    assert results.complete
    assert program.policy.ready.arms == clean.policy.ready.arms
    quality, thrifty = program.solve("quality"), program.solve("thrifty")
    assert (results.labels[quality.prompt], quality.n) == (CAREFUL, 3)
    assert (results.labels[thrifty.prompt], thrifty.n) == (QUICK, 1)

    report = results.failures
    assert report.completions == spent.completions - 16  # those of the student, the unit of costs, are not scored
    assert 0 < report.total < 0.1 * report.completions
    assert all(0 <= share < 0.25 for share in report.share) and max(report.share) > 0
    assert sum(n for _, n in report.causes) == report.total
    assert any("AdapterParseError" in cause for cause, _ in report.causes)
    assert clean.detailed_results.failures.total == 0


@pytest.mark.slow
def test_no_budget_is_exceeded_in_repeated_runs_of_64_workers() -> None:
    caps = {"completions": 0.0, "dollars": 0.0}
    faults = Faults(shares={"fewer": 0.1, "garbage": 0.05})
    for seed in range(4):
        usd = (1e9, 30.0)[seed % 2]  # completions end one half of the runs, dollars the other
        with Loopback(adder, faults=faults, seed=seed) as server:
            server.keep_bodies = False
            lm = server.lm(
                seed=seed, num_retries=8, max_tokens=60, input_cost_per_token=PRICE, output_cost_per_token=PRICE
            )
            with dspy.context(lm=lm):
                optimizer = IAPO(
                    metric=exact,
                    strategy=MajorityVote("answer"),
                    max_n=16,
                    budget=Budget(1000, usd=usd),
                    candidates=INSTRUCTIONS,
                    num_threads=64,
                    seed=seed,
                    execution=Execution(progress=False),
                )
                program = optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(30))
            spent = program.detailed_results.spent
            billed = (server.prompt_tokens + server.completion_tokens) * PRICE
            assert server.completions <= spent.completions <= 1000
            assert billed <= spent.usd + 1e-9 and spent.usd <= usd
            assert server.max_in_flight <= 64
            caps["completions"] = max(caps["completions"], server.completions)
            if usd == 30.0:
                caps["dollars"] = max(caps["dollars"], billed)
                assert spent.usd > 15.0  # the cap was near
    print(f"4 runs: at most {caps['completions']:.0f} of 1000 completions, {caps['dollars']:.3f} of 30 dollars")
