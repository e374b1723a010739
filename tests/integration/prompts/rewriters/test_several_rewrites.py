"""Align-Pro over the real path: several rewrites of a query, one of which is chosen by its reward."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import iapo_dspy
from iapo_dspy import Budget, Cost, Objective, Rewriter, metered
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.rewriters import tilted_law
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import RewriteRecord
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import questions, student, total

PLAIN = "Add."
optimizer = optimizers(candidates=[PLAIN], budget=240, stopping=None, cost_unit=Cost(completion_tokens=1))


def sums(body: dict[str, Any], i: int) -> str:
    """Answer a query in clear words rightly 19 times in 20, and others never."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    right = "Please compute" in body["messages"][-1]["content"] and rng.random() < 0.95
    return chat(answer=str(total(body) if right else total(body) + rng.randint(1, 9)))


def mixed(body: dict[str, Any], i: int) -> str:
    """Rewrite a sum clearly once in three."""
    a, b = re.findall(r"(\d+) \+ (\d+)", body["messages"][-1]["content"])[-1]
    return f"Please compute {a} + {b}." if i % 3 == 0 else f"{a} + {b}, perhaps, as {i}"


def polite(query: dspy.Example, text: str) -> float:
    return float("Please" in text)


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with Loopback(sums) as running:
        yield running


@pytest.fixture
def writer() -> Iterator[Loopback]:
    with Loopback(mixed) as running:
        yield running


@pytest.fixture(autouse=True)
def configured(server: Loopback) -> Iterator[None]:
    with dspy.context(lm=server.lm(seed=1), adapter=dspy.ChatAdapter()):
        yield


def of_several(at: Loopback, **settings: Any) -> Rewriter:
    given: dict[str, Any] = {"k": 3, "reward": polite, **settings}
    return Rewriter(at.lm("openai/rewriter", temperature=1.0), **given)


def test_the_best_of_several_rewrites_is_drawn_on(server: Loopback, writer: Loopback, tmp_path: Path) -> None:
    made = optimizer(rewriters=[of_several(writer, choose="best")], log_dir=tmp_path)
    program = made.compile(student(), trainset=questions(20))
    assert writer.requests == 20 and writer.completions == 60  # one request with n = 3 for each query
    assert {row.label for row in program.detailed_results.policy} == {f"{PLAIN} [rewriter: own]"}
    records = [r for r in read_ledger(tmp_path)[1] if isinstance(r, RewriteRecord)]
    assert len(records) == 20
    assert all(sorted(r.rewards) == [0, 0, 1] and r.text == r.texts[list(r.rewards).index(1)] for r in records)
    optimizer(rewriters=[of_several(writer, choose="best")], log_dir=tmp_path).compile(
        student(), trainset=questions(20)
    )
    assert writer.requests == 20
    report = program(question="20 + 41").iapo
    assert report.rewritten == {"own": "Please compute 20 + 41."}
    assert report.rewriter_tokens > 3 * 4


def test_rewrites_are_drawn_by_the_tilted_law(writer: Loopback, tmp_path: Path) -> None:
    made = optimizer(rewriters=[of_several(writer, tilt=1.0)], log_dir=tmp_path, budget=400)
    made.compile(student(), trainset=questions(100))
    records = [r for r in read_ledger(tmp_path)[1] if isinstance(r, RewriteRecord)]
    assert len(records) > 60
    expected = tilted_law([0, 0, 1], lam=1.0)[2]  # e / (2 + e) = 0.58
    polites = sum(r.text is not None and "Please" in r.text for r in records) / len(records)
    assert polites == pytest.approx(expected, abs=0.17)


def test_several_rewriters_of_one_lm_differ_in_k_and_lambda(writer: Loopback) -> None:
    arms = [of_several(writer, name="draw"), of_several(writer, choose="best", name="best"), of_several(writer, k=2)]
    made = optimizer(rewriters=arms)
    assert made.quote(student(), trainset=questions(5)).prompts == 4
    with pytest.raises(ConfigurationError, match="temperature 0"):
        optimizer(rewriters=[Rewriter(writer.lm(temperature=0.0), k=2, reward=polite)])
    assert writer.requests == 0


