"""How many requests a pull takes, and what happens when servers misbehave: counted on a real server on loopback."""

from __future__ import annotations

import time
from typing import Any

import dspy
import pytest

from iapo_dspy.errors import ConfigurationError, LMRefused
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Budget, Meter
from iapo_dspy.types import Decoding
from tests.support.loopback import Faults, Loopback, chat
from tests.support.sampling import draw

QUESTION = {"question": "What is 2 + 2?"}


def reasoned(body: dict[str, Any], i: int) -> str:
    return chat(reasoning="because", answer=f"a{i}")


class Around(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.solve(question=question.strip())


def answers(rollouts: list[Any]) -> list[str]:
    return [r.prediction.answer for r in rollouts if r.ok]


@pytest.mark.parametrize("model", ["openai/fake", "hosted_vllm/fake"])
@pytest.mark.parametrize(
    "make",
    [lambda: dspy.Predict("question -> answer"), lambda: dspy.ChainOfThought("question -> answer"), Around],
    ids=["predict", "cot", "around"],
)
def test_one_request_per_pull(make: Any, model: str) -> None:
    with Loopback(reasoned) as server:
        meter = Meter()
        sampler = Sampler(lm=server.lm(model), meter=meter)
        rollouts = draw(sampler, make(), QUESTION, 8, key=(0, 0))
    assert server.requests == 1
    assert server.bodies[0]["n"] == 8
    assert sorted(answers(rollouts)) == sorted(f"a{i}" for i in range(8))
    # Prompt tokens are paid once, completion tokens by each: the shares add up to what the server counted.
    assert sum(r.usage.prompt_tokens for r in rollouts) == pytest.approx(server.prompt_tokens)
    assert sum(r.usage.completion_tokens for r in rollouts) == pytest.approx(server.completion_tokens)
    assert meter.spent.prompt_tokens == server.prompt_tokens
    assert meter.spent.requests == 1


def test_general_and_fast_path_send_the_same_request() -> None:
    with Loopback(reasoned) as server:
        sampler = Sampler(lm=server.lm())
        draw(sampler, dspy.ChainOfThought("question -> answer"), QUESTION, 3, key=0)
        draw(sampler, Around(), QUESTION, 3, key=0)
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize(("given", "sent"), [(None, 1.0), (0.1, 0.1), (0.9, 0.9)])
def test_temperature_is_what_was_set(given: float | None, sent: float) -> None:
    """DSPy itself would silently make an unset or low temperature 0.7 as soon as n > 1."""
    with Loopback(reasoned) as server:
        program = dspy.Predict("question -> answer", n=4)
        draw(Sampler(lm=server.lm(temperature=given)), program, QUESTION, 4, key=0)
    assert server.bodies[0]["temperature"] == sent
    assert server.requests == 1


def test_decoding_wins_over_predictor_and_lm() -> None:
    with Loopback(reasoned) as server:
        program = dspy.Predict("question -> answer", temperature=0.5, top_p=0.5)
        decoding = Decoding(temperature=1.3, max_tokens=77)
        draw(Sampler(lm=server.lm(max_tokens=9)), program, QUESTION, 2, key=0, decoding=decoding)
    body = server.bodies[0]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (1.3, 0.5, 77)


def test_server_that_ignores_n_is_topped_up_and_remembered() -> None:
    with Loopback(reasoned, faults=Faults(ignore_n=True)) as server:
        sampler = Sampler(lm=server.lm())
        first = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 8, key=0)
        assert len(answers(first)) == 8
        assert server.requests == 8  # two that asked for several, then one by one
        second = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 5, key=1)
        assert len(answers(second)) == 5
        assert server.requests == 13
    assert all("n" not in body for body in server.bodies[2:])


def test_missing_choices_are_asked_for_again() -> None:
    with Loopback(reasoned, faults=Faults(first=["fewer"])) as server:
        rollouts = draw(Sampler(lm=server.lm()), dspy.Predict("question -> answer"), QUESTION, 6, key=0)
    assert len(set(answers(rollouts))) == 6
    assert [body.get("n", 1) for body in server.bodies] == [6, 1]


@pytest.mark.parametrize("faults", [Faults(refuse_n=True), Faults(greedy_n_is_400=True)], ids=["refused", "greedy"])
def test_server_that_refuses_n(faults: Faults) -> None:
    with Loopback(reasoned, faults=faults) as server:
        temperature = 0.0 if faults.greedy_n_is_400 else 1.0
        sampler = Sampler(lm=server.lm(temperature=temperature))
        rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 4, key=0)
    assert len(answers(rollouts)) == 4
    assert server.statuses[200] == 4


