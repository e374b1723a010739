"""Calls say how probable it is that their answer is right; logprobs sharpen that where they tell right from wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import CompiledProgram, Preference
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, LAZY, adder, exact, questions, student, total

optimizer = optimizers()


def called(program: Any, count: int) -> tuple[list[float], list[bool]]:
    """Return the confidence of calls on new questions, and whether they were right."""
    confidence, right = [], []
    for i in range(count):
        example = dspy.Example(question=f"{100 + i} + {7 * i}", answer=str(100 + 8 * i))
        prediction = program(question=example.question)
        confidence.append(prediction.iapo.confidence)
        right.append(exact(example, prediction))
    return confidence, right


def test_confidence_is_that_of_right_answers_and_survives_saving(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        program = optimizer(
            Preference("quality"), max_n=5, budget=1_000, candidates=[LAZY, CAREFUL], log_dir=tmp_path / "run"
        ).compile(student(), trainset=questions(60))
        asked = server.requests
        confidence, right = called(program, 60)
        assert server.requests > asked
        assert np.mean(confidence) == pytest.approx(np.mean(right), abs=0.12)
        assert min(confidence) < 0.9 < max(confidence)  # a vote of 3 to 2 is less sure than one of 5 to 0
        row = program.detailed_results.policy[0]
        assert row.reliability is not None and row.reliability.error < 0.15
        assert "confidence is off by 0." in row.reliability.in_words
        assert program.detailed_results.to_dict()["reliability"][0]["count"] == list(row.reliability.count)
        program.save(tmp_path / "program.json")
        loaded = CompiledProgram(student())
        loaded.load(tmp_path / "program.json")
        assert loaded.policy.ready.calibrations == program.policy.ready.calibrations
        assert loaded.detailed_results.policy[0].reliability == row.reliability
        # Whoever was not compiled has one, too, from the stored evidence.
        assert 0 < loaded(question="3 + 4", preference=Preference(cost=3.0)).iapo.confidence < 1
    data = json.loads((tmp_path / "program.json").read_text())
    assert "calibrations" in json.dumps(data)


def doubtful(body: dict[str, Any], i: int) -> str:
    """Answer even sums right, and odd ones by guessing."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    correct = total(body)
    return chat(answer=str(correct if correct % 2 == 0 else rng.randint(1, 5)))


@pytest.mark.slow
def test_calls_that_are_not_sure_enough_return_nothing(tmp_path: Path) -> None:
    safe = Preference("safe", min_confidence=0.8)
    with Loopback(doubtful) as server, dspy.context(lm=server.lm(seed=3)):
        program = optimizer(safe, Preference("plain"), max_n=4, budget=900, candidates=[CAREFUL]).compile(
            student(), trainset=questions(60)
        )
        row = program.detailed_results.policy[0]
        assert row.arm.abstains and 0.2 < row.abstains < 0.8
        assert not program.detailed_results.policy[1].arm.abstains
        program.save(tmp_path / "program.json")
        loaded = CompiledProgram(student())
        loaded.load(tmp_path / "program.json")
        asked = [dspy.Example(question=f"{100 + i} + 2").with_inputs("question") for i in range(16)]
        for one in (program, loaded):
            answers = one.batch(asked) if one is program else [one(question=x.question) for x in asked]
            silent = [a.iapo.abstained for a in answers]
            assert [a.answer is None for a in answers] == silent and 3 <= sum(silent) <= 13
            given = [
                a.answer == str(sum(map(int, x.question.split(" + "))))
                for a, x in zip(answers, asked, strict=True)
                if a.answer
            ]
            assert np.mean(given) >= 0.8


def single(body: dict[str, Any], i: int) -> str:
    """Answer right seven times of ten, whatever the question is."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    return chat(answer=str(total(body) + (0 if rng.random() < 0.7 else 1)))


def telling(body: dict[str, Any], text: str) -> list[float]:
    """Return logprobs that tell right answers from wrong ones, with some noise."""
    noise = random.Random(f"{body.get('seed')} {text}").gauss(0.0, 0.3)
    return [min((-0.5 if f"\n{total(body)}\n" in text else -1.5) + noise, 0.0)]


def noise(body: dict[str, Any], text: str) -> list[float]:
    """Return logprobs that tell nothing."""
    return [-random.Random(f"{body.get('seed')} {text}").random()]


@pytest.mark.parametrize("logprobs", [telling, noise, None])
def test_logprobs_separate_right_from_wrong_where_they_can(logprobs: Any) -> None:
    with Loopback(single, logprobs=logprobs) as server, dspy.context(lm=server.lm(seed=5, logprobs=True)):
        program = optimizer(Preference("one"), max_n=1, budget=300, candidates=[CAREFUL, LAZY]).compile(
            student(), trainset=questions(80)
        )
        confidence, right = called(program, 60)
    found, truth = np.array(confidence), np.array(right)
    plain = float(((truth - truth.mean()) ** 2).mean())  # Brier's score of the best constant
    brier = float(((found - truth) ** 2).mean())
    if logprobs is telling:
        assert found[truth].mean() > found[~truth].mean() + 0.5 and brier < 0.5 * plain
    else:
        assert np.ptp(found) == 0 and brier < plain + 0.02
