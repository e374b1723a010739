"""Prices change: compiled programs are solved anew from what they observed, as a compile at the new prices would."""

import random
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import CompiledProgram, Cost, Preference
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import TwoSteps, outputs, questions, total

WORDY, BRIEF = "Work carefully.", "Answer quickly."
OLD, NEW = (1.0, 10.0), (8.0, 80.0)  # dollars per million tokens in and out
WORTH = [Preference.worth(f"{usd:g}", usd=usd) for usd in (3e-5, 2e-4, 1e-3, 1e-2)]


def world(body: dict[str, Any], i: int) -> str:
    """WORDY, or the large model, is right 19 times in 20, in 51 words; others are right 12 times in 20, in 11."""
    rng = body.setdefault("_rng", random.Random(body.get("seed", i)))
    if "idea" in outputs(body):
        return chat(idea="add them")
    correct, good = total(body), WORDY in body["messages"][0]["content"] or body["model"] == "large"
    working = "so " * 40 + "\n\n" if good else ""
    right = rng.random() < (0.95 if good else 0.6)
    return working + chat(answer=str(correct if right else correct + rng.randint(1, 9)))


# Without stopping, a call takes what its N says.
optimizer = optimizers(max_n=8, budget=300, candidates=[WORDY, BRIEF], stopping=None, track_stats=False)


def compiled(
    server: Loopback, *preferences: Preference, prices: Any = OLD, student: Any = None, **changes: Any
) -> CompiledProgram:
    cost = Cost(completion_tokens=1, usd_per_million=prices)
    with dspy.context(lm=changes.pop("lm", None) or server.lm(seed=5)):
        chooser = optimizer(*preferences or [Preference("quality")], **{"cost_unit": cost, **changes})
        return chooser.compile(student or dspy.Predict("question -> answer"), trainset=questions(30))


