"""Costs of a user's choice, from the request to the saved program, against a real server on loopback."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import IAPO, Budget, CompiledProgram, Cost, Preference
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.ledger import recording_of
from iapo_dspy.program.evidence.columns import unpacked
from iapo_dspy.program.policy import VERSION
from iapo_dspy.types import Observations
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.observing import observed
from tests.support.worlds import CAREFUL, QUICK, TwoSteps, adder, outputs, questions, student, total

LONG = "Read all of this first: " + "word " * 400  # a prompt of some 400 tokens that is answered in five


optimizer = optimizers(budget=200, stopping=None)  # so that a call is one request of all N


def totals(evidence: Sequence[Observations]) -> tuple[float, float]:
    """Raw cost of everything that was observed: overheads, and completions beside them."""
    return sum(float(o.overhead.sum()) for o in evidence), sum(float(o.cost.sum()) for o in evidence)


def taken(evidence: Sequence[Observations]) -> list[float]:
    """Output and prompt tokens of everything that was observed."""
    used = [o.used[:, :2].sum(axis=0) for o in evidence if o.used is not None]
    return [float(v) for v in np.sum(used, axis=0)]


def of_the_student(program: CompiledProgram) -> float:
    """Raw cost of the completions that measured the student: one on each of ten questions."""
    return 10 * 0.01 / program.policy.ready.cost_scale


BOTH = Cost(completion_tokens=1, prompt_tokens=1)


def test_prompt_tokens_are_paid_once_per_request_where_n_shares_them() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)), observed() as evidence:
        program = optimizer(cost_unit=BOTH).compile(student(), trainset=questions(10))
    once, each = totals(evidence)
    assert (each, once) == pytest.approx(taken(evidence))
    assert once + each + of_the_student(program) == pytest.approx(server.prompt_tokens + server.completion_tokens)


def test_prompt_tokens_are_paid_per_completion_where_the_provider_does_not_take_n(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.requests.litellm.supports_n", lambda *_: False)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)), observed() as evidence:
        program = optimizer(cost_unit=BOTH).compile(student(), trainset=questions(10))
        assert server.requests == server.completions
    once, each = totals(evidence)
    assert once == 0 and each == pytest.approx(sum(taken(evidence)))
    assert each + of_the_student(program) == pytest.approx(server.prompt_tokens + server.completion_tokens)


@pytest.mark.slow
def test_steps_that_rollouts_do_not_share_are_paid_per_completion() -> None:
    first = {"words": 0}

    def world(body: dict[str, Any], i: int) -> str:
        if "idea" in outputs(body):
            first["words"] += sum(len(str(m["content"]).split()) for m in body["messages"]) if i % 4 == 0 else 0
            return chat(idea=f"idea {i}")  # no two second steps are alike
        return adder(body, i)

    with Loopback(world) as server, dspy.context(lm=server.lm()), observed() as evidence:
        candidates = [{"ask": QUICK}, {"ask": CAREFUL}]
        optimizer(cost_unit=BOTH, candidates=candidates, budget=9, preferences=[Preference("all")]).compile(
            TwoSteps(), trainset=questions(1)
        )
    once, each = totals(evidence)
    plans = [b for b in server.bodies if "idea" in outputs(b)]
    prompt = sum(len(str(m["content"]).split()) for b in plans for m in b["messages"])
    assert sum(b["n"] for b in plans) >= 8
    assert once == pytest.approx(prompt)
    assert once + each == pytest.approx(server.prompt_tokens + server.completion_tokens)


@pytest.mark.slow
def test_the_prompts_fixed_part_flips_the_best_prompt() -> None:
    """Both are always right. LONG is 4 words of output and some 400 of input, SHORT is 30 of output."""

    def world(body: dict[str, Any], i: int) -> str:
        working = "" if "Read all" in body["messages"][0]["content"] else "step " * 30 + "\n\n"
        return working + chat(answer=str(total(body)))

    def best(cost: Cost | None) -> tuple[str, IAPO]:
        with Loopback(world) as server, dspy.context(lm=server.lm()):
            chooser = optimizer(
                cost_unit=cost, candidates=[LONG, "Think."], preferences=[Preference("thrifty", cost=1.0)]
            )
            program = chooser.compile(student(), trainset=questions(5))
        return program.detailed_results.policy[0].label, chooser

    assert best(None)[0].startswith("Read all") and best(Cost())[0].startswith("Read all")
    assert best(BOTH)[0] == "Think." and best(Cost(usd_per_million=(1, 4)))[0] == "Think."


def test_dollars_at_the_users_prices_are_counted_everywhere() -> None:
    cost = Cost(usd_per_million=(1000.0, 5000.0))
    lm: dict[str, Any] = {"seed": 1, "max_tokens": 100}
    with Loopback(adder) as server, dspy.context(lm=server.lm(**lm)), observed() as evidence:
        program = optimizer(cost_unit=cost, budget=Budget(200, usd=1000)).compile(student(), trainset=questions(10))
        billed = server.prompt_tokens * 1e-3 + server.completion_tokens * 5e-3
        results = program.detailed_results
        assert results.spent.usd == pytest.approx(billed)
        assert sum(totals(evidence)) + of_the_student(program) == pytest.approx(billed, rel=1e-6)
        assert results.cost.unit == "dollars" and "cost: dollars" in str(results)
        before = server.prompt_tokens, server.completion_tokens
        report = program(question="3 + 4", preference="quality").iapo
        call = (server.prompt_tokens - before[0]) * 1e-3 + (server.completion_tokens - before[1]) * 5e-3
    assert report.usd == pytest.approx(call) and report.cost == pytest.approx(call)
    assert report.cost_unit == "dollars" and report.seconds > 0
    # The average call for one completion costs a hundredth.
    costs = program.policy.ready.prompt_costs
    first = results.rounds[0]
    assert first.completions and results.cost_scale > 0
    fixed, each = np.array(costs["fixed"]), np.array(costs["per_completion"])
    assert ((fixed > 0) & (each > 0)).all()
    arm = results.policy[0].arm
    assert results.policy[0].cost == pytest.approx(fixed[arm.prompt] + arm.n * each[arm.prompt], rel=1e-6)
    assert results.policy[0].tokens == pytest.approx(arm.n * each[arm.prompt] / 5e-3, rel=1e-6)


@pytest.mark.slow
def test_a_dollar_budget_holds_at_the_users_prices() -> None:
    cost = Cost(completion_tokens=1, usd_per_million={"fake": (1000.0, 1000.0)})
    with Loopback(adder) as server, dspy.context(lm=server.lm(max_tokens=40)):
        program = optimizer(cost_unit=cost, budget=Budget(800, usd=20.0)).compile(student(), trainset=questions(20))
        billed = (server.prompt_tokens + server.completion_tokens) * 1e-3
    assert billed <= 20.0 and program.detailed_results.spent.usd == pytest.approx(billed)


def test_an_unknown_price_is_refused_before_the_first_call() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm("hosted_vllm/nobody-knows", max_tokens=40)):
        with pytest.raises(ConfigurationError, match="usd_per_million"):
            optimizer(cost_unit=Cost(usd=1)).compile(student(), trainset=questions(5))
        with pytest.raises(ConfigurationError, match="usd_per_million"):
            optimizer(budget=Budget(200, usd=1)).compile(student(), trainset=questions(5))
        assert server.requests == 0
    with pytest.raises(ConfigurationError, match="give a Cost"):
        optimizer(cost_unit=0.5)


@pytest.mark.slow
def test_latency_is_paid_once_per_query_however_many_completions() -> None:
    def world(body: dict[str, Any], i: int) -> str:
        if CAREFUL in body["messages"][0]["content"] and not body.get("_slept"):
            body["_slept"] = True
            time.sleep(0.4)
        return adder(body, i)

    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        # The first requests of a process set LiteLLM and its connections up, which takes its time.
        optimizer(budget=12).compile(student(), trainset=questions(1))
        chooser = optimizer(
            cost_unit=Cost(seconds=1),
            candidates=[CAREFUL, QUICK],
            preferences=[Preference("hasty", cost=100.0)],
            budget=60,
            num_threads=2,
        )
        with observed() as evidence:
            program = chooser.compile(student(), trainset=questions(6))
    once, each = totals(evidence)
    assert each == 0 and once > 0.4
    fixed = program.policy.ready.prompt_costs["fixed"]
    assert fixed[0] is not None and fixed[1] is not None and fixed[0] >= 0.4 and fixed[0] > fixed[1]
    assert program.detailed_results.policy[0].label == QUICK
    np.testing.assert_allclose(program.detailed_results.costs[0], fixed[0], rtol=1e-6)  # the same at every N


@pytest.fixture(scope="module")
def compiled() -> CompiledProgram:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        return optimizer(cost_unit=Cost(usd_per_million={"openai/fake": (2.0, 8.0)})).compile(
            student(), trainset=questions(10)
        )


def test_saved_programs_keep_their_cost_and_solve_the_same(compiled: CompiledProgram, tmp_path: Path) -> None:
    compiled.save(str(tmp_path / "program.json"))
    state = json.loads((tmp_path / "program.json").read_text())["policy"]
    assert state["cost"] == {"usd": 1.0, "usd_per_million": {"openai/fake": [2.0, 8.0]}} and state["version"] == VERSION
    assert state["cost_scale"] > 0 and len(state["prompt_costs"]["fixed"]) == 3
    loaded = CompiledProgram(student())
    loaded.load(str(tmp_path / "program.json"))
    assert loaded.policy.ready.cost == compiled.policy.ready.cost
    assert loaded.policy.ready.prompt_costs == compiled.policy.ready.prompt_costs
    for weight in (0.0, 0.3, 3.0, 30.0, 300.0):
        assert loaded.solve(Preference(cost=weight)) == compiled.solve(Preference(cost=weight))
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        report = loaded(question="3 + 4").iapo
        assert report.cost == pytest.approx(server.prompt_tokens * 2e-6 + server.completion_tokens * 8e-6)


def test_a_state_of_version_1_loads_and_counts_output_tokens(compiled: CompiledProgram) -> None:
    state = compiled.dump_state()
    old = {k: v for k, v in state["policy"].items() if k not in ("cost", "prompt_costs")}
    old["version"] = 1
    old["evidence"] = [{k: v for k, v in o.items() if k != "overhead"} for o in unpacked(old["evidence"])]
    loaded = CompiledProgram(student())
    loaded.load_state({"policy": old})
    assert loaded.policy.ready.cost == Cost()
    assert loaded.policy.ready.prompt_costs["fixed"] == [0.0, 0.0, 0.0]
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        report = loaded(question="3 + 4").iapo
        assert report.cost == server.completion_tokens == report.completion_tokens
        assert report.cost_unit == "output tokens" and report.usd is None


def test_a_ledger_serves_every_cost_and_becomes_a_recording_in_that_of_the_last_run(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        first = optimizer(cost_unit=BOTH, log_dir=tmp_path).compile(student(), trainset=questions(1))
        requests = server.requests
        again = optimizer(cost_unit=BOTH, log_dir=tmp_path).compile(student(), trainset=questions(1))
        assert server.requests == requests and again.policy.ready.arms == first.policy.ready.arms
        assert totals(again.policy.ready.evidence) == totals(first.policy.ready.evidence)
    law = recording_of(tmp_path, cost_scale=1.0)
    costs = first.policy.ready.prompt_costs
    np.testing.assert_allclose(law.overhead, np.array(costs["fixed"]), rtol=1e-6)
    np.testing.assert_allclose(law.cost, np.array(costs["per_completion"]), rtol=1e-6)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        known = first.detailed_results.spent.completions // 2
        tokens = optimizer(log_dir=tmp_path, budget=known).compile(student(), trainset=questions(1))
        assert not server.requests
    assert recording_of(tmp_path, cost_scale=1.0).cost == pytest.approx(
        tokens.policy.ready.prompt_costs["per_completion"]
    )
