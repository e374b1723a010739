"""`dspy.streamify` shows the winner, once, and no other answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.streaming import StatusMessage, StatusMessageProvider, StreamListener, StreamResponse

from iapo_dspy import BestOfN, CompiledProgram, MajorityVote, Objective
from iapo_dspy.errors import AllCompletionsFailed
from iapo_dspy.types import Arm, Stop
from tests.support.deployed import deploy
from tests.support.loopback import Loopback, chat
from tests.support.worlds import TwoSteps, outputs

# Of six completions in waves of two, the first is a loser and the others agree; a second prompt gives the same.
ARMS = {"quality": Arm(0, 6, Stop(waves=(2, 4, 6))), "thrifty": Arm(1, 6)}


_seen: set[str] = set()


def world(body: dict[str, Any], i: int) -> str:
    """Answer each question with "loser" once and with "winner" from then on: the winner is never drawn first."""
    if "idea" in outputs(body):
        return chat(idea="think of it")
    question = body["messages"][-1]["content"]
    answer = "winner" if question in _seen else "loser"
    _seen.add(question)
    return chat(reasoning=f"because of the {answer}", answer=answer)


STUDENTS: dict[str, Any] = {
    "predict": (lambda: dspy.Predict("question -> answer"), ["One.", "Two."], {"self": ["answer"]}),
    "thought": (
        lambda: dspy.ChainOfThought("question -> answer"), ["One.", "Two."], {"predict": ["reasoning", "answer"]},
    ),
    "two steps": (TwoSteps, [{"ask": "One."}, {"ask": "Two."}], {"plan": ["idea"], "ask": ["answer"]}),
}  # fmt: skip
TEXT = {"idea": "think of it", "reasoning": "because of the winner", "answer": "winner"}


@pytest.fixture(scope="module", params=sorted(STUDENTS))
def deployed(request: pytest.FixtureRequest) -> Iterator[tuple[CompiledProgram, dict[str, list[str]]]]:
    make, candidates, fields = STUDENTS[request.param]
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        yield deploy(make(), MajorityVote("answer"), candidates, ARMS), fields


@pytest.fixture(autouse=True)
def forgotten() -> None:
    _seen.clear()


class Around(dspy.Module):
    def __init__(self, inner: dspy.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, question: str) -> dspy.Prediction:
        return self.inner(question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.inner.acall(question=question)


def collect(program: dspy.Module, way: str, **kwargs: Any) -> list[Any]:
    """Stream one call in one of DSPy's three ways."""
    call: dict[str, Any] = {"question": "Who?", **kwargs.pop("call", {})}
    if way == "sync":
        return list(dspy.streamify(program, async_streaming=False, **kwargs)(**call))

    async def run() -> list[Any]:
        stream = dspy.streamify(program, is_async_program=way == "async program", **kwargs)
        return [value async for value in stream(**call)]

    return asyncio.run(run())


WAYS = ["async", "async program", "sync"]


@pytest.mark.parametrize("preference", ["quality", pytest.param("thrifty", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_listeners_hear_the_winners_fields_once(deployed: Any, way: str, preference: str) -> None:
    program, fields = deployed
    expected = [StreamResponse(p, f, TEXT[f], True) for p, names in fields.items() for f in names]
    listeners = [StreamListener(signature_field_name=f) for names in fields.values() for f in names]
    values = collect(program, way, stream_listeners=listeners, call={"preference": preference})
    assert values[:-1] == expected
    assert (values[-1].answer == "winner" and values[-1].iapo.votes == {"winner": 5, "loser": 1}) or way == "x"


@pytest.mark.parametrize("way", WAYS)
def test_without_listeners_all_fields_of_the_winner_are_streamed(deployed: Any, way: str) -> None:
    program, fields = deployed
    expected = [StreamResponse(p, f, TEXT[f], True) for p, names in fields.items() for f in names]
    assert collect(program, way)[:-1] == expected


@pytest.mark.parametrize("way", WAYS)
def test_nested_in_an_outer_module(deployed: Any, way: str) -> None:
    program, fields = deployed
    outer = Around(program)
    listener = StreamListener(signature_field_name="answer")
    values = collect(outer, way, stream_listeners=[listener])
    (name,) = [p for p, names in fields.items() if "answer" in names]
    assert values[:-1] == [StreamResponse(f"inner.{name}", "answer", "winner", True)]


def test_one_field_of_two_and_no_final_prediction(deployed: Any) -> None:
    program, _ = deployed
    listeners = [StreamListener(signature_field_name="answer")]
    values = collect(program, "async", stream_listeners=listeners, include_final_prediction_in_output_stream=False)
    assert [v.chunk for v in values] == ["winner"]


def test_a_listener_may_name_a_predictor_of_any_arm(deployed: Any) -> None:
    program, fields = deployed
    (name,) = [p for p, names in fields.items() if "answer" in names]
    for arm in program.arms:
        predictor = dict(arm.named_predictors())[name]
        listener = StreamListener(signature_field_name="answer", predict=predictor, predict_name="mine")
        values = collect(program, "async", stream_listeners=[listener])
        assert values[:-1] == [StreamResponse("mine", "answer", "winner", True)]


def test_a_listener_is_used_again_only_if_it_may() -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        inner = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), ["One."], {"q": Arm(0, 3)})

        class Twice(dspy.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, question: str) -> dspy.Prediction:
                self.inner(question=question)
                return self.inner(question=question + "!")

        for allowed, heard in ((False, 1), (True, 2)):
            listener = StreamListener(signature_field_name="answer", allow_reuse=allowed)
            values = collect(Twice(), "async", stream_listeners=[listener])
            assert [v.chunk for v in values[:-1]] == ["winner"] * heard


@pytest.mark.slow
def test_a_compiled_program_within_a_compiled_program() -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        inner = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), ["One.", "Two."], ARMS)
        arms = {"q": Arm(0, 2)}
        outer = deploy(Around(inner.with_preference("thrifty")), MajorityVote("answer"), [Around(inner)], arms)
        listener = StreamListener(signature_field_name="answer")
        values = collect(outer, "async", stream_listeners=[listener])
        assert values[:-1] == [StreamResponse("inner.self", "answer", "winner", True)]