def test_server_that_takes_so_many_at_a_time_is_asked_for_half_until_it_takes_them() -> None:
    """llama.cpp's server takes n up to its slots; a small n that went well says nothing about a large one."""
    with Loopback(reasoned, faults=Faults(most_n=8), latency=0.1) as server:
        sampler = Sampler(lm=server.lm())
        for m in (4, 32, 17):
            rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, m, key=m)
            assert len(set(answers(rollouts))) == m
    assert server.completions == 4 + 32 + 17
    assert server.statuses[400] == 3  # 32, then the halves of what is left; each time a single one that works
    sizes = [body.get("n", 1) for body in server.bodies]
    assert sizes[:3] == [4, 32, 1] and sorted(sizes[3:5]) == [15, 16]
    assert all(size <= 8 for size in sizes[5:]) and len(sizes) <= 5 + 2 + 5 + 3 and server.max_in_flight >= 3


def test_a_bad_request_that_n_did_not_cause_is_not_asked_again_and_again() -> None:
    with Loopback(reasoned, faults=Faults(first=[400, 400])) as server:
        sampler = Sampler(lm=server.lm())
        rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 8, key=0)
        assert server.requests == 2 and all(r.error for r in rollouts)
        draw(sampler, dspy.Predict("question -> answer"), QUESTION, 8, key=1)
    assert [body.get("n", 1) for body in server.bodies] == [8, 1, 8]


def test_provider_without_n_gets_concurrent_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.requests.litellm.supports_n", lambda *_: False)
    with Loopback(reasoned, latency=0.2) as server:
        sampler = Sampler(lm=server.lm(), max_concurrency=3)
        rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 9, key=0)
    assert len(answers(rollouts)) == 9
    assert server.requests == 9
    assert server.max_in_flight == 3


@pytest.mark.parametrize("program", [dspy.Predict("question -> answer"), Around()], ids=["fast", "general"])
def test_unparseable_completion_fails_alone_and_costs_nothing_more(program: Any) -> None:
    with Loopback(reasoned, faults=Faults(first=["garbage"])) as server:
        rollouts = draw(Sampler(lm=server.lm()), program, QUESTION, 5, key=0)
    assert server.requests == 1
    failed = [r for r in rollouts if not r.ok]
    assert len(failed) == 1
    assert failed[0].failure is not None and failed[0].failure.startswith("AdapterParseError")
    assert not failed[0].error
    assert failed[0].text == "not what was asked for"
    assert failed[0].usage.completion_tokens > 0


def test_unset_field_of_a_type_fails_alone() -> None:
    with Loopback(lambda body, i: chat(count="many" if i == 1 else str(i))) as server:
        rollouts = draw(Sampler(lm=server.lm()), dspy.Predict("question -> count: int"), QUESTION, 3, key=0)
    assert [r.prediction.count if r.prediction else None for r in rollouts] == [0, None, 2]


@pytest.mark.parametrize("model", ["openai/fake", "hosted_vllm/fake"])
def test_retry_after_is_honoured_and_every_attempt_counted(model: str) -> None:
    with Loopback(reasoned, faults=Faults(first=[429, 429], retry_after="0.4")) as server:
        meter = Meter()
        sampler = Sampler(lm=server.lm(model, num_retries=3), meter=meter)
        rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 4, key=0)
    assert len(answers(rollouts)) == 4
    assert server.requests == 3 == meter.spent.requests
    assert all(later - earlier >= 0.4 for earlier, later in zip(server.times, server.times[1:], strict=False))


@pytest.mark.parametrize("model", ["openai/fake", "hosted_vllm/fake"])
@pytest.mark.parametrize("fault", [500, 503, 408, "truncated"])
def test_transient_failures_are_retried(fault: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)
    with Loopback(reasoned, faults=Faults(first=[fault])) as server:
        sampler = Sampler(lm=server.lm(model, num_retries=1))
        rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 2, key=0)
    assert len(answers(rollouts)) == 2
    assert server.requests == 2


def test_no_silent_retries_and_failures_are_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)
    with Loopback(reasoned, faults=Faults(first=[500] * 50)) as server:
        sampler = Sampler(lm=server.lm(num_retries=2))
        for program in (dspy.Predict("question -> answer"), Around()):
            before = server.requests
            rollouts = draw(sampler, program, QUESTION, 3, key=0)
            assert server.requests - before == 3
            assert [r.error for r in rollouts] == [True] * 3
            assert all("InternalServerError" in (r.failure or "") for r in rollouts)


def test_hanging_server_times_out() -> None:
    with Loopback(reasoned, faults=Faults(first=["hang"], hang=20)) as server:
        sampler = Sampler(lm=server.lm(num_retries=1), timeout=0.5)
        start = time.monotonic()
        rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 2, key=0)
    assert len(answers(rollouts)) == 2
    assert time.monotonic() - start < 6


@pytest.mark.parametrize("program", [dspy.Predict("question -> answer"), Around()], ids=["fast", "general"])
def test_wrong_key_raises_at_once(program: Any) -> None:
    with Loopback(reasoned, api_key="sk-the-right-one") as server:
        sampler = Sampler(lm=server.lm(num_retries=5))
        with pytest.raises(LMRefused, match=r"AuthenticationError.*API key"):
            draw(sampler, program, QUESTION, 4, key=0)
    assert server.requests == 1


