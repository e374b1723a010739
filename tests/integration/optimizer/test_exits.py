"""User code that raises `SystemExit` and the like: one completion fails, and the run and all later ones go on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import dspy
import pydantic
import pytest

from iapo_dspy import BestOfN, MajorityVote, Mean, Objective, close
from iapo_dspy.errors import AllCompletionsFailed
from iapo_dspy.sampling.concurrency.contained import CodeExited
from iapo_dspy.sampling.judges.metered import metered
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, QUICK, exact, questions, student, total

optimizer = optimizers(budget=40, max_n=2, candidates=[QUICK, CAREFUL], stopping=None)


class Strange(BaseException):
    """An exit of somebody's own."""


EXITS = [SystemExit, GeneratorExit, asyncio.CancelledError, KeyboardInterrupt, Strange]
Leave = Callable[[Any], Any]


def every_third(body: dict[str, Any], i: int) -> str:
    """Answer right, but every third time with a text on which the user's code leaves."""
    return chat(answer="leave" if i % 3 == 0 else str(total(body)))


def leaving(kind: type[BaseException]) -> Leave:
    def leave(value: Any) -> None:
        if str(value) == "leave":
            raise kind("stop")

    return leave


class Leaving(dspy.Module):
    """A module that leaves, in `forward` or in `aforward`."""

    def __init__(self, leave: Leave) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.leave = leave

    def forward(self, question: str) -> dspy.Prediction:
        said = self.ask(question=question)
        self.leave(said.answer)
        return said


class AsyncLeaving(dspy.Module):
    """The same with an async form only."""

    def __init__(self, leave: Leave) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.leave = leave

    async def aforward(self, question: str) -> dspy.Prediction:
        said = await self.ask.acall(question=question)
        self.leave(said.answer)
        return said


class JudgeLM(dspy.LM):
    """An LM of the user's own that leaves on the shared loop."""

    leave: Leave

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        said = await super().acall(*args, **kwargs)
        self.leave("leave" if "leave" in str(said) else said)
        return said


def case_metric(leave: Leave) -> dict[str, Any]:
    def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
        leave(prediction.answer)
        return exact(example, prediction)

    return {"metric": metric}


def case_normalize(leave: Leave) -> dict[str, Any]:
    return {"strategy": MajorityVote("answer", normalize=lambda value: leave(value) or value)}


def case_equal(leave: Leave) -> dict[str, Any]:
    return {"strategy": MajorityVote("answer", equal=lambda a, b: bool(leave(a) or leave(b)))}


def case_objective(leave: Leave) -> dict[str, Any]:
    def brief(example: Any, prediction: Any) -> bool:
        leave(prediction.answer)
        return True

    return {"strategy": BestOfN([Objective("brief", brief)]), "metric": None}


def case_module(leave: Leave) -> dict[str, Any]:
    return {"student": Leaving(leave)}


def case_async_module(leave: Leave) -> dict[str, Any]:
    return {"student": AsyncLeaving(leave)}


def case_field_type(leave: Leave) -> dict[str, Any]:
    class Answer(pydantic.BaseModel):
        text: str

        @pydantic.model_validator(mode="before")
        @classmethod
        def _check(cls, data: Any) -> Any:
            leave(data)
            return {"text": str(data)}

    signature = dspy.Signature("question -> answer").with_updated_fields("answer", type_=Answer)
    return {
        "student": dspy.Predict(signature),
        "metric": lambda e, p, trace=None: getattr(p.answer, "text", p.answer) == e.answer,
    }


def case_task_lm(leave: Leave) -> dict[str, Any]:
    return {"lm": lambda server: with_leave(server, leave)}


def with_leave(server: Loopback, leave: Leave) -> JudgeLM:
    lm = JudgeLM("openai/fake", api_base=server.base, api_key="k", cache=False)
    lm.leave = leave
    return lm


CASES = {name.removeprefix("case_"): make for name, make in list(globals().items()) if name.startswith("case_")}