def test_an_objective_can_be_the_reward_and_its_judge_is_metered(writer: Loopback) -> None:
    def verdict(body: dict[str, Any], i: int) -> str:
        return chat(verdict="yes" if "Please" in body["messages"][-1]["content"] else "no")

    with Loopback(verdict) as bench:
        judge = dspy.Predict("question -> verdict")
        judge.set_lm(metered(bench.lm("openai/judge", max_tokens=20)))

        def clear(example: dspy.Example, prediction: dspy.Prediction) -> bool:
            return bool(judge(question=prediction.question).verdict == "yes")

        reward = Objective("clear", clear)
        made = optimizer(rewriters=[of_several(writer, reward=reward, choose="best")])
        program = made.compile(student(), trainset=questions(10))
        spent = program.detailed_results.spent
        assert spent.judge_requests == bench.requests == 30
        report = program(question="20 + 41").iapo
        assert bench.requests == 33 and report.judge_tokens > 0 and "Please" in report.rewritten["own"]


def test_a_reward_that_fails_everywhere_leaves_the_query_as_it_is(
    writer: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    def reads_a_label(query: dspy.Example, text: str) -> float:
        return float(query.answer == text)

    made = optimizer(rewriters=[of_several(writer, reward=reads_a_label)], budget=60)
    made.compile(student(), trainset=questions(10))
    assert "no rewrite has a reward" in caplog.text and re.search(r"failed on (\d+) of \1 queries", caplog.text)


def test_budgets_hold_for_several_rewrites(server: Loopback, writer: Loopback) -> None:
    before = server.prompt_tokens + server.completion_tokens
    most = 6_000
    with dspy.context(lm=server.lm(max_tokens=20)):
        lm = writer.lm("openai/rewriter", temperature=1.0, max_tokens=40)
        made = optimizer(rewriters=[Rewriter(lm, k=3, reward=polite)], budget=Budget(tokens=most))
        spent = made.compile(student(), trainset=questions(20)).detailed_results.spent
    took = server.prompt_tokens + server.completion_tokens - before + writer.prompt_tokens + writer.completion_tokens
    assert took == spent.tokens <= most and spent.rewriter_tokens > 0


def test_a_saved_program_needs_the_rewriter_for_its_reward(writer: Loopback, tmp_path: Path) -> None:
    ready = of_several(writer, choose="best")
    program = optimizer(rewriters=[ready], budget=120).compile(student(), trainset=questions(10))
    program.save(tmp_path / "p.json")
    loaded = iapo_dspy.load(tmp_path / "p.json", lms=[ready.lm])
    with pytest.raises(ConfigurationError, match="does not hold its reward 'polite'"):
        loaded(question="20 + 41")
    whole = iapo_dspy.load(tmp_path / "p.json", rewriters=[ready])
    assert whole(question="20 + 41").iapo.rewritten == {"own": "Please compute 20 + 41."}


def test_results_show_reward_variance_and_divergence_of_the_law(writer: Loopback) -> None:
    arms = [of_several(writer, name="best", choose="best"), of_several(writer, name="draw", tilt=0.5)]
    result = optimizer(rewriters=arms, budget=300).compile(student(), trainset=questions(10)).detailed_results
    best, draw = (found.rewrites.rewards for found in result.rewriters)
    assert best is not None and draw is not None
    assert (best.reward, best.variance) == (1.0, 0.0)
    assert best.reference == draw.reference == pytest.approx(1 / 3)
    assert best.reference_variance == pytest.approx(2 / 9)
    assert best.kl == pytest.approx(math.log(3)) and best.bound == pytest.approx(math.log(3) - 2 / 3)
    p = math.exp(2) / (2 + math.exp(2))  # of the only rewrite with the reward 1, at lambda 0.5
    assert draw.reward == pytest.approx(p) and draw.variance == pytest.approx(p * (1 - p))
    assert draw.kl == pytest.approx(p * math.log(3 * p) + (1 - p) * math.log(3 * (1 - p) / 2))
    assert draw.bound == pytest.approx((p - 1 / 3) / 0.5) and draw.kl < draw.bound
    notes = str(result)
    assert "log k - (k - 1) / k = 0.43 nats" in notes and "drawn with lambda 0.5" in notes