def test_unknown_provider_raises() -> None:
    with pytest.raises(Exception, match="LLM Provider NOT provided"):
        draw(Sampler(lm=dspy.LM("nonsense/model")), dspy.Predict("question -> answer"), QUESTION, 4, key=0)


def test_usage_that_cannot_be_right_is_recounted() -> None:
    long = " ".join(["word"] * 40)
    for faults in (Faults(no_usage=True), Faults(ignore_n=False, miscount=True)):
        with Loopback(lambda body, i: chat(answer="x" if i else long), faults=faults) as server:
            meter = Meter()
            draw(Sampler(lm=server.lm(), meter=meter), dspy.Predict("question -> answer"), QUESTION, 30, key=0)
        assert meter.spent.completion_tokens > 100
        assert meter.spent.prompt_tokens > 50


def test_server_that_counts_the_first_choice_only_is_found_out() -> None:
    """Its count is larger than the number of choices, so that nothing about it looks wrong by itself."""

    def steps(body: dict[str, Any], i: int) -> str:
        return chat(answer=" ".join(["word"] * (8 + i % 9)))

    spent = {}
    for faults in (Faults(), Faults(count_first=True)):
        with Loopback(steps, faults=faults) as server:
            sampler = Sampler(lm=server.lm(input_cost_per_token=1e-6, output_cost_per_token=1e-6))
            for key in range(3):
                drawn = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 16, key=key)
            spent[faults.count_first] = (server.completion_tokens, sampler.meter.spent)
    truth, right = spent[False]
    assert right.completion_tokens == truth
    truth, mended = spent[True]
    assert mended.completion_tokens == pytest.approx(truth, rel=0.15)
    assert mended.usd == pytest.approx((mended.prompt_tokens + mended.completion_tokens) * 1e-6)
    assert sum(r.usage.completion_tokens for r in drawn) == pytest.approx(truth / 3, rel=0.15)


def test_dollars_come_from_the_user_or_the_table() -> None:
    with Loopback(reasoned) as server:
        priced = server.lm(input_cost_per_token=1e-3, output_cost_per_token=2e-3)
        for lm, prices in (
            (priced, (1e-3, 2e-3)),
            (server.lm("openai/gpt-4o-mini"), (1.5e-7, 6e-7)),
            (server.lm(), None),
        ):
            meter = Meter()
            before = server.prompt_tokens, server.completion_tokens
            rollouts = draw(Sampler(lm=lm, meter=meter), dspy.Predict("question -> answer"), QUESTION, 4, key=0)
            prompt, completion = server.prompt_tokens - before[0], server.completion_tokens - before[1]
            if prices is None:
                assert {r.usage.usd for r in rollouts} == {None}
                continue
            expected = prompt * prices[0] + completion * prices[1]
            assert meter.spent.usd == pytest.approx(expected)
            assert sum(r.usage.usd or 0 for r in rollouts) == pytest.approx(expected)
        assert all("input_cost_per_token" not in body for body in server.bodies)


def test_seeds_repeat_between_runs_and_differ_between_draws() -> None:
    def run(program: Any, seed: int | None) -> list[int | None]:
        with Loopback(reasoned, faults=Faults(first=["fewer", "fewer"])) as server:
            sampler = Sampler(lm=server.lm(seed=seed) if seed is not None else server.lm())
            for position in range(3):
                draw(sampler, program, QUESTION, 4, key=(0, position))
            return [body.get("seed") for body in server.bodies]

    for program in (dspy.Predict("question -> answer"), Around()):
        seeds = run(program, 7)
        assert seeds == run(program, 7)
        assert len(set(seeds)) == len(seeds)
        assert not set(seeds) & set(run(program, 8))
        assert set(run(program, None)) == {None}


def test_cache_is_never_used() -> None:
    with Loopback(reasoned) as server:
        sampler = Sampler(lm=server.lm(cache=True))
        drawn = [draw(sampler, dspy.Predict("question -> answer"), QUESTION, 2, key=0) for _ in range(3)]
    assert server.requests == 3
    assert len({a for rollouts in drawn for a in answers(rollouts)}) == 6


def test_token_budget_without_max_tokens_is_refused_before_any_call() -> None:
    with Loopback(reasoned) as server:
        program = dspy.Predict("question -> answer")
        for budget, lm in ((Budget(9, tokens=10**6), server.lm()), (Budget(9, usd=1.0), server.lm(max_tokens=10))):
            sampler = Sampler(lm=lm, meter=Meter(budget))
            with pytest.raises(ConfigurationError, match=r"max_tokens|input_cost_per_token"):
                draw(sampler, program, QUESTION, 2, key=0)
    assert server.requests == 0