def test_an_ambiguous_field_is_refused_as_in_any_program() -> None:
    class Same(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = dspy.Predict("question -> answer"), dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            self.one(question=question)
            return self.two(question=question)

    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        program = deploy(Same(), MajorityVote("answer"), [{"one": "One."}, {"one": "Two."}], ARMS)
        with pytest.raises(ValueError, match="not unique"):
            dspy.streamify(program, stream_listeners=[StreamListener(signature_field_name="answer")])
        listener = StreamListener(signature_field_name="answer", predict=program.arms[0].two, predict_name="two")
        assert [v.chunk for v in collect(program, "async", stream_listeners=[listener])[:-1]] == ["winner"]


def test_typed_fields_are_streamed_as_json() -> None:
    class Typed(dspy.Signature):
        question: str = dspy.InputField()
        parts: list[int] = dspy.OutputField()
        size: float = dspy.OutputField()

    with Loopback(lambda body, i: chat(parts="[1, 2]", size="2")) as server, dspy.context(lm=server.lm(seed=1)):
        strategy = BestOfN([Objective("any", lambda example, pred: 1.0)])
        program = deploy(dspy.Predict(Typed), strategy, ["One."], {"q": Arm(0, 2)}, metric=None)
        values = collect(program, "async")
    assert [(v.signature_field_name, v.chunk) for v in values[:-1]] == [("parts", "[1, 2]"), ("size", "2.0")]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [dspy.JSONAdapter(), dspy.XMLAdapter()], ids=lambda a: type(a).__name__)
def test_other_adapters(adapter: dspy.Adapter) -> None:
    text = '{"answer": "winner"}' if isinstance(adapter, dspy.JSONAdapter) else "<answer>winner</answer>"
    with Loopback(lambda body, i: text) as server, dspy.context(lm=server.lm(seed=1), adapter=adapter):
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), ["One."], {"q": Arm(0, 2)})
        listener = StreamListener(signature_field_name="answer")
        assert [v.chunk for v in collect(program, "async", stream_listeners=[listener])[:-1]] == ["winner"]


@pytest.mark.parametrize("way", WAYS)
def test_status_messages_of_modules(deployed: Any, way: str) -> None:
    class Provider(StatusMessageProvider):
        def module_start_status_message(self, instance: Any, inputs: dict[str, Any]) -> str | None:
            return f"{type(instance).__name__} starts" if type(instance) in (Around, CompiledProgram) else None

        def module_end_status_message(self, outputs: Any) -> str | None:
            return f"ends with {outputs.answer}" if "answer" in outputs else None

    program, _ = deployed
    values = collect(Around(program), way, status_message_provider=Provider())
    messages = [v.message for v in values if isinstance(v, StatusMessage)]
    assert messages == ["Around starts", "CompiledProgram starts", "ends with winner", "ends with winner"]


def test_streams_of_concurrent_calls_are_not_mixed(deployed: Any) -> None:
    program, _ = deployed

    async def one(i: int) -> tuple[list[Any], str]:
        listener = StreamListener(signature_field_name="answer")
        stream = dspy.streamify(program, stream_listeners=[listener], is_async_program=bool(i % 2))
        values = [v async for v in stream(question=f"Who is {i}?")]
        return values[:-1], values[-1].answer

    async def many() -> list[tuple[list[Any], str]]:
        return await asyncio.gather(*(one(i) for i in range(8)))

    for chunks, answer in asyncio.run(many()):
        assert [c.chunk for c in chunks] == [answer] == ["winner"]


def test_an_error_is_the_programs_own() -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), ["One."], {"q": Arm(0, 2)})
        server.answer = lambda body, i: "garbage"
        for way in WAYS:
            with pytest.raises(AllCompletionsFailed):
                collect(program, way)


def test_a_thread_of_ones_own_does_not_stream_and_does_not_fail(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        inner = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), ["One."], {"q": Arm(0, 3)})

        class Spread(dspy.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, question: str) -> dspy.Prediction:
                return dspy.Parallel(num_threads=2, disable_progress_bar=True)(
                    [(self.inner, {"question": question}), (self.inner, {"question": question + "?"})]
                )[0]

        with caplog.at_level(logging.WARNING):
            values = collect(Spread(), "async")
    assert [type(v).__name__ for v in values] == ["CompiledPrediction"] and "not streamed" in caplog.text
