"""Objectives whose scores have no bounds: a run learns their worth from its first batch and saves it.

needs: nothing (runs on the small LM that ships with the package)
"""

import tempfile
from pathlib import Path

import dspy

from iapo_dspy import IAPO, BestOfN, CompiledProgram, Execution, Objective, Preference, objectives
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, parse_terms, splitting_task

register()
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0))
task = splitting_task()


def nearness(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Minus the distance of the terms' sum from the target: 0 at best, without a known lower bound."""
    return -abs(sum(parse_terms(prediction.answer)) - int(example.target))


def strategy() -> BestOfN:
    """Three objectives, two of them with raw scores."""
    return BestOfN(
        [
            # Few answers are far off, and some of those very far. Ranks ignore the distance.
            Objective("near", nearness, calibrate="rank"),
            Objective("short", lambda example, prediction: -len(prediction.answer), calibrate="minmax"),
            objectives.regex_match("answer", r"\d+( \+ \d+)+", whole=True, name="clean"),
        ]
    )


optimizer = IAPO(
    strategy=strategy(),
    preferences=[
        Preference("exact", weights={"near": 0.8, "clean": 0.2}),
        Preference("short", weights={"near": 0.2, "short": 0.8}, cost=0.5),
    ],
    max_n=8,
    budget=500,
    candidates=task.instructions,
    execution=Execution(progress=False),
)
program = optimizer.compile(dspy.Predict("target -> answer"), trainset=task.train(40, 0))
print(program.detailed_results)

learnt = program.policy.ready.strategy["calibration"]
for name, calibration in learnt.items():
    raw, level = (calibration[part].split() for part in ("raw", "level"))
    shown = range(0, len(raw), max(1, len(raw) // 6))
    print(f"{name:6} {calibration['kind']:7}", ", ".join(f"{float(raw[i]):g} -> {float(level[i]):.2f}" for i in shown))

with tempfile.TemporaryDirectory() as folder:
    program.save(Path(folder) / "split.json")
    loaded = CompiledProgram(dspy.Predict("target -> answer"), strategy=strategy())
    loaded.load(Path(folder) / "split.json")
for name in ("exact", "short"):
    prediction = loaded(target="735", preference=name)
    print(name, prediction.answer, [round(u, 2) for u in prediction.iapo.utilities if u is not None])
