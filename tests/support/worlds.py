"""A small world whose best arms are known: three instructions of different skill at additions.

Handlers answer requests of the loopback server: (body, number of the completion) -> text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import dspy

from tests.support.loopback import chat

Handler = Callable[[dict[str, Any], int], str]

CAREFUL = "Work carefully."  # right 4 times out of 5 on every question: scales with N, 30 words
QUICK = "Answer quickly."  # always right on even sums, always wrong the same way on odd ones: N is no help, 5 words
LAZY = "Do not care."  # right once in five: nothing helps, 5 words
INSTRUCTIONS = [LAZY, QUICK, CAREFUL]


def student() -> dspy.Module:
    return dspy.Predict("question -> answer")


class Around(dspy.Module):
    """A module around one predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=self.ask(question=question.strip()).answer, seen=question)


class TwoSteps(dspy.Module):
    """A student with a `forward` of its own and two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> idea")
        self.ask = dspy.Predict("question, idea -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.ask(question=question, idea=self.plan(question=question).idea)


def outputs(body: dict[str, Any]) -> list[str]:
    """Return the names of the output fields that a request asks for."""
    return re.findall(r"^\d+\. `(\w+)`", body["messages"][0]["content"].partition("output fields are:")[2], re.M)


def total(body: dict[str, Any]) -> int:
    """Return the sum that a request asks for."""
    a, b = re.findall(r"(\d+) \+ (\d+)", body["messages"][-1]["content"])[-1]
    return int(a) + int(b)


def adder(body: dict[str, Any], i: int) -> str:
    """Answer like the instruction in the system message says. Seeded requests get the same answers every time."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    system, correct = body["messages"][0]["content"], total(body)
    if CAREFUL in system:
        right, working = rng.random() < 0.8, "step " * 25 + "\n\n"
    elif QUICK in system:
        return chat(answer=str(correct if correct % 2 == 0 else correct + 10))
    else:
        right, working = rng.random() < 0.2, ""
    return working + chat(answer=str(correct if right else correct + rng.randint(1, 9)))


def after_ideas(answer: Handler, idea: str = "carry") -> Handler:
    """Answer the first of `TwoSteps` with the idea, and all other requests as `answer` does."""
    return lambda body, i: chat(idea=idea.format(i=i)) if "idea" in outputs(body) else answer(body, i)


def after_reasoning(answer: Handler) -> Handler:
    """Put reasoning before the answers, for a chain of thought."""
    return lambda body, i: "[[ ## reasoning ## ]]\nbecause\n\n" + answer(body, i)


def with_judge(*, yes: str, no: str, guess: str = "answer") -> Handler:
    """Serve a judge beside the adder: it adds up the question itself, and compares with the field `guess`."""

    def handler(body: dict[str, Any], i: int) -> str:
        if "verdict" not in outputs(body):
            return adder(body, i)
        content = body["messages"][-1]["content"]
        asked, guessed = (content.split(f"[[ ## {name} ## ]]\n")[1].split("\n")[0] for name in ("question", guess))
        return chat(verdict=yes if str(sum(int(x) for x in asked.split(" + "))) == guessed else no)

    return handler


def questions(n: int, start: int = 1) -> list[dspy.Example]:
    """Additions, odd and even sums in turn."""
    return [
        dspy.Example(question=f"{i} + {2 * i + 1}", answer=str(3 * i + 1)).with_inputs("question")
        for i in range(start, start + n)
    ]


def exact(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
    return bool(example.answer == pred.answer)


def brevity(example: dspy.Example, pred: dspy.Prediction) -> float:
    return max(0.0, 1 - len(pred.answer) / 10)


def checked(example: dspy.Example, pred: dspy.Prediction) -> float:
    """An exact checker that needs no label."""
    return float(str(sum(int(x) for x in example.question.split(" + "))) == pred.answer)
