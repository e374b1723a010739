"""One failed sample never fails a call; calls that end early leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, CompiledProgram, MajorityVote, Objective
from iapo_dspy.errors import AllCompletionsFailed
from iapo_dspy.types import Arm, Stop
from tests.support.deployed import deploy
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import CAREFUL, TwoSteps, adder, after_ideas, exact, questions

ROOT = Path(__file__).parents[3]
N = 6
PLAIN = {"q": Arm(0, N)}
WAVES = {"q": Arm(0, N, Stop(waves=(2, 4, 6)))}


def some_garbage(body: dict[str, Any], i: int) -> str:
    return "garbage" if i % 3 == 0 else adder(body, i)


def poisoned(body: dict[str, Any], i: int) -> str:
    """Fail every completion of the questions whose first number is even."""
    number = int(re.findall(r"(\d+) \+", body["messages"][-1]["content"])[-1])
    return "garbage" if number % 2 == 0 else adder(body, i)


def vote(server: Loopback, arms: Any = None, **kwargs: Any) -> CompiledProgram:
    """Compile while all is well, then let the server fail."""
    program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [CAREFUL], arms or PLAIN, **kwargs)
    server.bodies.clear()
    return program


CALLS: dict[str, Callable[[dspy.Module, str], dspy.Prediction]] = {
    "call": lambda p, q: p(question=q),
    "acall": lambda p, q: asyncio.run(p.acall(question=q)),
    "asyncify": lambda p, q: asyncio.run(dspy.asyncify(p)(question=q)),
    "streamify": lambda p, q: list(dspy.streamify(p, async_streaming=False)(question=q))[-1],
}


# -- some completions fail


@pytest.mark.parametrize("arms", [PLAIN, WAVES], ids=["at once", "waves"])
@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_failed_completion_does_not_fail_the_call(call: str, arms: Any) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = vote(server, arms)
        server.answer = some_garbage
        prediction = CALLS[call](program, "20 + 41")
    report = prediction.iapo
    assert prediction.answer == "61" and report.failures
    assert all("AdapterParseError" in cause for cause in report.failures.values())
    assert sum(report.votes.values()) == report.n - len(report.failures) == len(prediction.completions)


@pytest.mark.parametrize("make", [lambda: dspy.Predict("question -> answer"), TwoSteps], ids=["predict", "two steps"])
def test_http_errors_of_single_requests_do_not_fail_the_call(make: Any) -> None:
    """A provider without n: every completion is a request of its own, and some of them are refused."""

    candidates: list[Any] = [CAREFUL] if make is not TwoSteps else [{"ask": CAREFUL}]
    with Loopback(after_ideas(adder)) as server:
        with dspy.context(lm=server.lm(seed=1, num_retries=0)):
            program = deploy(make(), MajorityVote("answer"), candidates, PLAIN)
            server.faults.ignore_n = True
            program(question="20 + 41")  # it learns that n is ignored
            program(question="20 + 42")
            server.faults.shares = {400: 0.3}
            answers = [program(question=f"{i} + 41") for i in range(20, 32)]
    failures = [f for a in answers for f in a.iapo.failures.values()]
    assert failures and all("BadRequest" in f for f in failures)
    assert sum(a.answer == str(i + 41) for i, a in zip(range(20, 32), answers, strict=True)) >= 10


def test_a_strategy_of_the_users_that_raises_fails_one_completion() -> None:
    def picky(example: Any, pred: Any) -> float:
        if example.question == "20 + 41" and pred.answer != "61":
            raise RuntimeError("unheard of")
        return 1.0

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        strategy = BestOfN([Objective("picky", picky)])
        program = deploy(dspy.Predict("question -> answer"), strategy, [CAREFUL], {"q": Arm(0, 4)}, metric=None)
        server.answer = lambda body, i: chat(answer="61" if i % 2 else "62")
        prediction = program(question="20 + 41")
    assert prediction.answer == "61" and any("unheard of" in f for f in prediction.iapo.failures.values())


# -- all completions fail


@pytest.mark.parametrize("call", sorted(CALLS))
def test_all_failed_raises_with_the_causes(call: str) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = vote(server)
        server.answer = lambda body, i: "garbage"
        with pytest.raises(AllCompletionsFailed, match=f"All {N} completions") as caught:
            CALLS[call](program, "20 + 41")
    assert len(caught.value.causes) == N and all("AdapterParseError" in c for c in caught.value.causes)
    assert caught.value.completion_tokens == N


def test_an_outage_raises_with_its_causes_and_the_program_recovers() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1, num_retries=0)):
        program = vote(server)
        server.faults = Faults(shares={503: 1.0})
        with pytest.raises(AllCompletionsFailed, match=r"ServiceUnavailable|InternalServer"):
            program(question="20 + 41")
        server.faults = Faults()
        assert program(question="20 + 41").answer == "61"


def test_a_batch_goes_on_around_the_calls_that_fail() -> None:
    rows = questions(8, start=1)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = vote(server)
        server.answer = poisoned
        results, failed, errors = program.batch(
            rows, num_threads=4, return_failed_examples=True, max_errors=100, disable_progress_bar=True
        )
    assert [r.answer if r is not None else None for r in results] == [
        e.answer if i % 2 == 0 else None for i, e in enumerate(rows)
    ]
    assert sorted(e.question for e in failed) == sorted(e.question for e in rows[1::2])
    assert len(errors) == 4 and all(isinstance(e, AllCompletionsFailed) and len(e.causes) == N for e in errors)


def test_parallel_and_evaluate_count_the_calls_that_fail() -> None:
    rows = questions(8, start=1)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = vote(server)
        server.answer = poisoned
        parallel = dspy.Parallel(num_threads=4, return_failed_examples=True, max_errors=100, disable_progress_bar=True)
        results, _, errors = parallel([(program, e.inputs()) for e in rows])
        assert [r is None for r in results] == [False, True] * 4 and len(errors) == 4
        evaluate = dspy.Evaluate(devset=rows, metric=exact, num_threads=4, max_errors=100, display_progress=False)
        assert evaluate(program).score == 50.0


# -- calls that end early


def drained(server: Loopback, sent: int) -> None:
    """Wait for what is in flight, and see that nothing follows it."""
    deadline = time.monotonic() + 5
    while server.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert server.in_flight == 0 and server.requests == sent


@pytest.mark.parametrize("make", [lambda: dspy.Predict("question -> answer"), TwoSteps], ids=["predict", "two steps"])
async def test_a_cancelled_call_ends_at_once_and_sends_nothing_more(make: Any) -> None:
    candidates: list[Any] = [CAREFUL] if make is not TwoSteps else [{"ask": CAREFUL}]
    with Loopback(after_ideas(adder)) as server, dspy.context(lm=server.lm(seed=1)):
        program = await asyncio.to_thread(deploy, make(), MajorityVote("answer"), candidates, WAVES)
        server.latency = 0.3
        sent = server.requests
        task = asyncio.create_task(program.acall(question="20 + 41"))
        while server.requests == sent:
            await asyncio.sleep(0.005)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < 0.25
        await asyncio.to_thread(drained, server, sent + 1)  # neither the other step nor another wave
        server.latency = 0.0
        assert (await program.acall(question="20 + 41")).answer == "61"  # nothing is held up by what was cancelled


async def test_a_call_that_takes_too_long_is_cut_by_wait_for() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = await asyncio.to_thread(vote, server)
        server.latency = 1.0
        sent = server.requests
        with pytest.raises((asyncio.TimeoutError, TimeoutError)):
            await asyncio.wait_for(program.acall(question="20 + 41"), 0.1)
        assert server.requests <= sent + 1


async def test_one_of_several_calls_is_cancelled_alone() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = await asyncio.to_thread(vote, server)
        server.latency = 0.1
        tasks = [asyncio.create_task(program.acall(question=f"{i} + 41")) for i in range(6)]
        await asyncio.sleep(0.05)
        tasks[2].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[2], asyncio.CancelledError)
    assert [r.answer for i, r in enumerate(found) if i != 2] == [str(i + 41) for i in range(6) if i != 2]  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_a_call_and_the_process_goes_on(tmp_path: Path) -> None:
    script = f"""
import sys, time, dspy
sys.path.insert(0, {str(ROOT)!r})
from iapo_dspy import MajorityVote
from iapo_dspy.types import Arm
from iapo_dspy.types import Stop
from tests.support.deployed import deploy
from tests.support.worlds import CAREFUL
lm = dspy.LM("openai/fake", api_base=sys.argv[1], api_key="k", cache=False, seed=1)
dspy.configure(lm=lm)
program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [CAREFUL],
                 {{"q": Arm(0, 6, Stop(waves=(2, 4, 6)))}})
print("ready", flush=True)
start = time.monotonic()
try:
    program(question="7 + 7")
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - start < 3, flush=True)
print(program(question="20 + 41").answer, flush=True)
"""

    def slow(body: dict[str, Any], i: int) -> str:
        if "7 + 7" in body["messages"][-1]["content"]:
            time.sleep(4)
        return adder(body, i)

    with Loopback(slow) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", script, server.base], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        sent = server.requests
        while server.requests == sent:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert out.split() == ["interrupted", "True", "61"]
        assert sum("7 + 7" in b["messages"][-1]["content"] for b in server.bodies) == 1  # no further wave
