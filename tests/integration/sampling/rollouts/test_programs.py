"""Programs of every shape: merged requests, no deadlocks, nothing of the user's changed."""

from __future__ import annotations

import asyncio
import copy
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM
from dspy.utils.usage_tracker import track_usage

from iapo_dspy.sampling.concurrency.loop import await_on_loop, run_on_loop
from iapo_dspy.sampling.concurrency.threads import WORKERS
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.loopback import Faults, Loopback, chat
from tests.support.sampling import draw

QUESTION = {"question": "q"}


def answer(body: dict[str, Any], i: int) -> str:
    return chat(answer=f"a{i}", draft=f"d{i}", reasoning="r")


class TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> draft")
        self.second = dspy.Predict("question, draft -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.second(question=question, draft=self.first(question=question).draft)


def test_first_step_is_merged_and_second_steps_run_together() -> None:
    with Loopback(answer, latency=0.1) as server:
        rollouts = draw(Sampler(lm=server.lm(), patience=60), TwoSteps(), QUESTION, 6, key=0)
    assert [r.ok for r in rollouts] == [True] * 6
    assert [body.get("n", 1) for body in server.bodies] == [6] + [1] * 6
    assert server.max_in_flight == 6
    assert sum(r.usage.prompt_tokens for r in rollouts) == pytest.approx(server.prompt_tokens)
    assert sum(r.usage.completion_tokens for r in rollouts) == pytest.approx(server.completion_tokens)


def test_equal_second_steps_are_merged_too() -> None:
    with Loopback(lambda body, i: chat(draft="same", answer=str(i))) as server:
        rollouts = draw(Sampler(lm=server.lm(seed=3)), TwoSteps(), QUESTION, 5, key=0)
    assert [body["n"] for body in server.bodies] == [5, 5]
    assert len({r.prediction.answer for r in rollouts if r.prediction}) == 5


def test_with_a_seed_the_requests_do_not_depend_on_timing() -> None:
    class Three(TwoSteps):
        def __init__(self) -> None:
            super().__init__()
            self.third = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            super().forward(question)
            return self.third(question=question)

    def run(seed: int) -> list[tuple[int, int]]:
        rng = random.Random(seed)

        def slow(body: dict[str, Any], i: int) -> str:
            time.sleep(rng.uniform(0, 0.1))
            return answer({}, body["seed"])

        with Loopback(slow) as server:
            rollouts = draw(Sampler(lm=server.lm(seed=1)), Three(), QUESTION, 4, key=0)
            assert all(r.ok for r in rollouts)
            return sorted((body.get("n", 1), body["seed"]) for body in server.bodies)

    first = run(1)
    assert [n for n, _ in first] == [1, 1, 1, 1, 4, 4] or [n for n, _ in first] == [4, 4, 4]
    assert run(2) == first


def test_rollout_that_raises_does_not_hold_up_the_others() -> None:
    class Fussy(TwoSteps):
        def forward(self, question: str) -> dspy.Prediction:
            draft = self.first(question=question).draft
            if draft in ("d0", "d1"):
                raise ValueError(f"no {draft}\nand more")
            return self.second(question=question, draft="x")

    with Loopback(answer) as server:
        rollouts = draw(Sampler(lm=server.lm(), patience=60), Fussy(), QUESTION, 5, key=0)
    assert [body.get("n", 1) for body in server.bodies] == [5, 3]
    assert sorted(r.failure or "" for r in rollouts) == ["", "", "", "ValueError: no d0", "ValueError: no d1"]
    assert [r.error for r in rollouts if not r.ok] == [True, True]


def test_program_with_threads_of_its_own() -> None:
    class Threaded(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.solve = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            import contextvars

            with ThreadPoolExecutor(2) as pool:
                calls = [
                    pool.submit(contextvars.copy_context().run, lambda i=i: self.solve(question=f"{question}{i}"))
                    for i in range(2)
                ]
                return dspy.Prediction(answer="".join(c.result().answer for c in calls))

    with Loopback(answer) as server:
        rollouts = draw(Sampler(lm=server.lm()), Threaded(), QUESTION, 4, key=0)
    assert [r.ok for r in rollouts] == [True] * 4
    assert server.completions == 8


def test_program_with_threads_that_lose_the_context() -> None:
    class Bare(dspy.Module):
        def __init__(self, lm: Any) -> None:
            super().__init__()
            self.solve = dspy.Predict("question -> answer")
            self.solve.lm = lm

        def forward(self, question: str) -> dspy.Prediction:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(lambda: self.solve(question=question)).result()

    with Loopback(answer) as server:
        lm = server.lm()
        sampler = Sampler(patience=0.2)
        rollouts = draw(sampler, Bare(lm), QUESTION, 3, key=0)
        assert [r.ok for r in rollouts] == [True] * 3
        assert sampler.meter.spent.requests == 3 == server.requests


def test_program_that_holds_a_lock_while_it_calls() -> None:
    class Locked(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.solve = dspy.Predict("question -> answer")
            self.lock = threading.Lock()

        def forward(self, question: str) -> dspy.Prediction:
            with self.lock:
                return self.solve(question=question)

    with Loopback(answer) as server:
        rollouts = draw(Sampler(lm=server.lm(), patience=0.1), Locked(), QUESTION, 3, key=0)
    assert [r.ok for r in rollouts] == [True] * 3


class OnlyAsync(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        both = await asyncio.gather(*(self.solve.acall(question=f"{question}{i}") for i in range(2)))
        return dspy.Prediction(answer="".join(p.answer for p in both))


def test_program_that_is_only_async() -> None:
    with Loopback(answer) as server:
        rollouts = draw(Sampler(lm=server.lm()), OnlyAsync(), QUESTION, 4, key=0)
    assert [r.ok for r in rollouts] == [True] * 4
    assert server.completions == 8


def test_plain_function_and_wrong_result() -> None:
    solve = dspy.Predict("question -> answer")
    with Loopback(answer) as server:
        sampler = Sampler(lm=server.lm())
        good = draw(sampler, lambda question: solve(question=question), QUESTION, 3, key=0)
        bad = draw(sampler, lambda question: "text", QUESTION, 2, key=0)
    assert [r.ok for r in good] == [True] * 3
    assert server.requests == 1
    assert [r.failure for r in bad] == ["TypeError: the program returned str, not a Prediction"] * 2


@pytest.mark.parametrize("wrap", [False, True], ids=["deepcopy", "unpicklable"])
def test_bound_lms_are_replaced_in_a_copy_only(wrap: bool) -> None:
    class Student(TwoSteps):
        def __init__(self) -> None:
            super().__init__()
            self.steps = [dspy.ChainOfThought("question -> answer", n=3)]
            if wrap:
                self.lock = threading.Lock()

        def forward(self, question: str) -> dspy.Prediction:
            super().forward(question)
            return self.steps[0](question=question)

    with Loopback(answer) as server, Loopback(answer) as other:
        program = Student()
        program.second.lm = other.lm()
        lms = [p.lm for p in program.predictors()]
        sampler = Sampler(lm=server.lm())
        rollouts = draw(sampler, program, QUESTION, 4, key=0, record=True)
        again = draw(sampler, program, QUESTION, 4, key=1)
        program.second.signature = program.second.signature.with_instructions("Changed.")
        draw(sampler, program, QUESTION, 1, key=2)
        assert "Changed." in str(other.bodies[-1]["messages"])
    assert [r.ok for r in [*rollouts, *again]] == [True] * 8
    assert server.bodies[0]["n"] == 4
    assert server.completions == 2 * 9
    assert other.completions == 9
    assert [p.lm for p in program.predictors()] == lms
    assert program.steps[0].predict.config == {"n": 3}
    assert [step[0] for step in rollouts[0].trace] == program.predictors()


def test_react_and_best_of_n_run() -> None:
    def reply(body: dict[str, Any], i: int) -> str:
        return chat(next_thought="t", next_tool_name="finish", next_tool_args="{}", reasoning="r", answer=str(i))

    react = dspy.ReAct("question -> answer", tools=[])
    best = dspy.BestOfN(dspy.Predict("question -> answer"), N=2, reward_fn=lambda a, p: 0.0, threshold=1.0)
    with Loopback(reply) as server:
        sampler = Sampler(lm=server.lm())
        rollouts = draw(sampler, react, QUESTION, 4, key=0)
        assert [r.ok for r in rollouts] == [True] * 4
        assert [body.get("n", 1) for body in server.bodies] == [4, 4]
        rollouts = draw(sampler, best, QUESTION, 3, key=0)
        assert [r.ok for r in rollouts] == [True] * 3
        assert server.completions == 8 + 6


def test_sampler_inside_a_rollout() -> None:
    """A compiled program may itself be part of a student."""

    class Nested(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TwoSteps()

        def forward(self, question: str) -> dspy.Prediction:
            drawn = draw(Sampler(), self.inner, {"question": question}, 2, key="inner", record=True)
            plain = draw(Sampler(), dspy.Predict("question -> answer"), {"question": question}, 2, key=1)
            return dspy.Prediction(answer=str([r.ok for r in [*drawn, *plain]]))

    with Loopback(answer) as server:
        sampler = Sampler(lm=server.lm())
        rollouts = draw(sampler, Nested(), QUESTION, 3, key=0)
    assert {r.prediction.answer for r in rollouts if r.prediction} == {"[True, True, True, True]"}
    assert server.completions == 3 * (4 + 2)
    assert sampler.meter.spent.requests == server.requests
    assert server.bodies[0]["n"] == 6  # the six first steps of three rollouts


def test_one_sampler_for_the_outer_and_the_inner_program() -> None:
    shared = Sampler(max_concurrency=1, patience=60)

    class Nested(dspy.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, question: str) -> dspy.Prediction:
            drawn = draw(shared, self.inner, {"question": question}, 10, key="inner")
            return dspy.Prediction(answer=str(sum(r.ok for r in drawn)))

    for inner in (dspy.Predict("question -> answer"), TwoSteps()):
        with Loopback(lambda body, i: chat(draft="same", answer="a")) as server, dspy.context(lm=server.lm()):
            rollouts = draw(shared, Nested(inner), QUESTION, 10, key=0)
            assert {r.prediction.answer for r in rollouts if r.prediction} == {"10"}
            assert [body["n"] for body in server.bodies] == [100] * len(inner.predictors())
            assert server.max_in_flight == 1


@pytest.mark.slow
def test_many_pulls_at_once_with_fewer_threads_than_rollouts() -> None:
    async def pulls(sampler: Sampler) -> list[Any]:
        program = TwoSteps()
        return await asyncio.gather(*(sampler.sample(program, QUESTION, 40, key=i) for i in range(5)))

    with Loopback(answer) as server:
        sampler = Sampler(lm=server.lm(), max_concurrency=8, patience=60)
        drawn = run_on_loop(pulls(sampler))
    assert [len(rollouts) for rollouts in drawn] == [40] * 5
    assert all(r.ok for rollouts in drawn for r in rollouts)
    assert server.requests == 5 * 41
    assert server.max_in_flight <= 8


async def test_inside_a_running_loop() -> None:
    with Loopback(answer) as server:
        sampler = Sampler(lm=server.lm())
        here = draw(sampler, TwoSteps(), QUESTION, 3, key=0)
        awaited = await asyncio.gather(
            *(await_on_loop(sampler.sample(TwoSteps(), QUESTION, 3, key=i)) for i in range(3))
        )
    assert all(r.ok for rollouts in [here, *awaited] for r in rollouts)


async def test_cancelling_the_wait_cancels_the_work() -> None:
    with Loopback(answer, latency=5.0) as server:
        for program in (TwoSteps(), dspy.Predict("question -> answer")):
            sampler = Sampler(lm=server.lm())
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(await_on_loop(sampler.sample(program, QUESTION, 3, key=0)), 0.5)
            await asyncio.sleep(0.3)
            assert WORKERS.busy == 0
            assert sampler.meter.spent.requests == 1


def test_settings_of_the_caller_reach_the_rollouts() -> None:
    def reply(body: dict[str, Any], i: int) -> str:
        return f'{{"draft": "d", "answer": "{i}"}}'

    for program in (dspy.Predict("question -> answer"), TwoSteps()):
        lm = "openai/gpt-4o-mini"
        with Loopback(reply) as server, dspy.context(lm=server.lm(lm), adapter=dspy.JSONAdapter()):
            rollouts = draw(Sampler(), program, QUESTION, 3, key=0)
            assert all(r.ok for r in rollouts)
            assert server.bodies[0]["response_format"]["type"] == "json_schema"


def test_two_step_adapter_asks_its_own_lm_within_the_meter() -> None:
    with Loopback(answer) as server, Loopback(answer) as extraction:
        sampler = Sampler()
        with dspy.context(lm=server.lm(), adapter=dspy.TwoStepAdapter(extraction.lm())):
            rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 3, key=0)
    assert [r.failure for r in rollouts] == [None] * 3
    assert server.requests == 1
    assert sampler.meter.spent.requests == server.requests + extraction.requests


@pytest.mark.parametrize("program", [dspy.ChainOfThought("question -> answer"), TwoSteps()], ids=["fast", "general"])
def test_recorded_like_an_lm_call_of_dspy(program: Any) -> None:
    with Loopback(answer) as server:
        lm = server.lm()
        reference = server.lm(engine="litellm")
        with dspy.context(lm=reference):
            program(**QUESTION)
        calls = server.requests
        with dspy.context(lm=lm, track_usage=True), track_usage() as tracker:
            rollouts = draw(Sampler(), program, QUESTION, 4, key=0, record=True)
        requests = server.requests - calls
    assert len(lm.history) == requests
    assert reference.history[0].keys() - lm.history[0].keys() <= {"cost_details"}
    assert "api_key" not in lm.history[0]["kwargs"]
    assert len(lm.history[0]["outputs"]) == 4
    usage = tracker.get_total_tokens()[lm.model]
    assert usage["completion_tokens"] == pytest.approx(sum(r.usage.completion_tokens for r in rollouts))
    predictors = program.predictors()
    for rollout in rollouts:
        assert [step[0] for step in rollout.trace] == predictors
        assert rollout.trace[0][1] == QUESTION
        assert rollout.prediction is not None and rollout.trace[-1][2].answer == rollout.prediction.answer


@pytest.mark.parametrize("program", [dspy.ChainOfThought("question -> answer"), TwoSteps()], ids=["fast", "general"])
def test_nothing_is_recorded_while_compiling(program: Any) -> None:
    seen: list[str] = []

    class Spy(dspy.utils.BaseCallback):
        def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append("lm")

        def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append("module")

    with Loopback(answer) as server:
        lm = server.lm()
        before = copy.copy(vars(lm)), dict(lm.kwargs), len(dspy.clients.base_lm.GLOBAL_HISTORY)
        with dspy.context(lm=lm, callbacks=[Spy()], trace=[]), track_usage() as tracker:
            rollouts = draw(Sampler(), program, QUESTION, 3, key=0)
            assert dspy.settings.trace == []
            assert not seen
            assert (vars(lm), lm.kwargs, len(dspy.clients.base_lm.GLOBAL_HISTORY)) == before
            assert not tracker.usage_data
            assert all(r.trace == () for r in rollouts)
            draw(Sampler(), program, QUESTION, 3, key=0, record=True)
            assert {"lm", "module"} == set(seen)


def test_dummy_lm() -> None:
    lm = DummyLM([{"answer": str(i), "draft": "x"} for i in range(20)])
    rollouts = draw(Sampler(lm=lm), dspy.Predict("question -> answer"), QUESTION, 4, key=0)
    assert sorted(r.prediction.answer for r in rollouts if r.prediction) == ["0", "1", "2", "3"]
    rollouts = draw(Sampler(lm=lm), TwoSteps(), QUESTION, 4, key=0, record=True)
    assert all(r.ok for r in rollouts)
    assert len(lm.history) == 8


@pytest.mark.filterwarnings("ignore:Implementing custom LMs")
def test_lm_subclass_with_forward_of_its_own() -> None:
    class Mine(dspy.BaseLM):
        calls = 0

        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            type(self).calls += 1
            assert kwargs.get("n") in (None, 1)
            import litellm

            return litellm.ModelResponse(
                choices=[{"message": {"role": "assistant", "content": chat(answer=str(self.calls))}}],
                usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
            )

    lm = Mine(model="mine")
    sampler = Sampler(lm=lm)
    rollouts = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 4, key=0)
    assert all(r.ok for r in rollouts)
    assert Mine.calls == 4
    assert sampler.meter.spent.completion_tokens == 8
    assert lm.history == []


def test_partial_failure_inside_a_program_is_the_programs_to_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careful(TwoSteps):
        def forward(self, question: str) -> dspy.Prediction:
            try:
                return super().forward(question)
            except Exception:  # noqa: BLE001
                return dspy.Prediction(answer="fallback")

    with Loopback(answer, faults=Faults(first=[400])) as server:
        rollouts = draw(Sampler(lm=server.lm(num_retries=0)), Careful(), QUESTION, 1, key=0)
    assert rollouts[0].prediction is not None and rollouts[0].prediction.answer == "fallback"