@pytest.mark.parametrize("algorithm", ["auto", pytest.param("psst", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_arms_are_those_of_a_compile_at_the_new_prices(algorithm: str) -> None:
    """With an LM of fixed seeds and a preference without prices, both runs observe the same."""
    with Loopback(world) as server:
        before = compiled(server, algorithm=algorithm)
        fresh = compiled(server, prices=NEW, algorithm=algorithm)
        requests = server.requests
        after = before.reprice(NEW)
        assert server.requests == requests
    arms = [[program.solve(p) for p in WORTH] for program in (before, after, fresh)]
    assert arms[1] == arms[2] != arms[0]
    assert len(set(arms[1])) >= 2
    # Eight times the prices are as good as an eighth of the money.
    poorer = [Preference.worth(p.name, usd=0.01 / p.rates["usd"] / 8) for p in WORTH if p.rates]
    assert arms[1] == [before.solve(p) for p in poorer]
    assert after.solve("quality") == before.solve("quality")
    assert after.policy.ready.cost == fresh.policy.ready.cost


@pytest.mark.parametrize("algorithm", ["auto", pytest.param("psst", marks=pytest.mark.slow)])
def test_compiled_preferences_results_and_caps_follow(algorithm: str, tmp_path: Path) -> None:
    preferences = [Preference("quality"), Preference.worth("careful", usd=3e-4), Preference("poor", max_usd=6e-4)]
    with Loopback(world, obeys=True) as server:
        program = compiled(server, *preferences, algorithm=algorithm, track_stats=True)
        dear = program.reprice((100.0, 400.0))
        results = program.detailed_results.reprice((100.0, 400.0))
        for found in (dear.detailed_results, results):
            assert [r.arm for r in found.policy] == list(dear.policy.ready.arms)
            np.testing.assert_array_equal(found.q, results.q)
            assert found.cost.prices is not None and found.cost.prices.to_dict() == {"": (100.0, 400.0)}
            np.testing.assert_array_equal(found.tokens, program.detailed_results.tokens)
            assert found.spent == program.detailed_results.spent  # what was paid was paid at the old prices
        assert dear.solve("careful") == Arm(1, 1) != program.solve("careful")
        assert dear.solve("quality") == program.solve("quality")
        assert not next(r for r in dear.detailed_results.policy if r.preference.name == "poor").keeps_caps
        assert dear.reprice(OLD).policy.ready.arms == program.policy.ready.arms
        # The program itself stays as it was, and a repriced one is saved and called like any other.
        assert program.policy.ready.cost.prices == Cost(usd_per_million=OLD).prices
        dear.save(str(tmp_path / "dear.json"))
        loaded = CompiledProgram(dspy.Predict("question -> answer"))
        loaded.load(str(tmp_path / "dear.json"))
        assert loaded.policy.ready.arms == dear.policy.ready.arms
        assert [loaded.solve(p) for p in WORTH] == [dear.solve(p) for p in WORTH]
        with dspy.context(lm=server.lm()):
            report = loaded(question="3 + 4", preference="careful").iapo
    assert report.usd == pytest.approx(report.prompt_tokens * 1e-4 + report.completion_tokens * 4e-4)


def test_a_cost_in_dollars_keeps_its_exchange_rate() -> None:
    """`Preference(cost=...)` of a run that counts dollars: a dollar stays worth what it was when it was compiled."""
    with Loopback(world) as server:
        program = compiled(
            server, Preference("thrifty", cost=0.3), cost_unit=Cost(usd=1, usd_per_million=OLD), track_stats=True
        )
    after = program.reprice(NEW)
    assert after.policy.ready.cost_scale == program.policy.ready.cost_scale
    np.testing.assert_allclose(after.detailed_results.costs, 8 * program.detailed_results.costs, rtol=1e-6)
    assert after.solve("thrifty") == program.solve(Preference(cost=8 * 0.3))


@pytest.mark.slow
def test_tokens_and_seconds_cost_what_they_did() -> None:
    with Loopback(world) as server:
        program = compiled(server, cost_unit=Cost(completion_tokens=1, prompt_tokens=0.5, usd=100, usd_per_million=OLD))
    after = program.reprice(OLD)
    for old, new in zip(program.policy.ready.evidence, after.policy.ready.evidence, strict=True):
        np.testing.assert_allclose(new.overhead, old.overhead, rtol=1e-6)
        np.testing.assert_allclose(new.cost, old.cost, rtol=1e-6)
        assert old.used is not None and new.used is not None
        np.testing.assert_allclose(new.used, old.used, rtol=1e-6)
        np.testing.assert_array_equal(new.label, old.label)


# -- several LMs


def asking(lm: dspy.LM) -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    return program


def test_each_prompt_is_priced_by_its_own_lm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    both = {"openai/small": (1.0, 2.0), "large": (1.0, 2.0)}  # with the provider, or without
    dear = {**both, "large": (10.0, 200.0)}
    careful = Preference.worth("careful", usd=3e-4)
    with Loopback(world) as server:
        candidates = [asking(server.lm("openai/small", seed=1)), asking(server.lm("openai/large", seed=1))]
        program = compiled(server, careful, prices=both, candidates=candidates)
    assert program.solve("careful").prompt == 1
    after = program.reprice(dear)
    assert after.solve("careful").prompt == 0
    used = [o.used for o in after.policy.ready.evidence if o.used is not None]
    prompt = np.concatenate([o.pulls.prompt for o in after.policy.ready.evidence])
    taken = np.concatenate(used)
    rate = np.array([[1.0, 2.0], [10.0, 200.0]])[prompt] / 1e6
    np.testing.assert_allclose(taken[:, 2], rate[:, 0] * taken[:, 1] + rate[:, 1] * taken[:, 0], rtol=1e-6)
    with pytest.raises(ConfigurationError, match=r"prompt 1, \['openai/large'\].*\['openai/small'\]"):
        program.reprice({"openai/small": (1.0, 2.0)})
    program.save(str(tmp_path / "program.json"))
    loaded = CompiledProgram(dspy.Predict("question -> answer"))
    loaded.load(str(tmp_path / "program.json"))
    assert loaded.reprice(dear).policy.ready.arms == after.policy.ready.arms


def test_the_students_own_lm_and_the_configured_one_are_known() -> None:
    with Loopback(world) as server:
        lm = server.lm("openai/small", seed=1)
        own = compiled(server, prices={"small": OLD}, student=asking(lm), budget=40, track_stats=True)
        assert own.reprice({"small": NEW}).policy.ready.cost.prices == Cost(usd_per_million={"small": NEW}).prices
        assert own.detailed_results.reprice({"openai/small": NEW}).cost.prices is not None
        plain = compiled(server, prices={"small": OLD}, lm=lm, budget=100, track_stats=True)
    with pytest.raises(ConfigurationError, match="configure the LM, or give one pair"):
        plain.reprice({"small": NEW})
    with dspy.context(lm=lm):
        after = plain.reprice({"small": NEW})
    assert after.solve(WORTH[2]) == plain.reprice(NEW).solve(WORTH[2])
    assert plain.detailed_results.reprice({"small": NEW}, model="openai/small").cost == after.policy.ready.cost


def test_a_prompt_of_two_lms_has_no_single_price() -> None:
    with Loopback(world) as server:
        student = TwoSteps()
        student.plan.set_lm(server.lm("openai/small", seed=1))
        student.ask.set_lm(server.lm("openai/large", seed=1))
        prices = {"small": OLD, "large": NEW}
        program = compiled(server, prices=prices, student=student, candidates=[{"ask": BRIEF}], budget=40)
    with pytest.raises(
        ConfigurationError, match=r"several LMs of different prices, \['openai/large', 'openai/small'\]"
    ):
        program.reprice({"small": OLD, "large": (3.0, 30.0)})
    assert program.reprice({"small": NEW, "large": NEW}).solve(WORTH[-1]).prompt == 0  # one price, so one sum will do


def test_a_bad_price_is_refused() -> None:
    with Loopback(world) as server:
        program = compiled(server, budget=20)
    for prices in (3.0, (1.0,), (1.0, -1.0), {"small": "cheap"}, None):
        with pytest.raises(ConfigurationError, match="usd_per_million"):
            program.reprice(prices)  # type: ignore[arg-type]
