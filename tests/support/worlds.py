"""A small world whose best arms are known: three instructions of different skill at additions."""

from __future__ import annotations

import random
import re
from typing import Any

import dspy

from tests.support.loopback import chat

CAREFUL = "Work carefully."  # right 4 times out of 5 on every question: scales with N, 30 words
QUICK = "Answer quickly."  # always right on even sums, always wrong the same way on odd ones: N is no help, 5 words
LAZY = "Do not care."  # right once in five: nothing helps, 5 words
INSTRUCTIONS = [LAZY, QUICK, CAREFUL]


class TwoSteps(dspy.Module):
    """A student with a `forward` of its own and two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> idea")
        self.ask = dspy.Predict("question, idea -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.ask(question=question, idea=self.plan(question=question).idea)


def adder(body: dict[str, Any], i: int) -> str:
    """Answer like the instruction in the system message says. Seeded requests get the same answers every time."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    system, user = body["messages"][0]["content"], body["messages"][-1]["content"]
    a, b = (int(x) for x in re.findall(r"(\d+) \+ (\d+)", user)[-1])
    if CAREFUL in system:
        right, working = rng.random() < 0.8, "step " * 25 + "\n\n"
    elif QUICK in system:
        right, working = (a + b) % 2 == 0, ""
        return working + chat(answer=str(a + b if right else a + b + 10))
    else:
        right, working = rng.random() < 0.2, ""
    return working + chat(answer=str(a + b if right else a + b + rng.randint(1, 9)))


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
