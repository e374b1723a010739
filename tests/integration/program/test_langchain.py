"""A compiled program as a LangChain Runnable, with the real package."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

import iapo_dspy
from iapo_dspy import CompiledProgram, MajorityVote, Preference
from iapo_dspy.errors import AllCompletionsFailed, ConfigurationError
from iapo_dspy.types import Arm
from tests.support.deployed import deploy
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, QUICK, TwoSteps, adder, questions

pytest.importorskip("langchain_core")
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough

pytestmark = pytest.mark.extra

ARMS = {"quality": Arm(0, 5), "thrifty": Arm(1, 1)}


@pytest.fixture(scope="module")
def deployed() -> Iterator[tuple[Loopback, CompiledProgram]]:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        yield server, deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [CAREFUL, QUICK], ARMS)


def test_it_is_a_runnable_and_answers_in_every_way(deployed: Any) -> None:
    _, program = deployed
    runnable = program.as_runnable()
    assert isinstance(runnable, Runnable)
    assert runnable.invoke({"question": "3 + 4"}) == {"answer": "7"} == runnable.invoke("3 + 4")
    assert runnable.invoke(questions(1)[0]) == {"answer": "4"}
    rows = [{"question": f"{i} + {i}"} for i in range(6)]
    sums = [{"answer": str(2 * i)} for i in range(6)]
    assert runnable.batch(rows) == sums == runnable.batch(rows, config={"max_concurrency": 2})
    assert list(runnable.stream("3 + 4")) == [{"answer": "7"}]

    async def go() -> None:
        assert await runnable.ainvoke("3 + 4") == {"answer": "7"}
        assert await runnable.abatch(rows) == sums
        assert [chunk async for chunk in runnable.astream("3 + 4")] == [{"answer": "7"}]

    asyncio.run(go())


def test_every_way_of_naming_the_preference_and_which_goes_first(deployed: Any) -> None:
    _, program = deployed

    def used(runnable: Any, input: Any = "3 + 4", **kwargs: Any) -> tuple[str | None, int]:
        report = runnable.invoke(input, **kwargs).iapo
        return report.preference, report.n

    plain = program.as_runnable(output="prediction")
    thrifty, quality = ("thrifty", 1), ("quality", 5)
    configured: dict[str, Any] = {"configurable": {"preference": "thrifty"}}
    assert used(plain) == quality
    assert used(program.as_runnable("thrifty", output="prediction")) == thrifty
    assert used(plain, config=configured) == thrifty
    assert used(plain.with_config(configurable={"preference": "thrifty"})) == thrifty
    assert used(plain.bind(preference="thrifty")) == thrifty
    assert used(plain.bind(preference="quality"), config=configured) == quality
    assert used(plain.bind(preference="quality"), {"question": "3 + 4", "preference": "thrifty"}) == thrifty
    assert used(plain.bind(preference=Preference(cost=1.0)))[1] == 1
    with iapo_dspy.using_preference("thrifty"):
        assert used(plain) == thrifty and [p.iapo.n for p in plain.batch(["3 + 4", "4 + 5"])] == [1, 1]
    assert [s.id for s in (plain | RunnableLambda(lambda x: x)).config_specs] == ["preference"]


def test_it_composes(deployed: Any) -> None:
    server, program = deployed
    runnable = program.as_runnable()
    chain = RunnableLambda(lambda n: {"question": f"{n} + {n}"}) | runnable | (lambda fields: int(fields["answer"]))
    assert chain.invoke(21) == 42
    assert chain.batch([1, 2]) == [2, 4]
    assert list(chain.stream(21)) == [42]
    assert asyncio.run(chain.ainvoke(21)) == 42
    both = RunnableParallel(sum=runnable, asked=RunnablePassthrough())
    assert both.invoke({"question": "3 + 4"}) == {"sum": {"answer": "7"}, "asked": {"question": "3 + 4"}}
    assert (PromptTemplate.from_template("{a} + {b}") | runnable).invoke({"a": 3, "b": 4}) == {"answer": "7"}
    chat = ChatPromptTemplate.from_messages([("human", "{a} + {b}")])
    assert (chat | runnable).invoke({"a": 3, "b": 4}) == {"answer": "7"}
    assert server.bodies[-1]["messages"][-1]["content"].startswith("[[ ## question ## ]]\n3 + 4")
    assert (RunnableLambda(lambda _: AIMessage("3 + 4")) | runnable).invoke("x") == {"answer": "7"}
    with_configuration = chain.invoke(21, config={"configurable": {"preference": "thrifty"}})
    assert with_configuration == 42


def test_schemas_come_from_the_signature() -> None:
    class Typed(dspy.Signature):
        question: str = dspy.InputField()
        hints: list[str] = dspy.InputField(default=["none"])
        answer: str = dspy.OutputField()
        sure: float = dspy.OutputField()

    train = [e.copy(hints=["add"]).with_inputs("question", "hints") for e in questions(2)]
    with Loopback(lambda body, i: chat(idea="add", answer="4", sure="1")) as server, dspy.context(lm=server.lm(seed=1)):
        program = deploy(dspy.Predict(Typed), MajorityVote("answer"), [CAREFUL], {"q": Arm(0, 1)}, train=train)
        steps = deploy(TwoSteps(), MajorityVote("answer"), [{"ask": CAREFUL}], {"q": Arm(0, 1)})
    runnable = program.as_runnable()
    given = runnable.get_input_schema().model_json_schema()
    assert given["required"] == ["question"] and given["properties"]["hints"]["type"] == "array"
    assert runnable.input_schema(question="x").hints == ["none"]
    returned = runnable.get_output_schema().model_json_schema()
    assert returned["required"] == ["answer", "sure"] and returned["properties"]["sure"]["type"] == "number"
    assert list(steps.as_runnable().get_input_schema().model_fields) == ["question"]
    assert not steps.as_runnable().get_output_schema().model_json_schema().get("required")


def test_bad_input_says_what_is_needed_and_costs_nothing(deployed: Any) -> None:
    server, program = deployed
    before = server.requests
    runnable = program.as_runnable()
    with pytest.raises(iapo_dspy.errors.UnknownPreference, match="quality"):
        runnable.invoke("3 + 4", config={"configurable": {"preference": "best"}})
    with pytest.raises(iapo_dspy.errors.UnknownPreference):
        program.as_runnable("best")
    with pytest.raises(ConfigurationError, match="takes preference"):
        runnable.bind(temperature=1.0).invoke("3 + 4")
    with pytest.raises(ConfigurationError, match="'fields' or 'prediction'"):
        program.as_runnable(output="json")
    assert server.requests == before


def test_a_bare_value_needs_a_program_of_one_field() -> None:
    train = [e.copy(context="maths").with_inputs("question", "context") for e in questions(2)]
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        student = dspy.Predict("context, question -> answer")
        program = deploy(student, MajorityVote("answer"), [CAREFUL], {"q": Arm(0, 1)}, train=train)
        with pytest.raises(ConfigurationError, match="'context', 'question'"):
            program.as_runnable().invoke("3 + 4")
        assert program.as_runnable().invoke({"question": "3 + 4", "context": "maths"})["answer"]


def test_a_field_called_preference_is_the_students() -> None:
    train = [e.copy(preference="tea").with_inputs("question", "preference") for e in questions(2)]
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        student, arms = dspy.Predict("preference, question -> answer"), {"a": Arm(0, 1), "b": Arm(0, 1)}
        program = deploy(student, MajorityVote("answer"), [CAREFUL], arms, train=train, preference_field=None)
        runnable = program.as_runnable(output="prediction").bind(preference="b")
        prediction = runnable.invoke({"question": "3 + 4", "preference": "coffee"})
        assert prediction.iapo.preference == "b" and "coffee" in server.bodies[-1]["messages"][-1]["content"]


def test_callbacks_of_langchain_hear_runs_and_errors(deployed: Any) -> None:
    _, program = deployed

    class Heard(BaseCallbackHandler):
        def __init__(self) -> None:
            self.events: list[tuple[str, Any]] = []

        def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
            self.events.append((kwargs["name"], inputs))

        def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
            self.events.append(("end", outputs))

        def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
            self.events.append(("error", type(error)))

    for run in (
        lambda config: program.as_runnable().invoke({"question": "3 + 4"}, config=config),
        lambda config: asyncio.run(program.as_runnable().ainvoke({"question": "3 + 4"}, config=config)),
    ):
        heard = Heard()
        run({"callbacks": [heard]})
        assert heard.events == [("Predict", {"question": "3 + 4"}), ("end", {"answer": "7"})]
    heard = Heard()
    with Loopback(lambda body, i: "garbage") as broken, dspy.context(lm=broken.lm()):
        with pytest.raises(AllCompletionsFailed):
            program.as_runnable().with_config(run_name="sums").invoke("3 + 4", config={"callbacks": [heard]})
    assert heard.events == [("sums", "3 + 4"), ("error", AllCompletionsFailed)]


def test_failures_in_a_batch_are_returned_where_asked_for(deployed: Any) -> None:
    _, program = deployed
    with Loopback(lambda b, i: "no" if "2 + 2" in b["messages"][-1]["content"] else adder(b, i)) as server:
        with dspy.context(lm=server.lm(seed=1)):
            found = program.as_runnable().batch(["1 + 1", "2 + 2", "3 + 3"], return_exceptions=True)
    assert found[0] == {"answer": "2"} and isinstance(found[1], AllCompletionsFailed) and found[2] == {"answer": "6"}


def test_without_langchain_there_is_a_hint(deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program = deployed
    monkeypatch.delitem(sys.modules, "iapo_dspy.program.langchain", raising=False)
    monkeypatch.setitem(sys.modules, "langchain_core.messages", None)
    with pytest.raises(ImportError, match=r"pip install 'iapo_dspy\[langchain\]'"):
        program.as_runnable()