@pytest.mark.parametrize(
    ("where", "kind"), [*[(where, SystemExit) for where in CASES], *[("metric", kind) for kind in EXITS[1:]]]
)
def test_an_exit_is_a_failure_of_one_completion(where: str, kind: type[BaseException]) -> None:
    with Loopback(every_third) as server, dspy.context(lm=server.lm()):
        given = CASES[where](leaving(kind))
        lm = given.pop("lm", lambda _: dspy.settings.lm)(server)
        with dspy.context(lm=lm):
            program = optimizer(**{k: v for k, v in given.items() if k != "student"}).compile(
                given.get("student", student()), trainset=questions(6)
            )
        failures = program.detailed_results.failures
        assert any(kind.__name__ in cause for cause, _ in failures.causes), failures
        assert 0 < failures.total < failures.completions
        assert program.detailed_results.spent.completions == server.completions
        optimizer().compile(student(), trainset=questions(4))  # the process has not suffered


def test_a_judge_that_leaves_fails_one_score() -> None:
    with Loopback(lambda body, i: chat(answer=str(i % 2), good="True")) as server, dspy.context(lm=server.lm()):
        judge = with_leave(server, leaving(SystemExit))
        judge.leave = lambda said: sys.exit("stop")
        ask = dspy.Predict("answer -> good")
        ask.set_lm(metered(judge))

        def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
            return ask(answer=prediction.answer).good == "True" if prediction.answer == "1" else True

        program = optimizer(metric=metric, max_errors=1000).compile(student(), trainset=questions(6))
        ((cause, _), *_) = program.detailed_results.failures.causes
        assert "SystemExit: stop" in cause


def test_a_deployed_call_goes_on_without_the_completions_on_which_code_left() -> None:
    vote = MajorityVote("answer", normalize=lambda value: leaving(SystemExit)(value) or value)

    def noisy(body: dict[str, Any], i: int) -> str:  # a vote pays, so that a call draws several completions
        return chat(answer=str(total(body) if i % 3 else 1))

    with Loopback(noisy) as server, dspy.context(lm=server.lm()):
        program = optimizer(strategy=vote, stopping=None, budget=240, max_n=5).compile(student(), trainset=questions(6))
        assert program.detailed_results.policy[0].arm.n > 1
        server.answer = every_third
        server.completions = 0
        said = program(question="2 + 2")
        assert said.answer == "4"
        server.answer = lambda body, i: chat(answer="leave")
        with pytest.raises(AllCompletionsFailed, match="SystemExit: stop"):
            program(question="2 + 2")
        with pytest.raises(AllCompletionsFailed, match="SystemExit: stop"):
            asyncio.run(program.acall(question="2 + 2"))


def test_a_function_of_progress_that_leaves_ends_its_run_alone() -> None:
    def leave(kind: type[BaseException]) -> Callable[[Any], None]:
        def progress(state: Any) -> None:
            if state.completions >= 10:
                raise kind("stop")

        return progress

    with Loopback(every_third) as server, dspy.context(lm=server.lm()):
        for kind, shown in {SystemExit: CodeExited, ZeroDivisionError: ZeroDivisionError}.items():
            with pytest.raises(shown, match="stop"):
                optimizer(progress=leave(kind)).compile(student(), trainset=questions(6))
        with pytest.raises(KeyboardInterrupt):  # in the main thread it is the user's
            optimizer(progress=leave(KeyboardInterrupt)).compile(student(), trainset=questions(6))
        before = server.completions
        optimizer().compile(student(), trainset=questions(4))
        assert server.completions > before


@pytest.mark.parametrize("strategy", [MajorityVote("answer", equal=close(absolute=0.1)), Mean("answer", affine=True)])
def test_an_exit_of_the_metric_fails_under_every_strategy(strategy: Any) -> None:
    with Loopback(every_third) as server, dspy.context(lm=server.lm()):

        def metric(example: Any, prediction: Any, trace: Any = None) -> float:
            leaving(SystemExit)("leave" if prediction.answer != example.answer else "")
            return 1.0

        server.answer = lambda body, i: chat(answer=str(total(body) + (i % 3 == 0)))
        program = optimizer(strategy=strategy, metric=metric).compile(student(), trainset=questions(6))
        assert any("SystemExit" in cause for cause, _ in program.detailed_results.failures.causes)
