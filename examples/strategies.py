"""One task under four strategies: majority vote, a vote weighted by a partial check, a median, and a tolerance.

needs: nothing (runs on the small LM that ships with the package)
"""

import re
from typing import Any

import dspy

from iapo_dspy import IAPO, Execution, MajorityVote, Median, Preference, Strategy, WeightedVote
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, addition_task

register()
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0))
task = addition_task()
train = task.train(60, 0)


def last_digit(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Check the last digit: without a label, so that a wrong answer passes now and then."""
    numbers = [int(n) for n in re.findall(r"\d+", example.question)]
    return 1.0 if str(prediction.answer).strip().endswith(str(sum(numbers) % 10)) else 0.1


def compiled(strategy: Strategy, metric: Any) -> dspy.Module:
    """Compile under one strategy."""
    optimizer = IAPO(
        metric=metric,
        strategy=strategy,
        preferences=[Preference("quality", cost=0.0), Preference("balanced", cost=1.0)],
        max_n=8,
        budget=500,
        candidates=["Answer at once.", "Work column by column, carrying, before you answer."],
        execution=Execution(progress=False),
    )
    return optimizer.compile(dspy.Predict("question -> answer"), trainset=train)


for strategy, metric in (
    (MajorityVote("answer"), task.metric),
    (MajorityVote("answer", tolerance=5), task.metric),
    (WeightedVote("answer", weight=last_digit), task.metric),
    (Median("answer", range=(0, 2_000), scale=100), None),
):
    program = compiled(strategy, metric)
    for row in program.detailed_results.policy:
        print(strategy.to_dict()["kind"], row.preference.name, row.arm, f"reward {row.reward:.3f}")
    prediction = program(question="What is 358 + 467?")
    print("358 + 467 =", prediction.answer, prediction.iapo.votes or prediction.iapo.replaced)
