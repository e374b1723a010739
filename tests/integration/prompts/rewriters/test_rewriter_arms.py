"""Rewriters as part of the prompts, over the real path: a scripted LM rewrites queries, another one answers them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

import iapo_dspy
from iapo_dspy import BatchAPI, Budget, CompiledProgram, Cost, Preference, Rewriter
from iapo_dspy.errors import ConfigurationError, LMRefused
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import RewriteRecord
from iapo_dspy.types import Arm, Escalation, Share, Stop
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback, chat
from tests.support.pipelines import Pipeline
from tests.support.worlds import TwoSteps, outputs, questions, student, total

PLAIN, CLEAR = "Add.", "Add the numbers."


def sums(body: dict[str, Any], i: int) -> str:
    """Answer a query in clear words rightly 19 times in 20, and others once in four."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    correct, asked = total(body), body["messages"][-1]["content"]
    if "idea" in outputs(body):
        return chat(idea="carry")
    right = rng.random() < (0.95 if "Please compute" in asked else 0.25)
    return chat(answer=str(correct if right else correct + rng.randint(1, 9)))


def clearly(body: dict[str, Any], i: int) -> str:
    """Rewrite a sum in words that help."""
    a, b = re.findall(r"(\d+) \+ (\d+)", body["messages"][-1]["content"])[-1]
    return f"  Please compute {a} + {b} with care.\n"


def longer(body: dict[str, Any], i: int) -> str:
    """Rewrite a sum in many words that do not help."""
    a, b = re.findall(r"(\d+) \+ (\d+)", body["messages"][-1]["content"])[-1]
    return f"{'um ' * 40}{a} + {b}"


optimizer = optimizers(candidates=[PLAIN], budget=240, stopping=None, cost_unit=Cost(completion_tokens=1))


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with Loopback(sums) as running:
        yield running


@pytest.fixture
def helping() -> Iterator[Loopback]:
    with Loopback(clearly) as running:
        yield running


@pytest.fixture
def useless() -> Iterator[Loopback]:
    with Loopback(longer) as running:
        yield running


@pytest.fixture(autouse=True)
def configured(server: Loopback) -> Iterator[None]:
    with dspy.context(lm=server.lm(seed=1), adapter=dspy.ChatAdapter()):
        yield


def rewriter(at: Loopback, **settings: Any) -> Rewriter:
    return Rewriter(at.lm("openai/rewriter", seed=2), **settings)


# -- the choice


def test_a_rewriter_that_helps_is_chosen_and_asked_once_for_each_query(helping: Loopback) -> None:
    made = optimizer(rewriters=[rewriter(helping, name="clear")])
    program = made.compile(student(), trainset=questions(30))
    results = program.detailed_results
    assert results.labels == (PLAIN, f"{PLAIN} [rewriter: clear]")
    assert {row.label for row in results.policy} == {f"{PLAIN} [rewriter: clear]"}
    asked = Counter(body["messages"][0]["content"] for body in helping.bodies)
    assert set(asked.values()) == {1} and len(asked) == 30
    spent = results.spent
    assert spent.completions == 240  # rewrites are none
    assert spent.rewriter_requests == 30
    assert spent.rewriter_tokens == helping.prompt_tokens + helping.completion_tokens > 0
    assert "rewriter: clear" in str(program.explain()) and "rewriter: clear" in str(results)


def test_identity_is_chosen_where_a_rewriter_does_not_help_because_it_costs(useless: Loopback) -> None:
    made = optimizer(Preference("some", cost=1.0), rewriters=[rewriter(useless)], budget=400)
    program = made.compile(student(), trainset=questions(30))
    results = program.detailed_results
    assert [row.label for row in results.policy] == [PLAIN]
    plain, costly = (program.policy.ready.outcome(program.policy.strategy).estimates.cost[p, 0] for p in (0, 1))
    written = 42 + 1  # words of a rewrite: "um" 40 times, two numbers and a plus
    assert costly - plain == pytest.approx(written, rel=0.05)


