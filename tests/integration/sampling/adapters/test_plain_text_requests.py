"""The plain-text adapter on a server: exact messages, n completions a request, each read on its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from iapo_dspy import PlainTextAdapter, load
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.sampling import draw
from tests.support.worlds import CAREFUL, Around, TwoSteps, adder, questions, student

Grade = Literal["good", "bad"]
TASK = dspy.Signature({"text": (str, dspy.InputField()), "label": (Grade, dspy.OutputField())}, "Judge.")
ANSWERS = ["Good", "bad.", "good or bad", "The answer is **good**.", "?"]
READ = ["good", "bad", None, "good", None]
MESSAGES = [
    {"role": "system", "content": "Judge.\nAnswer with one of: good, bad."},
    {"role": "user", "content": "fine film"},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "a film"},
]


def judge() -> dspy.Predict:
    predictor = dspy.Predict(TASK)
    predictor.demos = [{"text": "fine film", "label": "good"}]
    return predictor


class Wrapped(dspy.Module):
    """A program that runs in threads."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = judge()

    def forward(self, text: str) -> dspy.Prediction:
        return self.judge(text=text)


def scripted(body: dict[str, Any], i: int) -> str:
    return ANSWERS[i % len(ANSWERS)]


@pytest.mark.parametrize("program", [judge, Wrapped])
def test_one_request_and_each_completion_is_read_on_its_own(program: Callable[[], dspy.Module]) -> None:
    with Loopback(scripted) as server, dspy.context(adapter=PlainTextAdapter()):
        rollouts = draw(Sampler(lm=server.lm()), program(), {"text": "a film"}, 5, key=0)
        (body,) = server.bodies
    assert body["messages"] == MESSAGES and body["n"] == 5
    labels = [r.prediction.label if r.prediction else None for r in rollouts]
    assert Counter(labels) == Counter(READ)
    reasons = sorted(r.failure for r in rollouts if r.failure)
    assert reasons == [
        "AdapterParseError: More than one label in 'good or bad': 'good', 'bad'.",
        "AdapterParseError: No label in '?'.",
    ]
    assert not any(r.error for r in rollouts)  # they are unreadable, and nothing is wrong with the program


@pytest.mark.parametrize("program", [judge, Wrapped])
def test_constraints_are_added_to_the_body_of_the_lm(program: Callable[[], dspy.Module]) -> None:
    own = {"top_k": 40, "min_p": 0.0}
    with Loopback(lambda body, i: "good") as server, dspy.context(adapter=PlainTextAdapter(constrain="grammar")):
        lm = server.lm(extra_body=own)
        for key in range(2):
            assert all(r.ok for r in draw(Sampler(lm=lm), program(), {"text": "a film"}, 3, key=key))
        for body in server.bodies:
            assert body["n"] == 3 and (body["top_k"], body["min_p"]) == (40, 0.0)
            assert body["grammar"] == 'root ::= "good" | "bad"'
        assert lm.kwargs["extra_body"] == own == {"top_k": 40, "min_p": 0.0}


def test_a_response_format_is_sent_and_the_reply_read_as_json() -> None:
    adapter = PlainTextAdapter(constrain="response_format")
    with Loopback(lambda body, i: '{"label": "bad"}') as server, dspy.context(adapter=adapter):
        rollouts = draw(Sampler(lm=server.lm()), judge(), {"text": "a film"}, 2, key=0)
        (body,) = server.bodies
    assert [r.prediction.label for r in rollouts if r.prediction] == ["bad", "bad"]
    assert body["response_format"]["json_schema"]["schema"]["properties"] == {
        "label": {"type": "string", "enum": ["good", "bad"]}
    }
    assert body["messages"][2]["content"] == '{"label": "good"}'


def test_plain_dspy_sync_and_async() -> None:
    with Loopback(lambda body, i: ["Good.", "both good and bad"][i % 2]) as server:
        lm, adapter = server.lm(extra_body={"top_k": 1}), PlainTextAdapter(constrain="structured_outputs")
        with dspy.context(lm=lm, adapter=adapter):
            assert judge()(text="a film").label == "good"
            with pytest.raises(AdapterParseError, match="More than one label"):
                judge()(text="a film")
            assert asyncio.run(judge().acall(text="a film")).label == "good"
        assert [body["messages"] for body in server.bodies] == [MESSAGES] * 3
        assert all(body["top_k"] == 1 for body in server.bodies)
        assert all(body["structured_outputs"] == {"choice": ["good", "bad"]} for body in server.bodies)


