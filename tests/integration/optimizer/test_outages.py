"""Providers that are down or refuse a part of the requests; the server counts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import Cost
from iapo_dspy.errors import ProviderDown
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.judges.metered import metered
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import CAREFUL, QUICK, Around, adder, exact, questions, student

optimizer = optimizers(budget=120, max_n=2, candidates=[QUICK, CAREFUL], stopping=None)


@contextlib.contextmanager
def outage(server: Loopback, fault: Any, *, after: int, seconds: float = 1e9) -> Iterator[None]:
    """Let a server fail every request for some seconds, from a number of completions on."""
    over = threading.Event()

    def watch() -> None:
        while server.completions < after and not over.wait(0.002):
            pass
        server.faults.shares = {fault: 1.0}
        over.wait(seconds)
        server.faults.shares = {}

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def results(program: Any) -> Any:
    return program.detailed_results


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fault"), [("one predictor", f) for f in (503, "drop", "hang")] + [("module", 503)])
def test_a_run_waits_for_the_end_of_an_outage(fault: Any, kind: str) -> None:
    program = student() if kind == "one predictor" else Around()
    with Loopback(adder, latency=0.02, faults=Faults(hang=0.6)) as server:
        with dspy.context(lm=server.lm(seed=1, num_retries=0, timeout=0.5)), outage(server, fault, after=30, seconds=1):
            found = results(optimizer(num_threads=8).compile(program, trainset=questions(20)))
        failed = sum(n for status, n in server.statuses.items() if status >= 500)
        assert found.complete and found.outage is None
        assert found.failures.errors == 0  # the outage is nobody's failure
        assert failed < 30 or fault != 503  # one probe at a time


@pytest.mark.slow
def test_a_run_that_has_waited_long_enough_stops_with_what_it_knows_and_goes_on_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Loopback(adder, latency=0.02) as server, dspy.context(lm=server.lm(seed=1, num_retries=1)):
        whole = optimizer(num_threads=8).compile(student(), trainset=questions(20))
        in_all, server.completions = server.completions, 0
        run = optimizer(num_threads=8, outage_patience=0.2, log_dir=tmp_path)
        with outage(server, 503, after=30):
            stopped = run.compile(student(), trainset=questions(20))
        found, known = results(stopped), server.completions
        assert not found.complete and found.outage is not None and "openai/fake has not answered" in found.outage
        assert f"Compile again with log_dir={str(tmp_path)!r} to go on." in caplog.text
        assert 30 <= found.spent.completions == known < in_all
        assert found.failures.total == 0
        resumed = run.compile(student(), trainset=questions(20))
        assert server.completions == in_all  # what the outage took is drawn, and nothing twice
        assert results(resumed).complete and results(resumed).spent.completions == in_all
        assert resumed.policy.ready.arms == whole.policy.ready.arms
        before = server.requests
        run.compile(student(), trainset=questions(20))
        assert server.requests == before


def test_a_provider_that_never_answers_is_an_error_that_names_it() -> None:
    gone = dspy.LM("openai/gone", api_base="http://127.0.0.1:9/v1", api_key="k", cache=False, num_retries=0)
    with (
        dspy.context(lm=gone),
        pytest.raises(ProviderDown, match=r"openai/gone has not answered once .*nothing is"),
    ):
        optimizer().compile(student(), trainset=questions(6))


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["closed port", "later"])
def test_one_deployment_that_is_down_does_not_stop_the_work_of_the_others(gone: str, tmp_path: Path) -> None:
    with Loopback(adder, latency=0.01) as alive, Loopback(adder, latency=0.01) as ill:
        broken = ill.lm("openai/ill", num_retries=1, seed=1)
        if gone == "closed port":
            broken = dspy.LM("openai/ill", api_base="http://127.0.0.1:9/v1", api_key="k", cache=False, num_retries=1)
        run = optimizer(
            lms=[alive.lm("openai/alive", seed=1), broken],
            num_threads=2,
            outage_patience=1.0,
            log_dir=tmp_path,
            cost_unit=Cost(completion_tokens=1),
        )
        with outage(ill, 503, after=10):
            found = results(run.compile(student(), trainset=questions(20)))
        assert found.outage is not None and found.outage.startswith("openai/ill")
        assert found.spent.completions == alive.completions + ill.completions and found.failures.total == 0
        # The first round has as many pulls of the one as of the other: those of the one were all made.
        assert alive.completions >= 12 > ill.completions


@pytest.mark.slow
def test_a_judge_that_is_down_leaves_completions_without_a_score_until_it_is_back(tmp_path: Path) -> None:
    with Loopback(adder) as server, Loopback(lambda body, i: chat(good="True"), latency=0.005) as court:
        judge = dspy.Predict("answer -> good: bool")
        judge.set_lm(metered(court.lm("openai/judge", num_retries=0)))

        def metric(example: Any, prediction: Any, trace: Any = None) -> float:
            return float(judge(answer=prediction.answer).good) * float(exact(example, prediction))

        run = optimizer(metric=metric, outage_patience=0.2, log_dir=tmp_path, num_threads=8)
        with dspy.context(lm=server.lm(seed=1)):
            with outage(court, 503, after=3):
                found = results(run.compile(student(), trainset=questions(20)))
            assert found.outage is not None and found.outage.startswith("openai/judge")
            assert found.failures.errors == 0
            again = results(run.compile(student(), trainset=questions(20)))
        assert again.complete and again.failures.errors == 0
        assert server.completions == again.spent.completions  # nothing was drawn twice


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_storm_of_429_costs_its_waits_and_little_more(seconds: float) -> None:
    """One request in ten is answered by a 429 with Retry-After; the server could take the rest."""
    program = student()

    def took(share: float) -> tuple[float, Loopback]:
        faults = Faults(shares={429: share}, retry_after=str(seconds))
        with Loopback(adder, latency=0.1, faults=faults) as server:
            sampler = Sampler(lm=server.lm(num_retries=3), max_concurrency=16, outage_patience=60.0)

            async def all_of(count: int) -> None:
                asked = [{"question": f"{i} + 1"} for i in range(count)]
                drawn = await asyncio.gather(*(sampler.sample(program, x, 1, key=[i]) for i, x in enumerate(asked)))
                assert all(rollout.ok for (rollout,) in drawn)

            run_on_loop(all_of(16))
            start = time.perf_counter()
            run_on_loop(all_of(240))
            return time.perf_counter() - start, server

    clean, _ = took(0.0)
    storm, server = took(0.1)
    refused = server.statuses[429]
    print(f"clean {clean:.2f} s, storm {storm:.2f} s, {refused} x 429, Retry-After {seconds} s")
    assert refused > 15
    # The waits of different requests pass at the same time; a request that is refused again waits again.
    assert storm <= 3.0 * clean + 3.0 * (seconds + 0.25)
