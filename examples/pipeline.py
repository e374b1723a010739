"""Compile one step inside a pipeline by the pipeline's own metric; then both steps at once, predictor by predictor.

needs: nothing (runs on the small LM that ships with the package)
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import dspy
import numpy as np

from iapo_dspy import IAPO, Execution, MajorityVote, Preference, attach
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL

register()
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0))


class Bill(dspy.Module):
    """Adds three prices in two steps with an LM, and writes the bill without one."""

    def __init__(self) -> None:
        super().__init__()
        steps = "Work column by column, carrying, before you answer."
        self.subtotal = dspy.Predict(dspy.Signature("question -> answer", steps), temperature=0.3)
        self.total = dspy.Predict("question -> answer")

    def forward(self, prices: str) -> dspy.Prediction:
        """Return the total and the bill."""
        first, second, third = re.findall(r"\d+", prices)
        subtotal = self.subtotal(question=f"What is {first} + {second}?").answer
        total = self.total(question=f"What is {subtotal.strip()} + {third}?").answer
        return dspy.Prediction(answer=total, bill=f"{prices} = {total}")


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Check the result of the whole pipeline."""
    return str(prediction.bill) == f"{example.prices} = {example.total}"


rng = np.random.default_rng(0)
train = [
    dspy.Example(prices=f"{a} + {b} + {c}", total=str(a + b + c)).with_inputs("prices")
    for a, b, c in rng.integers(100, 330, (40, 3)).tolist()
]
instructions = [
    "Answer at once.",
    "Work column by column, carrying, before you answer.",
    "Jot down the column sums, then answer.",
]
settings: dict[str, Any] = {
    "metric": exact,
    "strategy": MajorityVote("answer"),  # a field of the part that is drawn N times: the inner module, or the program
    "preferences": [Preference("quality", cost=0.0), Preference("thrifty", cost=5.0)],
    "max_n": 8,
    "execution": Execution(progress=False),
}

# One step of the pipeline: it is drawn N times on one subtotal; the other steps run once per call.
optimizer = IAPO(**settings, budget=240, candidates=instructions)
pipeline = optimizer.compile(Bill(), trainset=train, inner="total")
print(pipeline.detailed_results)
prediction = pipeline(prices="158 + 267 + 229")
print(prediction.bill, pipeline.total.solve("quality"))

with tempfile.TemporaryDirectory() as folder:
    pipeline.save(Path(folder) / "bill.json")
    loaded = attach(Bill(), "total")
    loaded.load(Path(folder) / "bill.json")
loaded.total = loaded.total.with_preference("thrifty")
print(loaded(prices="158 + 267 + 229").bill, loaded.total.solve())

# Both steps at once: every call draws the whole pipeline N times. None is a predictor's own instruction.
optimizer = IAPO(**settings, budget=180, candidates={"subtotal": [None, "Answer at once."], "total": instructions})
program = optimizer.compile(Bill(), trainset=train)
print(program.detailed_results)