def test_the_price_of_a_rewrite_is_paid_once_whatever_the_number_of_completions(useless: Loopback) -> None:
    program = optimizer(rewriters=[rewriter(useless)], budget=400).compile(student(), trainset=questions(30))
    cost = program.policy.ready.outcome(program.policy.strategy).estimates.cost
    assert cost[1] - cost[0] == pytest.approx([43] * 4, rel=0.05)


def test_every_candidate_is_tried_with_identity_and_with_every_rewriter(helping: Loopback) -> None:
    arms = [rewriter(helping), rewriter(helping, template="Say it better: {}"), rewriter(helping, name="third")]
    made = optimizer(candidates=[PLAIN, CLEAR], rewriters=arms)
    quote = made.quote(student(), trainset=questions(10))
    assert quote.prompts == 8 and helping.requests == 0
    labels = made.compile(student(), trainset=questions(10)).detailed_results.labels
    rest = ("", " [rewriter: own]", " [rewriter: own (2)]", " [rewriter: third]")
    assert labels == tuple(text + more for text in (PLAIN, CLEAR) for more in rest)


def test_combinations_of_instructions_are_tried_with_rewriters_too(helping: Loopback) -> None:
    made = optimizer(candidates={"self": [PLAIN, CLEAR, "Go."]}, rewriters=[rewriter(helping)])
    assert made.quote(student(), trainset=questions(10)).prompts == 6


def test_a_program_of_several_steps_gets_the_rewritten_query(helping: Loopback) -> None:
    program = optimizer(rewriters=[rewriter(helping)], candidates=[TwoSteps()]).compile(
        TwoSteps(), trainset=questions(20)
    )
    assert all("rewriter: own" in row.label for row in program.detailed_results.policy)
    assert program.detailed_results.spent.rewriter_requests == 20
    before = helping.requests
    program(question="20 + 41")
    assert helping.requests == before + 1


# -- failures and budgets


def test_a_rewriter_that_fails_leaves_queries_as_they_are_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(lambda body, i: "  \n" if i % 2 else clearly(body, i)) as odd:
        program = optimizer(rewriters=[rewriter(odd)]).compile(student(), trainset=questions(20))
        assert odd.requests == 20
    rewriting = program.detailed_results.spent.rewriter_requests
    assert rewriting == 20 and program.detailed_results.failures.share[1] == 0
    assert caplog.text.count("'own' (openai/rewriter) failed: the answer holds no text") == 1
    assert "failed on 10 of 20 queries" in caplog.text


def test_a_request_that_fails_leaves_its_query_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def refuses_some(body: dict[str, Any], i: int) -> str:
        return clearly(body, i) if total(body) % 2 else "cut " * 50  # cut off at max_tokens

    with Loopback(refuses_some, obeys=True) as other:
        lm = other.lm("openai/rewriter", max_tokens=20)
        program = optimizer(rewriters=[Rewriter(lm)]).compile(student(), trainset=questions(20))
    assert program.detailed_results.spent.completions == 240
    assert "failed on 10 of 20 queries" in caplog.text and "max_tokens" in caplog.text


