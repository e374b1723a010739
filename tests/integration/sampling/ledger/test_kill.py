"""`kill -9` at random moments: nothing that is on disk is paid for again, and the policy is the same."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.reading import contents_of, read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord, ScoreRecord, SpentRecord, VerdictRecord
from tests.support.killing import MAX_N, THREADS, Victim, judge_once
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import adder, outputs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and fork servers are POSIX")

PRICE = 1e-3


def lm(server: Loopback, **more: Any) -> dict[str, Any]:
    return {"api_base": server.base, "api_key": "sk-x", "cache": False, "seed": 1, **more}


def stored(log_dir: Path) -> set[int]:
    """The seeds of the requests whose completions are on disk."""
    if not (log_dir / "ledger.jsonl").is_file() or not (log_dir / "ledger.jsonl").stat().st_size:
        return set()
    return {r.seed for r in read_ledger(log_dir)[1] if isinstance(r, CompletionRecord) and r.seed is not None}


def wait_for_a_moment(rng: random.Random, server: Loopback, victim: Victim) -> None:
    """Any moment: some milliseconds after the start, or some milliseconds after some more requests."""
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0.0, 0.4))
        return
    target = server.requests + rng.randint(1, 12)
    while victim.alive and server.requests < target:
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.05))


def seeds(server: Loopback) -> list[int]:
    return [body["seed"] for body in server.bodies]


@pytest.mark.parametrize(
    ("kills", "takes_n"),
    [(2, True), pytest.param(6, True, marks=pytest.mark.slow), pytest.param(4, False, marks=pytest.mark.slow)],
)
def test_a_killed_compile_goes_on_where_it_was(kills: int, takes_n: bool, tmp_path: Path) -> None:
    rng = random.Random(kills)
    faults = Faults(ignore_n=not takes_n)
    in_flight = THREADS * (1 if takes_n else MAX_N)  # where n is ignored, a pull is as many requests as completions
    with Loopback(adder, latency=0.02, faults=faults) as server:
        assert Victim(lm(server), None, str(tmp_path / "whole.json")).wait() == 0
        wanted, whole = json.loads((tmp_path / "whole.json").read_text()), Counter(seeds(server))
    assert max(whole.values()) == 1  # a seed names a request

    died, runs, redone, lost_most = 0, 0, 0, 0
    while died < kills:
        runs += 1
        log_dir, result = tmp_path / f"run{runs}", tmp_path / f"run{runs}.json"
        with Loopback(adder, latency=0.02, faults=faults) as server:
            paid: set[int] = set()
            lost_at_all = 0
            while not result.exists():
                before = len(server.bodies)
                victim = Victim(lm(server), str(log_dir), str(result))
                if died < kills:
                    wait_for_a_moment(rng, server, victim)
                    died += victim.alive
                    victim.kill()
                else:
                    assert victim.wait() == 0
                while server.in_flight:  # what a dead process had asked for is answered, and paid for, all the same
                    time.sleep(0.002)
                asked = seeds(server)[before:]
                assert not paid & set(asked), "a request was sent although its completions are on disk"
                paid = stored(log_dir)
                lost = set(asked) - paid
                assert len(lost) <= in_flight, "more was lost than can have been in flight"
                lost_at_all, lost_most = lost_at_all + len(lost), max(lost_most, len(lost))
            counts = Counter(seeds(server))
            assert set(counts) == set(whole)
            redone += len(seeds(server)) - len(counts)
            assert len(seeds(server)) - len(counts) <= lost_at_all

        found = json.loads(result.read_text())
        assert {k: v for k, v in found.items() if k != "spent"} == {k: v for k, v in wanted.items() if k != "spent"}
        assert found["spent"]["completions"] == wanted["spent"]["completions"] <= 800
        contents = contents_of(log_dir)
        completions = contents.all(CompletionRecord)
        assert contents.run is not None
        assert len({r.key for r in completions}) == len(completions) == found["spent"]["completions"]
        with Ledger.open(log_dir, fingerprint=contents.run.fingerprint) as ledger:
            assert sum(map(len, ledger.stored.values())) == len(completions) and ledger.spent.finished
    print(f"{died} kills in {runs} runs: {redone} requests asked again, all in flight; at most {lost_most} per kill")


@pytest.mark.slow
def test_dollars_hold_across_kills(tmp_path: Path) -> None:
    rng = random.Random(0)
    prices = {"input_cost_per_token": PRICE, "output_cost_per_token": PRICE, "max_tokens": 40}
    cap = 50.0
    with Loopback(adder, latency=0.02) as server:
        for _ in range(4):
            victim = Victim(lm(server, **prices), str(tmp_path / "run"), str(tmp_path / "r.json"), cap)
            before = server.requests
            while victim.alive and server.requests < before + 10:
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.02))
            victim.kill()
        victim = Victim(lm(server, **prices), str(tmp_path / "run"), str(tmp_path / "r.json"), cap)
        assert victim.wait() == 0
        while server.in_flight:
            time.sleep(0.002)
        billed = (server.prompt_tokens + server.completion_tokens) * PRICE
    spent = json.loads((tmp_path / "r.json").read_text())["spent"]
    assert billed <= spent["usd"] + 1e-9, "what was in flight at a kill is billed and must be counted"
    assert spent["usd"] <= cap
    assert spent["prompt_tokens"] + spent["completion_tokens"] >= server.prompt_tokens + server.completion_tokens


@pytest.mark.parametrize(
    "kind", ["metric", *(pytest.param(k, marks=pytest.mark.slow) for k in ("cached", "configured", "objective"))]
)
def test_verdicts_that_were_paid_before_a_kill_are_not_asked_for_again(kind: str, tmp_path: Path) -> None:
    """The second step of the judge does not come before the kill: all first steps are paid, and nothing is scored."""
    stuck = threading.Event()
    answered: list[str] = []

    def answer(body: dict[str, Any], i: int) -> str:
        if "draft" in outputs(body):
            answered.append(json.dumps(body["messages"]))
            return chat(draft=f"d{i}")
        return chat(verdict="yes") if "verdict" in outputs(body) else adder(body, i)

    def latency(body: dict[str, Any]) -> float:
        if "verdict" in outputs(body):
            stuck.wait(30)
        return 0.0

    with Loopback(answer, latency=latency) as server:
        arguments = kind, {"api_base": server.base, "api_key": "sk-x", "cache": False}, str(tmp_path)
        victim = Victim(*arguments, target=judge_once)
        deadline, before = time.monotonic() + 60, -1
        while time.monotonic() < deadline and (len(answered) < 10 or len(answered) > before):
            before = len(answered)
            time.sleep(0.5)  # until nothing moves any more
        assert len(answered) >= 10
        kept = {r.key for r in read_ledger(tmp_path)[1] if isinstance(r, VerdictRecord)}
        # Equal questions of a judge that caches are one request, and a verdict for each completion.
        assert len(kept) == len(answered) or (kind == "cached" and len(kept) > len(answered))
        victim.kill()
        stuck.set()
        assert Victim(*arguments, target=judge_once).wait() == 0
        judged = [r for r in read_ledger(tmp_path)[1] if isinstance(r, ScoreRecord)]
        spent = read_ledger(tmp_path)[1][-1]
    asked = len(set(answered)) if kind == "cached" else len(judged)
    print(f"{kind}: {before} verdicts were paid before the kill, {len(answered) - asked} were asked for again")
    assert len(answered) == asked and len(judged) > before
    assert isinstance(spent, SpentRecord) and spent.finished
