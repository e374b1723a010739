"""LMs as part of the prompts: a small and a large one behind a real server, and programs that find theirs again."""

import asyncio
import json
import logging
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import Budget, CompiledProgram, Cost, Decoding, Preference
from iapo_dspy.errors import ConfigurationError, LedgerMismatch
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import TwoSteps, outputs, questions, student, total

SMALL, LARGE = "openai/small", "openai/large"
CENTS = {SMALL: (1.0, 1.0), LARGE: (20.0, 20.0)}
WORK, GUESS = "Work it out.", "Guess."


def two_models(body: dict[str, Any], i: int) -> str:
    """The large model is right on every question, the small one 6 times in 10, wrong in many ways; a guess never is."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    if "idea" in outputs(body):
        return chat(idea="carry")
    correct = total(body)
    right = WORK in body["messages"][0]["content"] and (body["model"] == "large" or rng.random() < 0.6)
    return chat(answer=str(correct if right else correct + rng.randint(1, 50)))


optimizer = optimizers(
    cost_unit=Cost(usd_per_million=CENTS),
    candidates=[GUESS, WORK],
    max_n=8,
    budget=600,
    stopping=None,  # so that a call is one request of all N
)


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with Loopback(two_models) as running:
        yield running


@pytest.fixture(scope="module")
def program(server: Loopback) -> CompiledProgram:
    lms = [server.lm(SMALL, seed=1), server.lm(LARGE, seed=1)]
    with dspy.context(lm=None):
        return optimizer(lms=lms).compile(student(), trainset=questions(40))


def asked(server: Loopback, since: int = -1) -> str:
    return str(server.bodies[since]["model"])


# -- the policy


def test_the_policy_uses_each_model_where_it_pays(server: Loopback, program: CompiledProgram) -> None:
    rows = {r.preference.name: r for r in program.detailed_results.policy}
    # A call of the large model is always right and costs some .019 at cost weight 1; one of the small model is right
    # 6 times in 10 for .001, and a vote of 8 of them 49 times in 50 for .002, for its prompt is paid once.
    assert rows["quality"].model == LARGE
    assert rows["thrifty"].model == SMALL and rows["thrifty"].arm.n >= 4
    least = program.solve(Preference(cost=5000.0))
    assert program.policy.ready.prompts[least.prompt].model == SMALL and least.n == 1
    assert rows["quality"].label == f"{WORK} [{LARGE}]"
    assert program.detailed_results.models == (SMALL, LARGE) * 2
    assert rows["quality"].cost > 5 * rows["thrifty"].cost
    assert program.detailed_results.cost.unit == "dollars"


def test_a_call_asks_the_model_of_its_arm_and_says_which(server: Loopback, program: CompiledProgram) -> None:
    with dspy.context(lm=server.lm("openai/bystander")):
        for preference, model in (("quality", LARGE), ("thrifty", SMALL)):
            report = program(question="20 + 41", preference=preference).iapo
            assert report.model == model == f"openai/{asked(server)}"
            assert json.loads(report.model_dump_json())["model"] == model
    prompt, completion = CENTS[SMALL]
    assert report.usd == pytest.approx((report.prompt_tokens * prompt + report.completion_tokens * completion) / 1e6)


async def test_async_calls_and_threads_reach_their_models(server: Loopback, program: CompiledProgram) -> None:
    before = len(server.bodies)
    calls = [program.acall(question=f"{i} + 41", preference=("quality", "thrifty")[i % 2]) for i in range(8)]
    found = [p.iapo.model for p in await asyncio.gather(*calls)]
    assert found == [LARGE, SMALL] * 4
    assert sorted(b["model"] for b in server.bodies[before:]) == ["large"] * 4 + ["small"] * 4


# -- saving and loading


@pytest.fixture
def saved(program: CompiledProgram, tmp_path: Path) -> Path:
    program.save(tmp_path / "p.json")
    return tmp_path / "p.json"


def test_a_saved_program_holds_model_strings_only(server: Loopback, program: CompiledProgram, saved: Path) -> None:
    text = saved.read_text()
    assert server.base not in text and "sk-loopback" not in text
    prompts = json.loads(text)["policy"]["prompts"]
    assert [p["lms"] for p in prompts] == [{"self": SMALL}, {"self": LARGE}] * 2
    assert program.models == (SMALL, LARGE)


def test_loading_binds_by_model_string_in_any_order(
    server: Loopback, program: CompiledProgram, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = CompiledProgram(student(), lms=[server.lm(LARGE), server.lm("openai/other"), server.lm(SMALL)])
    loaded.load(saved)
    assert not caplog.records
    odd = Preference(cost=3.0)
    assert loaded.solve(odd) == program.solve(odd)
    assert loaded.policy.programs.label(loaded.solve("quality").prompt) == f"{WORK} [{LARGE}]"
    with dspy.context(lm=None):
        for preference in ("quality", "thrifty", odd):
            assert loaded(question="1 + 2", preference=preference).iapo.model == (
                LARGE if preference == "quality" else SMALL
            )
        for twin in (loaded.deepcopy(), loaded.reset_copy(), loaded.with_preference("thrifty")):
            assert twin(question="1 + 2", preference="quality").iapo.model == LARGE
            assert twin(question="1 + 2", preference="thrifty").iapo.model == SMALL
    loaded.save(saved)
    assert json.loads(saved.read_text())["policy"]["prompts"][1]["lms"] == {"self": LARGE}


def test_an_arm_whose_model_is_missing_runs_on_no_other(
    server: Loopback, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = CompiledProgram(student(), lms=[server.lm(SMALL)])
    with dspy.context(lm=server.lm("openai/bystander")), caplog.at_level(logging.WARNING):
        loaded.load(saved)
        assert "'quality'" in caplog.text and LARGE in caplog.text and "thrifty" not in caplog.text
        assert loaded(question="1 + 2", preference="thrifty").iapo.model == SMALL
        before = server.requests
        with pytest.raises(ConfigurationError, match=r"openai/large.*openai/bystander.*set_lm"):
            loaded(question="1 + 2", preference="quality")
        with pytest.raises(ConfigurationError, match="openai/large"):
            asyncio.run(loaded.acall(question="1 + 2", preference="quality"))
        assert server.requests == before
    with dspy.context(lm=server.lm(LARGE)):  # configured later
        assert loaded(question="1 + 2", preference="quality").iapo.model == LARGE
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match="none is set"):
        loaded(question="1 + 2", preference="quality")


def test_the_students_lm_serves_arms_of_its_model_and_no_others(server: Loopback, saved: Path) -> None:
    bound = student()
    bound.set_lm(server.lm(SMALL))
    loaded = CompiledProgram(bound)
    with dspy.context(lm=None):
        loaded.load(saved)
        assert loaded(question="1 + 2", preference="thrifty").iapo.model == SMALL
        with pytest.raises(ConfigurationError, match="openai/large"):
            loaded(question="1 + 2", preference="quality")


@pytest.mark.slow
def test_set_lm_runs_every_arm_on_one_lm(server: Loopback, program: CompiledProgram, saved: Path) -> None:
    loaded = CompiledProgram(student())
    loaded.load(saved)
    for one in (program.deepcopy(), loaded):
        one.set_lm(server.lm("openai/chosen"))
        idle = next(p for p in range(4) if p not in one.policy.programs.in_use)  # no compiled preference uses it
        assert one.policy.programs.runnable(idle).lm.model == "openai/chosen"
        assert one(question="1 + 2", preference="quality").iapo.model == "openai/chosen"
    one = program.deepcopy()
    one.set_lm(server.lm("openai/chosen"))
    one.set_lm(None)  # back to what was measured
    assert one(question="1 + 2", preference="quality").iapo.model == LARGE


class Outer(dspy.Module):
    def __init__(self, inner: dspy.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> dspy.Prediction:
        return self.inner(**inputs)


@pytest.mark.slow
def test_nested_programs_find_their_models(server: Loopback, program: CompiledProgram, tmp_path: Path) -> None:
    Outer(program.deepcopy()).save(tmp_path / "outer.json")
    lms = [server.lm(SMALL), server.lm(LARGE)]
    fresh = Outer(CompiledProgram(student(), lms=lms))
    fresh.load(tmp_path / "outer.json")
    with dspy.context(lm=server.lm("openai/bystander")):
        for outer in (fresh, fresh.deepcopy(), fresh.reset_copy()):
            assert outer(question="1 + 2", preference="quality").iapo.model == LARGE
            assert outer(question="1 + 2", preference="thrifty").iapo.model == SMALL
        fresh.set_lm(server.lm("openai/chosen"))  # DSPy's own, which knows nothing of the arms that are not in use
        idle = next(p for p in range(4) if p not in fresh.inner.policy.programs.in_use)
        assert fresh.inner.policy.programs.runnable(idle).lm.model == "openai/chosen"
        assert fresh(question="1 + 2", preference="quality").iapo.model == "openai/chosen"
        lost = Outer(CompiledProgram(student()))
        lost.load(tmp_path / "outer.json")
        with pytest.raises(ConfigurationError, match="openai/"):
            lost(question="1 + 2")


@pytest.mark.slow
def test_two_lms_of_one_model_string_are_told_apart_by_their_order(server: Loopback, tmp_path: Path) -> None:
    cool, warm = server.lm(SMALL, temperature=0.5), server.lm(SMALL, temperature=1.5)
    compiled = optimizer(lms=[cool, warm], budget=200).compile(student(), trainset=questions(10))
    assert compiled.detailed_results.labels[2:] == (f"{WORK} [{SMALL}]", f"{WORK} [{SMALL} (2)]")
    assert compiled.models == (SMALL, SMALL)
    compiled.save(tmp_path / "p.json")
    loaded = CompiledProgram(student(), lms=[server.lm(SMALL, temperature=0.7), server.lm(SMALL, temperature=1.7)])
    loaded.load(tmp_path / "p.json")
    for prompt, temperature in ((2, 0.7), (3, 1.7)):
        assert loaded.policy.programs.runnable(prompt).lm.kwargs["temperature"] == temperature
    short = CompiledProgram(student(), lms=[server.lm(SMALL)])
    short.load(tmp_path / "p.json")
    with dspy.context(lm=server.lm(SMALL)), pytest.raises(ConfigurationError, match=r"small \(2\).*order"):
        short.policy.programs.runnable(3)


# -- programs of several predictors


@pytest.mark.slow
def test_predictors_may_have_different_models(server: Loopback, tmp_path: Path) -> None:
    small, large = server.lm(SMALL, seed=1), server.lm(LARGE, seed=1)
    lms = [{"plan": small, "ask": small}, {"plan": small, "ask": large}, {"ask": large}]
    compiler = optimizer(lms=lms, candidates=[{"ask": WORK}], budget=120, preferences=[Preference("quality")])
    with dspy.context(lm=server.lm(LARGE, seed=1)):
        compiled = compiler.compile(TwoSteps(), trainset=questions(10))
        rows = compiled.detailed_results
        assert rows.models == (SMALL, (SMALL, LARGE), LARGE)
        assert f"[plan: {SMALL}, ask: {LARGE}]" in rows.labels[1]
        assert compiled.policy.programs.runnable(2).plan.lm is None  # left out: the configured one
    compiled.save(tmp_path / "p.json")
    for given in ([small, large], lms):
        loaded = CompiledProgram(TwoSteps(), lms=given)
        loaded.load(tmp_path / "p.json")
        with dspy.context(lm=None):
            mixed = loaded.policy.programs.runnable(1)
            assert (mixed.plan.lm.model, mixed.ask.lm.model) == (SMALL, LARGE)
            assert loaded.policy.programs.runnable(0)(question="1 + 2").answer and asked(server) == "small"
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match=r"has the models|no LM"):
        optimizer(lms=lms, candidates=[{"ask": WORK}]).compile(TwoSteps(), trainset=questions(3))


# -- decodings


def test_decodings_of_one_model_only(server: Loopback) -> None:
    lms = [server.lm(SMALL), server.lm(LARGE)]
    decoding = {LARGE: [Decoding(temperature=0.4), Decoding(reasoning_effort="low")]}
    compiler = optimizer(lms=lms, decoding=decoding, candidates=[WORK], budget=90, max_n=2)
    before = len(server.bodies)
    labels = compiler.compile(student(), trainset=questions(5)).detailed_results.labels
    assert labels == (
        f"{WORK} [{SMALL}]",
        f"{WORK} [{LARGE}, temperature=0.4]",
        f"{WORK} [{LARGE}, reasoning_effort=low]",
    )
    bodies = server.bodies[before:]
    assert {b["temperature"] for b in bodies if b["model"] == "small"} == {1.0}
    assert {(b["temperature"], b.get("reasoning_effort")) for b in bodies if b["model"] == "large"} == {
        (0.4, None),
        (1.0, "low"),
    }


# -- what is refused before any call


def refused(**settings: Any) -> str:
    with Loopback(two_models) as server, dspy.context(lm=server.lm()):
        lms = settings.pop("lms", None)
        made = lms(server) if callable(lms) else lms
        with pytest.raises(ConfigurationError) as caught:
            optimizer(lms=made, **settings).compile(student(), trainset=questions(5))
        assert server.requests == 0
        return str(caught.value)


@pytest.mark.parametrize(
    ("lms", "message"),
    [
        (SMALL, "give a list"),
        ([], "at least one"),
        ([SMALL], r"lms\[0\] is 'openai/small'; give a dspy.LM"),
        (lambda s: s.lm(SMALL), "give a list"),
        (lambda s: [s.lm(SMALL), s.lm(LARGE), s.lm(SMALL)], r"lms\[2\] is the same as lms\[0\]"),
        (lambda s: [{"ask": s.lm(SMALL)}], r"lms\[0\] names the predictors \['ask'\]; the student has \['self'\]"),
        (lambda s: [{"self": "gpt"}], r"names of the student's predictors to dspy.LM"),
        (lambda s: [{}], "names of the student's predictors"),
    ],
)
def test_lms_that_cannot_be_used(lms: Any, message: str) -> None:
    said = refused(lms=lms)
    assert re.search(message, said) and "sk-loopback" not in said


def test_each_lm_must_have_what_the_run_needs() -> None:
    def lms(server: Loopback, **settings: Any) -> list[Any]:
        return [server.lm(SMALL, max_tokens=50), server.lm(LARGE, **settings)]

    assert "openai/large" in refused(lms=lambda s: lms(s), budget=Budget(600, usd=1.0))
    assert "temperature 0" in refused(lms=lambda s: lms(s, temperature=0.0))
    assert "'openai/large': (0.15, 0.60)" in refused(lms=lms, cost_unit=Cost(usd_per_million={SMALL: (1, 1)}))
    said = refused(lms=lms, cost_unit=None)
    assert "openai/large" in said and "Cost(completion_tokens=1)" in said and "usd_per_million" in said


def test_a_candidate_with_an_lm_of_its_own_is_refused() -> None:
    mine = student()
    mine.set_lm(dspy.LM("openai/mine"))
    said = refused(lms=lambda s: [s.lm(SMALL), s.lm(LARGE)], candidates=[mine])
    assert "openai/mine" in said and "set_lm(None)" in said


def test_the_students_own_lm_gives_way(server: Loopback) -> None:
    bound = student()
    bound.set_lm(server.lm("openai/bystander"))
    before = len(server.bodies)
    lms = [server.lm(SMALL), server.lm(LARGE)]
    compiled = optimizer(lms=lms, budget=60).compile(bound, trainset=questions(5))
    assert {b["model"] for b in server.bodies[before:]} == {"small", "large"}
    assert bound.lm.model == "openai/bystander"
    assert compiled(question="1 + 2").iapo.model in (SMALL, LARGE)


def test_what_a_model_does_not_take_is_refused() -> None:
    effort = Decoding(reasoning_effort="high")
    said = refused(lms=lambda s: [s.lm(SMALL), s.lm("openai/gpt-4o-mini")], decoding=[effort], cost_unit=Cost())
    assert "openai/gpt-4o-mini" in said and "reasoning_effort" in said and "decoding={" in said
    said = refused(lms=lambda s: [s.lm(SMALL), s.lm(LARGE)], decoding={"openai/typo": effort})
    assert "openai/typo" in said and SMALL in said
    assert "lms= is not given" in refused(decoding={SMALL: effort})
    mixed = refused(lms=lambda s: [{"self": s.lm(SMALL), "x": s.lm(LARGE)}], decoding={SMALL: effort})
    assert "several models" in mixed


# -- resuming and quotes


@pytest.mark.slow
def test_a_run_goes_on_with_lms_that_it_knows_and_not_with_others(server: Loopback, tmp_path: Path) -> None:
    small, large = server.lm(SMALL, seed=1), server.lm(LARGE, seed=1)
    settings = {"budget": 100, "log_dir": tmp_path}
    first = optimizer(lms=[small, large], **settings).compile(student(), trainset=questions(10))
    before = server.requests
    again = optimizer(lms=[small, large], **settings).compile(student(), trainset=questions(10))
    assert server.requests == before and again.policy.ready.arms == first.policy.ready.arms
    settings["budget"] = 50
    turned = optimizer(lms=[large, small], **settings).compile(student(), trainset=questions(10))
    assert server.requests == before, "their order is no part of what they are"
    with pytest.raises(LedgerMismatch, match="models"):
        other = optimizer(lms=[server.lm("openai/other")], cost_unit=Cost(), **settings)
        other.compile(student(), trainset=questions(10))
    assert turned.detailed_results.spent.completions > 50


def test_a_quote_knows_each_models_price(server: Loopback) -> None:
    lms = [server.lm(SMALL, max_tokens=40, seed=1), server.lm(LARGE, max_tokens=20, seed=1)]
    compiler = optimizer(lms=lms, budget=200)
    before = server.requests
    quote = compiler.quote(student(), trainset=questions(20), output_tokens=8)
    assert server.requests == before
    spent = compiler.compile(student(), trainset=questions(20)).detailed_results.spent
    assert quote.prompts == 4 and quote.usd is not None and quote.expected is not None
    assert spent.usd <= quote.usd and spent.requests <= (quote.requests or 0)
    assert quote.expected.usd == pytest.approx(spent.usd, rel=0.5)
    # At most: every request is the large model's, its completions included.
    price = CENTS[LARGE][0] / 1e6
    longest = (quote.prompt_tokens or 0) / (quote.requests or 1)
    assert quote.usd == pytest.approx(((quote.requests or 0) * longest + 200 * 20) * price)


def test_a_quote_bounds_models_that_are_dear_in_different_ways() -> None:
    """One has dear prompts, the other dear completions: the worst run asks one and draws from the other."""
    lms = [dspy.LM(SMALL, max_tokens=1000, api_key="k"), dspy.LM(LARGE, max_tokens=1000, api_key="k")]
    prices = Cost(usd_per_million={SMALL: (1000.0, 100.0), LARGE: (0.0, 101.0)})
    compiler = optimizer(lms=lms, cost_unit=prices, budget=400, candidates=[WORK])
    quote = compiler.quote(student(), trainset=questions(20))
    requests, total = quote.requests or 0, 400
    assert requests < total
    longest = (quote.prompt_tokens or 0) / requests
    worst = requests * (longest * 1000 + 1000 * 100) + (total - requests) * 1000 * 101
    assert quote.usd == pytest.approx(worst / 1e6)
    alone = [requests * longest * p + total * 1000 * c for p, c in ((1000, 100), (0, 101))]
    assert quote.usd is not None and quote.usd > max(alone) / 1e6


def test_programs_of_earlier_versions_load_and_keep_to_their_models(
    server: Loopback, program: CompiledProgram, saved: Path
) -> None:
    """Version 3 had LMs of candidates only, by model string, and said nothing of models in words."""
    state = json.loads(saved.read_text())
    state["policy"]["version"] = 3
    for prompt in state["policy"]["prompts"]:
        del prompt["model"]
    saved.write_text(json.dumps(state))
    loaded = CompiledProgram(student(), lms=[server.lm(SMALL)])
    loaded.load(saved)
    with dspy.context(lm=None):
        assert loaded(question="1 + 2", preference="thrifty").iapo.model == SMALL
        with pytest.raises(ConfigurationError, match="openai/large"):
            loaded(question="1 + 2", preference="quality")