def test_a_rewriter_that_is_down_ends_the_run_with_what_is_known(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(clearly, faults=Faults(shares={503: 1.0})) as broken:
        made = optimizer(rewriters=[rewriter(broken, name="down")], budget=120)
        program = made.compile(student(), trainset=questions(10))
    results = program.detailed_results
    assert [row.label for row in results.policy] == [PLAIN] * 2
    assert results.spent.rewriter_tokens == 0 and not results.complete
    assert "openai/rewriter has not answered once" in caplog.text


def test_a_wrong_key_of_the_rewriter_is_told_at_once() -> None:
    with Loopback(clearly, api_key="another") as closed, pytest.raises(LMRefused, match="call of the rewriter"):
        optimizer(rewriters=[rewriter(closed)]).compile(student(), trainset=questions(10))


@pytest.mark.parametrize("limit", ["tokens", "usd"])
def test_budgets_hold_for_rewrites_too(server: Loopback, useless: Loopback, limit: str) -> None:
    prices = {"openai/fake": (10.0, 10.0), "openai/rewriter": (10.0, 10.0)}
    cost = Cost(completion_tokens=1, usd_per_million=prices)
    most = 9_000
    budget = Budget(tokens=most) if limit == "tokens" else Budget(usd=most * 1e-5)
    with dspy.context(lm=server.lm(max_tokens=20)):
        before = server.prompt_tokens + server.completion_tokens
        lm = useless.lm("openai/rewriter", max_tokens=60)
        program = optimizer(rewriters=[Rewriter(lm)], budget=budget, cost_unit=cost).compile(
            student(), trainset=questions(20)
        )
    spent = program.detailed_results.spent
    took = server.prompt_tokens + server.completion_tokens - before
    rewriting = useless.prompt_tokens + useless.completion_tokens
    assert 0 < rewriting == spent.rewriter_tokens
    assert took + rewriting == spent.tokens <= most
    assert spent.rewriter_usd == pytest.approx(rewriting * 1e-5) and spent.usd <= most * 1e-5


def test_arguments_that_cannot_be_used_cost_no_call(server: Loopback, helping: Loopback) -> None:
    before = server.requests
    two = [dspy.Example(a="1", b="2", answer="3").with_inputs("a", "b")] * 2
    tiny = Budget(10_000, tokens=100_000)

    def refused(words: str, program: Any = None, trainset: Any = None, inner: Any = None, **settings: Any) -> None:
        with pytest.raises(ConfigurationError, match=words):
            made = optimizer(**settings)
            made.compile(program or student(), trainset=trainset or questions(5), inner=inner)

    ready = rewriter(helping)
    refused("give a list", rewriters=ready)
    refused("at least one", rewriters=[])
    refused("give a Rewriter", rewriters=["better"])
    refused("asks the same", rewriters=[ready, ready])
    refused("is not an input", rewriters=[rewriter(helping, field="answer")])
    refused("several|does not say", dspy.Predict("a, b -> answer"), two, rewriters=[ready])
    refused("max_tokens", rewriters=[ready], budget=tiny)
    refused("batch", rewriters=[ready], batch=BatchAPI(), log_dir="never-made")
    refused("does not say|is not an input", Pipeline(), inner="report", rewriters=[ready])
    with pytest.raises(ConfigurationError, match=r"with \{\} in the place"):
        rewriter(helping, template="no place")
    assert (server.requests, helping.requests) == (before, 0)


# -- going on


def test_a_run_that_is_started_again_repeats_no_rewrite(helping: Loopback, tmp_path: Path) -> None:
    def run(budget: int) -> CompiledProgram:
        made = optimizer(rewriters=[rewriter(helping)], log_dir=tmp_path, budget=budget)
        return made.compile(student(), trainset=questions(20))

    first = run(160)
    assert helping.requests == 20
    again = run(160)
    more = run(240)  # another run, which goes on from what is paid
    assert helping.requests == 20
    assert again.detailed_results.spent.tokens == first.detailed_results.spent.tokens
    assert more.detailed_results.spent.completions > 200
    records = [r for r in read_ledger(tmp_path)[1] if isinstance(r, RewriteRecord)]
    assert len(records) == 20 and all(r.text and "Please compute" in r.text and r.usage.tokens for r in records)


# -- deployed calls


@pytest.fixture
def program(helping: Loopback) -> CompiledProgram:
    return optimizer(rewriters=[rewriter(helping, name="clear")]).compile(student(), trainset=questions(20))


def test_a_call_rewrites_once_and_draws_all_completions_on_that(
    server: Loopback, helping: Loopback, program: CompiledProgram
) -> None:
    before, asked = helping.requests, len(server.bodies)
    found = program(question="20 + 41", preference="quality")
    report = found.iapo
    assert found.answer == "61" and report.planned > 1
    assert helping.requests == before + 1
    seen = {body["messages"][-1]["content"] for body in server.bodies[asked:]}
    assert len(seen) == 1 and "Please compute 20 + 41 with care." in seen.pop()
    assert report.rewritten == {"clear": "Please compute 20 + 41 with care."} and not report.not_rewritten
    words = len(helping.bodies[-1]["messages"][0]["content"].split())
    assert report.rewriter_tokens == words + 7
    assert report.cost == report.completion_tokens and report.completion_tokens > 7
    assert "as 'clear' rewrote it" in str(program.explain(found))


def test_a_call_whose_rewriter_fails_is_answered_on_the_query_as_it_is(
    server: Loopback, program: CompiledProgram, helping: Loopback
) -> None:
    helping.answer = lambda body, i: ""
    asked = len(server.bodies)
    report = program(question="20 + 41", preference="quality").iapo
    assert report.rewritten == {} and report.not_rewritten == {"clear": "the answer holds no text"}
    assert all("Please" not in body["messages"][-1]["content"] for body in server.bodies[asked:])


def test_a_saved_program_has_the_rewriter_and_not_its_lm(
    program: CompiledProgram, helping: Loopback, tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    program.save(path)
    text = path.read_text()
    assert "sk-loopback-secret" not in text and helping.base not in text and "openai/rewriter" in text
    assert program.models == ("openai/rewriter",)
    without = iapo_dspy.load(path)
    with pytest.raises(ConfigurationError, match="rewriter"):
        without(question="20 + 41")
    lm = helping.lm("openai/rewriter")
    for lms in ([lm], [{"rewriter": lm}]):
        before = helping.requests
        loaded = iapo_dspy.load(path, lms=lms)
        assert loaded(question="20 + 41").iapo.rewritten == {"clear": "Please compute 20 + 41 with care."}
        assert helping.requests == before + 1
        assert loaded.detailed_results.labels == program.detailed_results.labels
    given = iapo_dspy.load(path, rewriters=[rewriter(helping, name="clear", field="question")])
    assert given(question="20 + 41").iapo.rewritten


# -- the results


def test_results_compare_a_rewriter_with_the_query_as_it_is(program: CompiledProgram, tmp_path: Path) -> None:
    (found,) = program.detailed_results.rewriters
    assert found.name == "clear" and found.rewrites.queries == 20 and not found.rewrites.failed
    assert found.rewrites.rewards is None
    assert found.compared == 20
    assert found.reward == pytest.approx(0.95, abs=0.06) and found.plain == pytest.approx(0.25, abs=0.2)
    assert found.variance == pytest.approx(found.reward * (1 - found.reward))  # right or wrong
    assert found.plain_variance == pytest.approx(found.plain * (1 - found.plain))
    # a pair is won with the chance .95 * .75, and is a tie with .95 * .25 + .05 * .75
    assert found.win_rate == pytest.approx(0.5 + (found.reward - found.plain) / 2)
    assert found.interval[0] < found.win_rate < found.interval[1]
    assert "win rate" in str(program.detailed_results)
    assert program.detailed_results.to_dict()["rewriters"][0]["name"] == "clear"
    program.save(tmp_path / "p.json")
    assert iapo_dspy.load(tmp_path / "p.json").detailed_results.rewriters == (found,)


# -- the quote


def test_a_quote_bounds_and_foresees_the_rewrites(server: Loopback, helping: Loopback, tmp_path: Path) -> None:
    prices = {"openai/fake": (1.0, 2.0), "openai/rewriter": (3.0, 4.0)}
    cost = Cost(completion_tokens=1, usd_per_million=prices)
    with dspy.context(lm=server.lm(max_tokens=20, seed=1)):
        lm = helping.lm("openai/rewriter", max_tokens=30, seed=2)
        given: dict[str, Any] = {"cost_unit": cost, "log_dir": tmp_path, "budget": 120, "compound": False}
        with_it = optimizer(rewriters=[Rewriter(lm)], **given)
        two = optimizer(**given, candidates=[PLAIN, CLEAR])
        plain = two.quote(student(), trainset=questions(20), output_tokens=8)
        quote = with_it.quote(student(), trainset=questions(20), output_tokens=8)
        assert helping.requests == 0
        assert quote.completion_tokens == (plain.completion_tokens or 0) + 20 * 30
        assert quote.expected is not None and plain.expected is not None
        assert quote.expected.requests - plain.expected.requests == pytest.approx(20, abs=8)
        spent = with_it.compile(student(), trainset=questions(20)).detailed_results.spent
        assert quote.requests is not None and spent.requests <= quote.requests
        assert quote.prompt_tokens is not None and spent.prompt_tokens <= quote.prompt_tokens
        assert spent.completion_tokens <= quote.completion_tokens
        assert quote.usd is not None and spent.usd <= quote.usd
        again = with_it.quote(student(), trainset=questions(20)).expected
        assert again is not None
        assert again.completion_tokens == pytest.approx(spent.completion_tokens, rel=0.25)
        assert again.prompt_tokens == pytest.approx(
            spent.prompt_tokens, rel=0.5
        )  # how many requests a run sends depends on chance
        without = optimizer(rewriters=[rewriter(helping)], budget=120).quote(student(), trainset=questions(20))
        assert without.prompt_tokens is None and without.completion_tokens is None  # its LM has no max_tokens


# -- arms of several prompts and stages


def test_stages_and_shares_with_one_rewriter_rewrite_once(server: Loopback, helping: Loopback) -> None:
    made = optimizer(candidates=[PLAIN, CLEAR], rewriters=[rewriter(helping, name="clear")], compound=False)
    program = made.compile(student(), trainset=questions(10))
    found = program.detailed_results.best()
    last = Arm(1, 2, beside=(Share(prompt=3, n=1),))  # prompts 1 and 3 have the rewriter, 0 and 2 have not
    for arm, texts in (
        (Arm(1, 2, then=Escalation(below=1.5, arm=last)), {"rewritten"}),  # no vote is as sure as that
        (Arm(0, 2, then=Escalation(below=1.5, arm=last)), {"rewritten", "plain"}),
        (Arm(0, 2, then=Escalation(below=0.0, arm=last)), {"plain"}),  # the second stage is not reached
    ):
        before, asked = helping.requests, len(server.bodies)
        report = program.with_arm(replace(found, arm=arm))(question="20 + 41").iapo
        seen = {body["messages"][-1]["content"] for body in server.bodies[asked:]}
        assert {"rewritten" if "Please compute 20 + 41" in text else "plain" for text in seen} == texts
        assert helping.requests - before == ("rewritten" in texts) == len(report.rewritten)
        assert report.cost == report.completion_tokens


def test_a_call_that_stops_early_rewrites_once(server: Loopback, helping: Loopback) -> None:
    made = optimizer(rewriters=[rewriter(helping)])
    program = made.compile(student(), trainset=questions(10))
    arm = Arm(1, 4, Stop(waves=(1, 2, 3, 4)))
    before = helping.requests
    report = program.with_arm(replace(program.detailed_results.best(), arm=arm))(question="20 + 41").iapo
    assert report.waves > 1 and helping.requests == before + 1


def test_caps_hold_for_rewrite_and_completions_together(server: Loopback) -> None:
    def long_and_clear(body: dict[str, Any], i: int) -> str:
        return clearly(body, i) + " well" * 30  # 37 tokens

    def talkative(body: dict[str, Any], i: int) -> str:
        return sums(body, i) + " so" * 20  # 24 tokens, unless it is cut off

    most = 120
    capped = Preference("capped", cost=0.0, max_tokens=most)
    with Loopback(talkative, obeys=True) as answers, Loopback(long_and_clear, latency=0.05) as writer:
        with dspy.context(lm=answers.lm()):
            program = optimizer(capped, rewriters=[rewriter(writer)], max_n=8).compile(
                student(), trainset=questions(20)
            )
            assert writer.max_in_flight >= 3  # queries are rewritten at the same time
            row = program.detailed_results.policy[0]
            assert (
                "rewriter" in row.label and 37 + row.arm.n * 24 <= most
            )  # N = 3 at most, which is 4 without a rewrite
            taken = [program(question=f"{i} + 41").iapo for i in range(5)]
        assert all(report.rewriter_tokens > 37 and report.completion_tokens <= most for report in taken)
        limits = {body.get("max_tokens") for body in answers.bodies[-3:]}
        assert max(limit for limit in limits if limit) <= (most - 37) / row.arm.n
