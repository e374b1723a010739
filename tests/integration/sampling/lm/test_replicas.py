"""Several replicas of one model behind LiteLLM's Router, on real servers on loopback."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, Budget, MajorityVote, Preference, ReplicatedLM
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.loopback import Faults, Loopback, chat

KEY = "sk-loopback-secret"


def over(*servers: Loopback, **settings: Any) -> ReplicatedLM:
    return ReplicatedLM("openai/fake", replicas=[s.base for s in servers], api_key=KEY, **settings)


def draw(lm: dspy.LM, count: int, concurrency: int = 16) -> tuple[list[Any], Sampler]:
    sampler = Sampler(lm=lm, max_concurrency=concurrency)
    program = dspy.Predict("question -> answer")

    async def pulls() -> list[Any]:
        drawn = await asyncio.gather(*(sampler.sample(program, {"question": f"q{i}"}, 2, key=i) for i in range(count)))
        return [r for rollouts in drawn for r in rollouts]

    return run_on_loop(pulls()), sampler


def test_two_replicas_work_side_by_side_and_share_evenly() -> None:
    with Loopback(latency=0.1) as first, Loopback(latency=0.1) as second:
        drawn, _ = draw(over(first, second), 96)
        assert all(r.ok for r in drawn)
        assert first.requests + second.requests == 96
        assert min(first.requests, second.requests) >= 40
        assert min(first.max_in_flight, second.max_in_flight) >= 6  # of 16 at a time: both are kept busy


def test_least_busy_spares_the_slow_replica() -> None:
    with Loopback(latency=0.05) as fast, Loopback(latency=0.4) as slow:
        drawn, sampler = draw(over(fast, slow), 60, concurrency=8)
        assert all(r.ok for r in drawn)
        assert fast.requests > 2 * slow.requests > 0
        assert fast.requests + slow.requests == 60 == sampler.meter.spent.requests
        assert {body["n"] for body in fast.bodies} == {2}
    assert {r.usage.usd for r in drawn} == {None}  # of an unknown model, as with any other LM


@pytest.mark.slow
def test_weights_are_shares() -> None:
    with Loopback() as heavy, Loopback() as light:
        replicas = [{"api_base": heavy.base, "weight": 9}, {"api_base": light.base, "weight": 1}]
        lm = ReplicatedLM("openai/fake", replicas=replicas, routing="weighted", api_key=KEY)
        drawn, _ = draw(lm, 120)
    assert all(r.ok for r in drawn)
    assert heavy.requests + light.requests == 120
    assert 90 <= heavy.requests < 120


def test_every_attempt_is_seen_and_no_retry_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)
    faults = Faults(first=[500] * 100)
    with Loopback(faults=faults) as first, Loopback(faults=faults) as second:
        drawn, sampler = draw(over(first, second, num_retries=2, cooldown=0), 1)
    assert not any(r.ok for r in drawn)
    assert first.requests + second.requests == 3 == sampler.meter.spent.requests


@pytest.mark.slow
def test_a_dead_replica_is_left_alone() -> None:
    with Loopback(latency=0.02) as alive, Loopback() as gone:
        lm = over(alive, gone, num_retries=3)
        gone.__exit__()  # a replica that refuses at once has the fewest requests in flight
        drawn, sampler = draw(lm, 60, concurrency=4)
        assert all(r.ok for r in drawn)
        assert alive.requests == 60
        assert sampler.meter.spent.requests < 80


def test_works_as_any_lm_does_and_keeps_its_keys() -> None:
    with Loopback(lambda body, i: chat(answer="yes"), api_key=KEY) as first, Loopback(api_key=KEY) as second:
        lm = over(first, temperature=0.5)
        program = dspy.Predict("question -> answer")
        for used in (lm, copy.deepcopy(lm), pickle.loads(pickle.dumps(lm)), lm.copy(temperature=0.9)):
            with dspy.context(lm=used):
                assert program(question="q").answer == "yes"
                assert asyncio.run(program.acall(question="q")).answer == "yes"
        assert [b["temperature"] for b in first.bodies] == [0.5] * 6 + [0.9] * 2
        assert len(lm.history) == 2
        state = over(first, second, temperature=0.5).dump_state()
        assert KEY not in json.dumps(state) and KEY not in repr(lm)
        again = dspy.BaseLM.load_state(state, allow_custom_lm_class=True)
        assert isinstance(again, ReplicatedLM)
        assert [r["api_base"] for r in again.replicas] == [first.base, second.base]
        assert again.kwargs["temperature"] == 0.5


@pytest.mark.slow
def test_compiles_over_replicas(tmp_path: Any) -> None:
    def agree(body: dict[str, Any], i: int) -> str:
        return chat(answer="yes")

    with Loopback(agree, latency=0.02) as first, Loopback(agree, latency=0.02) as second:
        examples = [dspy.Example(question=f"q{i}", answer="yes").with_inputs("question") for i in range(8)]
        optimizer = IAPO(
            metric=lambda example, pred, trace=None: example.answer == pred.answer,
            strategy=MajorityVote("answer"),
            preferences=[Preference("best", cost=0.0)],
            max_n=4,
            budget=Budget(64),
            candidates=["a", "b"],
            log_dir=tmp_path,
        )
        with dspy.context(lm=over(first, second)):
            program = optimizer.compile(dspy.Predict("question -> answer"), trainset=examples)
            assert program(question="q").answer == "yes"
        program.save(tmp_path / "program.json")
    assert first.requests and second.requests
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"replicas": []}, "replicas"),
        ({"replicas": "http://localhost/v1"}, "replicas"),
        ({"replicas": [{"api_key": "secret-value"}]}, "api_base"),
        ({"replicas": [{"api_base": "http://x", "wait": 1}]}, "wait"),
        ({"replicas": [{"api_base": "http://x", "weight": 0}]}, "weight"),
        ({"replicas": ["http://x"], "routing": "fastest"}, "least-busy"),
        ({"replicas": ["http://x"], "api_base": "http://y"}, "api_base"),
    ],
)
def test_wrong_settings_say_what_is_needed(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        ReplicatedLM("openai/fake", **settings)
    assert "secret-value" not in str(caught.value)
