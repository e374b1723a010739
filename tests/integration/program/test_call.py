"""Every way in which DSPy calls a program: results, usage, callbacks, trace, history, threads."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

import iapo_dspy
from iapo_dspy import BestOfN, CompiledProgram, MajorityVote, Objective, Preference
from iapo_dspy.bandit.stopping.rules import exact_waves
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, Stop
from tests.support.deployed import deploy
from tests.support.listening import Listening
from tests.support.loopback import Loopback
from tests.support.worlds import (
    CAREFUL,
    QUICK,
    TwoSteps,
    adder,
    after_ideas,
    after_reasoning,
    checked,
    exact,
    questions,
)

N = 8
ARMS = {"quality": Arm(0, N, Stop(waves=exact_waves(N))), "thrifty": Arm(1, 1)}


class Around(dspy.Module):
    """An outer module around a compiled one."""

    def __init__(self, inner: dspy.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=self.inner(question=question).answer)

    async def aforward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=(await self.inner.acall(question=question)).answer)


STUDENTS: dict[str, tuple[Callable[[], dspy.Module], list[Any]]] = {
    "predict": (lambda: dspy.Predict("question -> answer"), [CAREFUL, QUICK]),
    "thought": (lambda: dspy.ChainOfThought("question -> answer"), [CAREFUL, QUICK]),
    "two steps": (TwoSteps, [{"ask": CAREFUL}, {"ask": QUICK}]),
}


@pytest.fixture(scope="module", params=sorted(STUDENTS))
def deployed(request: pytest.FixtureRequest) -> Iterator[tuple[Loopback, CompiledProgram]]:
    make, candidates = STUDENTS[request.param]
    with Loopback(after_ideas(after_reasoning(adder)), latency=0.002) as server, dspy.context(lm=server.lm(seed=1)):
        yield server, deploy(make(), MajorityVote("answer"), candidates, ARMS)


def spent(server: Loopback) -> tuple[int, int]:
    return server.prompt_tokens, server.completion_tokens


def since(server: Loopback, before: tuple[int, int]) -> tuple[int, int]:
    return server.prompt_tokens - before[0], server.completion_tokens - before[1]


def tokens(usage: dict[str, Any]) -> tuple[int, int]:
    return (
        sum(u["prompt_tokens"] for u in usage.values()),
        sum(u["completion_tokens"] for u in usage.values()),
    )


ENTRIES: dict[str, Callable[[dspy.Module, str], dspy.Prediction]] = {
    "call": lambda p, q: p(question=q),
    "acall": lambda p, q: asyncio.run(p.acall(question=q)),
    "asyncify": lambda p, q: asyncio.run(dspy.asyncify(p)(question=q)),
    "batch": lambda p, q: p.batch([dspy.Example(question=q).with_inputs("question")], disable_progress_bar=True)[0],
    "parallel": lambda p, q: dspy.Parallel(num_threads=2, disable_progress_bar=True)([(p, {"question": q})])[0],
}


# -- usage


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_usage_is_what_was_sent_counted_once(deployed: Any, entry: str) -> None:
    server, program = deployed
    for subject in (program, Around(program)):
        before = spent(server)
        with dspy.context(lm=server.lm(seed=1), track_usage=True):
            prediction = ENTRIES[entry](subject, "3 + 4")
        assert prediction.answer == "7"
        assert tokens(prediction.get_lm_usage()) == since(server, before) > (0, 0)


def test_a_tracker_around_several_calls_sees_all_of_them(deployed: Any) -> None:
    server, program = deployed

    async def gathered() -> None:
        await asyncio.gather(*(program.acall(question=f"{i} + {i}") for i in range(5)))

    before = spent(server)
    with dspy.context(lm=server.lm(seed=1)), dspy.track_usage() as tracker:
        program(question="3 + 4", preference="thrifty")
        asyncio.run(gathered())
        Around(program)(question="5 + 6")
    assert tokens(tracker.get_total_tokens()) == since(server, before)


def test_usage_of_the_report_is_that_of_the_tracker(deployed: Any) -> None:
    server, program = deployed
    with dspy.context(lm=server.lm(seed=1), track_usage=True):
        prediction = program(question="3 + 4")
    report = prediction.iapo
    assert tokens(prediction.get_lm_usage()) == pytest.approx((report.prompt_tokens, report.completion_tokens))
    assert report.planned == N and report.n in ARMS["quality"].stop.waves  # type: ignore[union-attr]


@pytest.mark.slow
def test_failed_calls_are_counted_too() -> None:
    with Loopback(lambda body, i: "garbage" if i % 2 else adder(body, i)) as server:
        with dspy.context(lm=server.lm(seed=1), track_usage=True):
            program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [CAREFUL], {"q": Arm(0, 6)})
            before = spent(server)
            prediction = program(question="3 + 4")
    assert len(prediction.iapo.failures) == 3
    assert tokens(prediction.get_lm_usage()) == since(server, before)


# -- callbacks


@pytest.mark.parametrize("entry", ["call", "acall", "parallel"])
def test_callbacks_pair_up_and_nest(deployed: Any, entry: str) -> None:
    server, program = deployed
    heard = Listening()
    outer = Around(program)
    with dspy.context(lm=server.lm(seed=1), callbacks=[heard]):
        prediction = ENTRIES[entry](outer, "3 + 4")
    assert all(call.ends == 1 and call.exception is None for call in heard.calls.values())
    compiled = [(key, c) for key, c in heard.calls.items() if c.instance is program]
    assert len(compiled) == 1
    call_id, call = compiled[0]
    assert call.inputs["kwargs"] == {"question": "3 + 4"} and call.outputs.answer == prediction.answer == "7"
    assert call.parent is not None and heard.calls[call.parent].instance is outer
    drawn = call.outputs.iapo.n
    predictors = len(program.policy.student.named_predictors())
    assert heard.counts["lm"] == heard.counts["format"] == heard.counts["parse"] == drawn * predictors

    def root(key: str) -> str:
        path = [key]
        while (parent := heard.calls[path[-1]].parent) is not None:
            path.append(parent)
        assert call_id in path
        return path[-1]

    roots = {root(key) for key, c in heard.calls.items() if c.kind in ("lm", "format", "parse")}
    assert roots == {key for key, c in heard.calls.items() if c.instance is outer}
    (asked,) = {id(c.instance.model) for c in heard.calls.values() if c.kind == "lm"}
    assert asked == id(next(c for c in heard.calls.values() if c.kind == "lm").instance.model)


def test_callbacks_cost_no_further_requests_and_change_no_answer(deployed: Any) -> None:
    server, program = deployed
    answers = []
    for callbacks in ([], [Listening()]):
        before = server.requests
        with dspy.context(lm=server.lm(seed=1), callbacks=callbacks):
            prediction = program(question="21 + 43")
        answers.append((prediction.answer, prediction.iapo.votes, server.requests - before))
    assert answers[0] == answers[1]


def test_callbacks_of_a_module_and_of_an_lm_are_heard_once(deployed: Any) -> None:
    server, program = deployed
    heard_module, heard_lm = Listening(), Listening()
    twin = program.deepcopy()
    twin.callbacks = [heard_module]
    lm = server.lm(seed=1)
    lm.callbacks = [heard_lm]
    with dspy.context(lm=lm):
        twin(question="3 + 4", preference="thrifty")
    assert heard_module.counts["module"] == 1
    assert heard_lm.counts == {"lm": len(program.policy.student.named_predictors())}


def test_a_call_that_raises_ends_its_callbacks_with_the_error(deployed: Any) -> None:
    server, program = deployed
    heard = Listening()
    with dspy.context(lm=server.lm(seed=1), callbacks=[heard]), pytest.raises(iapo_dspy.errors.UnknownPreference):
        program(question="3 + 4", preference="no such")
    (call,) = heard.calls.values()
    assert isinstance(call.exception, iapo_dspy.errors.UnknownPreference)


# -- trace


@pytest.mark.parametrize("entry", ["call", "acall"])
def test_the_trace_has_the_winners_calls_by_the_programs_own_predictors(deployed: Any, entry: str) -> None:
    server, program = deployed
    outer = Around(program)
    with dspy.context(lm=server.lm(seed=1), trace=[]):
        prediction = ENTRIES[entry](outer, "3 + 4")
        trace = list(dspy.settings.trace)
    own = {id(p): name for name, p in outer.named_predictors()}
    names = [own[id(predictor)] for predictor, _, _ in trace]
    steps = [name for name, _ in program.policy.student.named_predictors()]
    assert [n.removeprefix("inner.arms[0]").lstrip(".") or "self" for n in names] == steps
    assert trace[-1][1]["question"] == "3 + 4" and trace[-1][2].answer == prediction.answer


def test_nothing_is_traced_where_tracing_is_off(deployed: Any) -> None:
    server, program = deployed
    with dspy.context(lm=server.lm(seed=1), trace=None):
        assert program(question="3 + 4").answer == "7"
        assert dspy.settings.trace is None


@pytest.mark.slow
def test_a_full_trace_forgets_its_oldest_entries(deployed: Any) -> None:
    server, program = deployed
    with dspy.context(lm=server.lm(seed=1), trace=[], max_trace_size=2):
        for i in range(4):
            program(question=f"{i} + 4")
        assert len(dspy.settings.trace) == 2
        assert dspy.settings.trace[-1][1]["question"] == "3 + 4"


# -- history


def test_history_has_each_request_once_everywhere(deployed: Any) -> None:
    server, program = deployed
    outer = Around(program)
    lm = server.lm(seed=1)
    before, own = server.requests, len(program.history)
    with dspy.context(lm=lm):
        outer(question="3 + 4")
    sent = server.requests - before
    assert len(lm.history) == len(outer.history) == len(program.history) - own == sent
    entry = lm.history[-1]
    assert "3 + 4" in str(entry["messages"]) and entry["usage"]["completion_tokens"] > 0
    assert not any("secret" in str(v) for v in entry["kwargs"].values())
    shown = io.StringIO()
    outer.inspect_history(n=1, file=shown)
    assert "3 + 4" in shown.getvalue() and "other completions" in shown.getvalue()


def test_history_can_be_off(deployed: Any) -> None:
    server, program = deployed
    lm = server.lm(seed=1)
    own = len(program.history)
    with dspy.context(lm=lm, disable_history=True):
        program(question="3 + 4")
    assert not lm.history and len(program.history) == own


# -- threads


def test_many_threads_share_one_program_and_nothing_is_mixed(deployed: Any) -> None:
    server, program = deployed
    sums = [(i, 2 * i + 1) for i in range(1, 49)]
    start = threading.Barrier(16)

    def work(share: int) -> list[tuple[str, str, dspy.Prediction, list[Any]]]:
        found = []
        with dspy.context(lm=server.lm(seed=1), trace=[], track_usage=True):
            start.wait()
            for i, (a, b) in enumerate(sums[share::16]):
                name = "thrifty" if (i + share) % 2 else "quality"
                dspy.settings.trace.clear()
                prediction = program(question=f"{a} + {b}", preference=name)
                found.append((f"{a} + {b}", name, prediction, list(dspy.settings.trace)))
        return found

    before = spent(server)
    with ThreadPoolExecutor(16) as pool:
        results = [row for rows in pool.map(work, range(16)) for row in rows]
    assert len(results) == len(sums)
    used = [tokens(p.get_lm_usage()) for _, _, p, _ in results]
    assert (sum(u[0] for u in used), sum(u[1] for u in used)) == since(server, before)
    for question, name, prediction, trace in results:
        a, b = map(int, question.split(" + "))
        assert prediction.iapo.preference == name and prediction.iapo.prompt == ARMS[name].prompt
        right, wrong = str(a + b), str(a + b + 10)
        assert prediction.answer == (right if name == "quality" or (a + b) % 2 == 0 else wrong)
        assert {inputs["question"] for _, inputs, _ in trace} == {question}
        assert trace[-1][2].answer == prediction.answer


async def test_gathered_tasks_keep_their_own_settings(deployed: Any) -> None:
    server, program = deployed
    lms = [server.lm(seed=1) for _ in range(6)]

    async def one(i: int) -> tuple[str, str]:
        with dspy.context(lm=lms[i]), iapo_dspy.using_preference("thrifty" if i % 2 else "quality"):
            prediction = await program.acall(question=f"{2 * i} + {2 * i}")
        return prediction.answer, prediction.iapo.preference

    found = await asyncio.gather(*(one(i) for i in range(6)))
    assert found == [(str(4 * i), "thrifty" if i % 2 else "quality") for i in range(6)]
    assert all(lm.history and all(f"{2 * i} + {2 * i}" in str(h["messages"]) for h in lm.history)
               for i, lm in enumerate(lms))  # fmt: skip


def test_evaluate_scores_and_returns_predictions(deployed: Any) -> None:
    server, program = deployed
    test = questions(12, start=100)
    evaluate = dspy.Evaluate(devset=test, metric=exact, num_threads=4, display_progress=False)
    with dspy.context(lm=server.lm(seed=1)):
        result = evaluate(program)
        thrifty = evaluate(program.with_preference("thrifty"))
    assert result.score > 80 and thrifty.score == 50  # QUICK is right about even sums
    assert [e.question for e, _, _ in result.results] == [e.question for e in test]
    assert all(p.iapo.preference == "quality" for _, p, _ in result.results)


def test_fields_are_the_students_only(deployed: Any) -> None:
    server, program = deployed
    with dspy.context(lm=server.lm(seed=1)):
        prediction = program(question="3 + 4")
    assert "iapo" not in prediction.toDict() and prediction.iapo.n
    assert dspy.majority(prediction).answer == dspy.majority([prediction, prediction]).answer == "7"
    assert prediction.copy(answer="8").iapo == prediction.iapo
    assert not hasattr(type(prediction)(answer="7"), "iapo")


# -- the preference of a block


def test_a_block_sets_the_preference_of_every_program_within(deployed: Any) -> None:
    server, program = deployed
    outer = Around(program)
    with dspy.context(lm=server.lm(seed=1), trace=[]):
        with iapo_dspy.using_preference("thrifty"):
            outer(question="3 + 4")
            assert dspy.settings.trace[-1][0] in program.arms[1].predictors()
            assert program(question="3 + 4", preference="quality").iapo.preference == "quality"  # the call goes first
            assert program.with_preference("quality")(question="3 + 4").iapo.preference == "thrifty"  # the block does
            with iapo_dspy.using_preference(None):
                assert program(question="3 + 4").iapo.preference == "quality"
            rows = program.batch(questions(4, start=2), num_threads=2, disable_progress_bar=True)
            assert {p.iapo.preference for p in rows} == {"thrifty"}
            assert asyncio.run(program.acall(question="3 + 4")).iapo.preference == "thrifty"
            assert asyncio.run(dspy.asyncify(program)(question="3 + 4")).iapo.preference == "thrifty"
        assert program(question="3 + 4").iapo.preference == "quality"
        with iapo_dspy.using_preference(Preference(cost=1.0)):  # the weights of thrifty
            assert program(question="3 + 4").iapo.n == 1


def test_a_block_of_no_preference_is_refused_at_once(deployed: Any) -> None:
    server, program = deployed
    with pytest.raises(ConfigurationError, match="using_preference"), iapo_dspy.using_preference(3):  # type: ignore[arg-type]
        pass
    before = server.requests
    with iapo_dspy.using_preference("best"), pytest.raises(iapo_dspy.errors.UnknownPreference, match="quality"):
        program(question="3 + 4")
    assert server.requests == before


# -- best of n


@pytest.mark.slow
def test_best_of_n_has_the_same_manners() -> None:
    strategy = BestOfN([Objective("right", checked)])
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1), track_usage=True, trace=[]):
        arms = {"q": Arm(0, 6, Stop(waves=(2, 6), threshold=1.0))}
        program = deploy(dspy.Predict("question -> answer"), strategy, [CAREFUL], arms, metric=None)
        before = spent(server)
        prediction = program(question="8 + 9")
        assert tokens(prediction.get_lm_usage()) == since(server, before)
        assert prediction.answer == "17" == dspy.settings.trace[-1][2].answer
        assert (prediction.iapo.n, prediction.iapo.stopped) in {(2, "threshold"), (2, "settled"), (6, None)}
