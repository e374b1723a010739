"""Programs that hang outside of LM calls fail alone, and are left to themselves."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, Execution, MajorityVote, Preference
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.loopback import Loopback, chat
from tests.support.sampling import draw

ROOT = Path(__file__).parents[4]
QUESTION = {"question": "q"}


class HangsOnOdd(dspy.Module):
    """Asks, hangs where the answer is odd until it is released, and asks again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> number")
        self.second = dspy.Predict("question, number -> answer")
        self.released = threading.Event()
        self.ended: list[BaseException | None] = []

    def forward(self, question: str) -> dspy.Prediction:
        number = self.first(question=question).number
        if int(number) % 2 == 0:
            return self.second(question=question, number=number)
        self.released.wait(60)
        try:
            answer = self.second(question=question, number=number)
        except BaseException as error:
            self.ended.append(error)
            raise
        self.ended.append(None)
        return answer

    def __deepcopy__(self, memo: dict[int, Any]) -> HangsOnOdd:
        return self


def reply(body: dict[str, Any], i: int) -> str:
    return chat(number=str(i), answer="a")


def test_hanging_rollouts_fail_alone_and_pay_nothing_afterwards() -> None:
    program = HangsOnOdd()
    with Loopback(reply) as server:
        sampler = Sampler(lm=server.lm(), rollout_timeout=0.7, patience=0.05)
        rollouts = draw(sampler, program, QUESTION, 4, key=0)
        assert [r.ok for r in rollouts] == [True, False, True, False]
        for rollout in (rollouts[1], rollouts[3]):
            assert rollout.error and rollout.failure is not None
            assert rollout.failure.startswith("TimeoutError") and "rollout_timeout" in rollout.failure
            assert rollout.usage.completion_tokens > 0  # what it asked for before is its own
        asked = server.requests
        program.released.set()
        deadline = time.monotonic() + 10
        while len(program.ended) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [type(e).__name__ for e in program.ended] == ["Aborted", "Aborted"]
        assert server.requests == asked
        program.released.clear()
        assert all(r.ok for r in draw(sampler, program, QUESTION, 1, key=1))  # the sampler works on


@pytest.mark.slow
def test_waiting_for_an_lm_does_not_count() -> None:
    class Twice(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            self.ask(question=question)
            return self.ask(question=question + "?")

    with Loopback(reply, latency=1.2) as server:
        sampler = Sampler(lm=server.lm(), max_concurrency=1, rollout_timeout=0.8)
        rollouts = draw(sampler, Twice(), QUESTION, 2, key=0)
    assert all(r.ok for r in rollouts), rollouts


@pytest.mark.slow
def test_a_compile_goes_on_and_a_hanging_thread_does_not_keep_the_process() -> None:
    script = """
import time
import dspy
from iapo_dspy import IAPO, Execution, MajorityVote, Preference
from tests.support.loopback import Loopback, chat

class Hangs(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
    def forward(self, question):
        out = self.ask(question=question)
        if out.answer == "3":
            time.sleep(600)
        return out

with Loopback(lambda body, i: chat(answer=str(i % 5))) as server:
    dspy.configure(lm=server.lm())
    optimizer = IAPO(
        metric=lambda example, pred, trace=None: pred.answer == "0", strategy=MajorityVote("answer"), max_n=4,
        preferences=[Preference("best", cost=0.0)], budget=40, candidates=["a", "b"],
        execution=Execution(rollout_timeout=1.0, progress=False))
    examples = [dspy.Example(question=f"q{i}", answer="0").with_inputs("question") for i in range(8)]
    program = optimizer.compile(Hangs(), trainset=examples)
    report = program.detailed_results.failures
    print(report.errors, report.completions)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    errors, completions = map(int, done.stdout.split())
    assert 0 < errors < completions <= 40


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_bad_timeout_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="rollout_timeout"):
        Sampler(rollout_timeout=value)
    with pytest.raises(ConfigurationError, match="rollout_timeout"):
        IAPO(
            strategy=MajorityVote("answer"),
            metric=lambda e, p: True,
            preferences=[Preference("p", cost=0)],
            budget=1,
            execution=Execution(rollout_timeout=value),
        )
