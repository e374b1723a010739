"""`kill -9` while batch jobs are submitted, polled and collected: no job and no request is paid for twice."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import BatchRecord, CompletionRecord
from tests.support.batching import BatchFaults
from tests.support.killing import Victim
from tests.support.loopback import Loopback
from tests.support.worlds import adder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and fork servers are POSIX")

BATCH = {"poll_seconds": 0.02, "settle_seconds": 0.4}
PATIENT = {"poll_seconds": 0.02, "settle_seconds": 4.0}  # longer than any list lags behind here
BUDGET = 200
PRICE = 1e-3


def start(server: Loopback, log_dir: Path, result: Path, batch: dict[str, float] = BATCH) -> Victim:
    prices = {"input_cost_per_token": PRICE, "output_cost_per_token": PRICE, "max_tokens": 60}
    lm = {"api_base": server.base, "api_key": "sk-x", "cache": False, "seed": 1, **prices}
    return Victim(lm, str(log_dir), str(result), 1e4, batch, BUDGET)


def calls(server: Loopback, method: str, end: str) -> int:
    return sum(1 for m, path in server.jobs.calls if m == method and path.endswith(end))


# What the server sees when a process is killed. A job is made 50 ms after its submission comes in and 50 ms before its
# id is sent.
MOMENTS: dict[str, Callable[[Loopback], int]] = {
    "the file is uploaded": lambda s: calls(s, "POST", "/files"),
    "the submission has come in": lambda s: calls(s, "POST", "/batches"),
    "the job is made, its id not sent": lambda s: len(s.jobs.jobs),
    "it is looked at": lambda s: sum(1 for m, path in s.jobs.calls if m == "GET" and "/batches/" in path),
    "its files are fetched": lambda s: calls(s, "GET", "/content"),
}


def wait_for(count: Callable[[], int], victim: Victim) -> None:
    before = count()
    while victim.alive and count() <= before:
        time.sleep(0.0005)


def check(server: Loopback, log_dir: Path, found: Any, whole: tuple[Any, int]) -> None:
    wanted, rounds = whole
    asked = Counter(body["seed"] for body in server.bodies)
    assert max(asked.values()) == 1, "a request was paid for twice"
    assert len(server.jobs.jobs) == rounds
    # Sums of dollars are rounded up by a picodollar a piece, so that a run in several processes may count a few more.
    found, wanted = (
        {**x, "spent": {**x["spent"], "seconds": 0.0, "usd": round(x["spent"]["usd"], 9)}} for x in (found, wanted)
    )
    assert found == wanted, "the policy, and what was spent, are those of the uninterrupted run"
    assert found["spent"]["usd"] == pytest.approx((server.prompt_tokens + server.completion_tokens) * PRICE)
    _, records = read_ledger(log_dir)
    completions = [r for r in records if isinstance(r, CompletionRecord)]
    assert len({r.key for r in completions}) == len(completions) == server.completions
    states: dict[str, str] = {r.tag: r.state for r in records if isinstance(r, BatchRecord)}
    assert set(states.values()) == {"closed"}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    """The state of the uninterrupted run, and how many jobs it has."""
    folder = tmp_path_factory.mktemp("whole")
    with Loopback(adder) as server:
        assert start(server, folder / "run", folder / "whole.json").wait() == 0
        return json.loads((folder / "whole.json").read_text()), len(server.jobs.jobs)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [0, 2])
def test_no_job_is_paid_twice_whenever_the_process_is_killed(
    hidden: int, tmp_path: Path, wanted: tuple[Any, int]
) -> None:
    log_dir, result = tmp_path / "run", tmp_path / "result.json"
    with Loopback(adder, batches=BatchFaults(polls=2, slow=0.05)) as server:
        for name, count in MOMENTS.items():
            victim = start(server, log_dir, result, PATIENT if hidden else BATCH)
            wait_for(lambda count=count: count(server), victim)  # type: ignore[misc]
            assert victim.alive, f"the run was over before {name}"
            victim.kill()
            server.jobs.faults.hidden = hidden  # what has just been made is not listed yet
        assert start(server, log_dir, result, PATIENT).wait() == 0
        check(server, log_dir, json.loads(result.read_text()), wanted)


@pytest.mark.slow
def test_random_kills(tmp_path: Path, wanted: tuple[Any, int]) -> None:
    rng, kills = random.Random(0), 0
    for run in range(2):
        log_dir, result = tmp_path / f"run{run}", tmp_path / f"result{run}.json"
        with Loopback(adder, batches=BatchFaults(polls=2, slow=0.05)) as server:
            for _ in range(5):
                victim = start(server, log_dir, result)
                target = len(server.jobs.calls) + rng.randint(1, 8)
                while victim.alive and len(server.jobs.calls) < target:
                    time.sleep(0.0005)
                time.sleep(rng.uniform(0.0, 0.05))
                kills += victim.alive
                victim.kill()
            if not result.exists():
                assert start(server, log_dir, result).wait() == 0
            check(server, log_dir, json.loads(result.read_text()), wanted)
    print(f"{kills} kills in 2 runs")