def test_several_predictors_each_have_their_own_reading() -> None:
    def world(body: dict[str, Any], i: int) -> str:
        return "Answer: 7\nor so" if "idea:" in body["messages"][-1]["content"] else "carry\nthe one"

    with Loopback(world) as server, dspy.context(adapter=PlainTextAdapter()):
        rollouts = draw(Sampler(lm=server.lm()), TwoSteps(), {"question": "3 + 4"}, 2, key=0)
    assert [r.prediction.answer for r in rollouts if r.prediction] == ["7", "7"]
    assert server.bodies[-1]["messages"][-1]["content"] == "question: 3 + 4\nidea: carry"


@pytest.mark.parametrize("program", [lambda: dspy.Predict("text -> a, b, c"), lambda: dspy.Predict("text -> label")])
def test_a_signature_that_it_cannot_serve_costs_no_call(program: Callable[[], dspy.Module]) -> None:
    with Loopback(scripted) as server, dspy.context(adapter=PlainTextAdapter(constrain="grammar")):
        with pytest.raises(ConfigurationError, match=r"the signature has a, b, c|needs an output field with labels"):
            draw(Sampler(lm=server.lm()), program(), {"text": "a film"}, 2, key=0)
        assert server.requests == 0


def plainly(body: dict[str, Any], i: int) -> str:
    """Answer as `adder` does, in a sentence; one in eight answers is no answer."""
    number = adder(body, i).split("]]\n")[1].split("\n")[0]
    return f"The answer is {number}." if i % 8 else "I do not know."


optimizer = optimizers(max_n=8, budget=200, stopping=None)


@pytest.mark.parametrize("make", [student, pytest.param(Around, marks=pytest.mark.slow)])
def test_a_compile_from_end_to_end(make: Callable[[], dspy.Module], tmp_path: Path) -> None:
    with Loopback(plainly) as server, dspy.context(lm=server.lm(seed=1), adapter=PlainTextAdapter("number")):
        program = optimizer(budget=500).compile(make(), trainset=questions(20))
        results = program.detailed_results
        assert server.bodies[0]["messages"][1]["role"] == "user"
        assert {m["content"] for b in server.bodies for m in b["messages"] if m["role"] == "user"} <= {
            q.question for q in questions(20)
        }
        assert 0.05 < results.failures.total / results.spent.completions < 0.25
        assert [cause for cause, _ in results.failures.causes] == ["AdapterParseError: No number in 'I do not know.'."]
        quality, thrifty = program.solve("quality"), program.solve("thrifty")
        assert results.labels[quality.prompt] == results.labels[thrifty.prompt] == CAREFUL
        assert quality.n > thrifty.n  # completions are of one length here, so the right prompt costs no more
        program.save(str(tmp_path / "program.json"))
        again = load(tmp_path / "program.json", make())
        for deployed in (program, again):
            assert deployed(question="20 + 22", preference="quality").answer == "42"
            assert asyncio.run(deployed.acall(question="20 + 22", preference="quality")).answer == "42"


def test_another_reading_is_another_run(tmp_path: Path) -> None:
    runs = []
    for adapter in (PlainTextAdapter("number"), PlainTextAdapter("number"), PlainTextAdapter("last_line")):
        with Loopback(plainly) as server, dspy.context(lm=server.lm(seed=1), adapter=adapter):
            optimizer(log_dir=str(tmp_path)).compile(student(), trainset=questions(10))
            runs.append(server.completions)
    assert runs[0] > 0 and runs[1] == 0 and runs[2] > 0


def test_the_winner_is_streamed() -> None:
    async def chunks(program: Any) -> list[Any]:
        stream = dspy.streamify(program, async_streaming=True)
        return [chunk async for chunk in stream(question="20 + 22", preference="quality")]

    with Loopback(plainly) as server, dspy.context(lm=server.lm(seed=1), adapter=PlainTextAdapter("number")):
        program = optimizer().compile(student(), trainset=questions(10))
        shown = asyncio.run(chunks(program))
    assert [c.chunk for c in shown if isinstance(c, dspy.streaming.StreamResponse)] == ["42"]
