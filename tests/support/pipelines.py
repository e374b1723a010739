"""A pipeline whose steps are known: its inner module's best instruction is not the best one by its own answers."""

from __future__ import annotations

import random
import re
from typing import Any

import dspy

from tests.support.loopback import chat
from tests.support.worlds import outputs

VAGUE = "Guess."  # right once in five
WORDY = "Give the number with its unit."  # right nine times in ten, but a later step cannot read it
PLAIN = "Give the bare number."  # right two times in three, mistakes spread: a vote is nearly always right
INSTRUCTIONS = [VAGUE, WORDY, PLAIN]


class Pipeline(dspy.Module):
    """Rewrite the question, solve it, check what was found."""

    def __init__(self) -> None:
        super().__init__()
        self.rewrite = dspy.Predict("question -> sum")
        self.solve = dspy.Predict("sum -> number")
        self.report = dspy.Predict("question, number -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        found = self.solve(sum=self.rewrite(question=question).sum)
        return self.report(question=question, number=found.number)


def step_of(body: dict[str, Any]) -> str:
    """Which step asks: "rewrite", "solve" or "report"."""
    return STEPS[outputs(body)[0]]


STEPS = {"sum": "rewrite", "number": "solve", "answer": "report"}


def pipeline_world(body: dict[str, Any], i: int) -> str:
    """Answer as the step that asks would; seeded requests get the same answers every time."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    system, user = body["messages"][0]["content"], body["messages"][-1]["content"]
    step = step_of(body)
    if step == "rewrite":
        a, b = re.findall(r"(\d+) and (\d+)", user)[-1]
        return chat(sum=f"{a} + {b}, draft {rng.randint(0, 10**9)}")
    if step == "report":
        number = re.findall(r"\[\[ ## number ## \]\]\n(.*)", user)[-1].strip()
        return chat(answer=number if number.isdigit() else "unknown")
    a, b = (int(x) for x in re.findall(r"(\d+) \+ (\d+)", user)[-1])
    share, unit = (0.9, " apples") if WORDY in system else (2 / 3, "") if PLAIN in system else (0.2, "")
    return chat(number=f"{a + b if rng.random() < share else a + b + rng.randint(1, 9)}{unit}")


def asked(n: int) -> list[dspy.Example]:
    """Questions with the pipeline's label (`answer`) and what the inner module should have said (`number`)."""
    return [
        dspy.Example(question=f"What are {i} and {2 * i + 1}?", answer=str(3 * i + 1)).with_inputs("question")
        for i in range(1, n + 1)
    ]


def right(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
    return bool(example.answer == pred.answer)
