"""Neither labels nor scores: a judge compares answers with those of the student, and finds the better prompt.

needs: nothing (runs on the small LM that ships with the package; the judge is a function)

The judge names the first place in three of ten verdicts, whatever stands there. Both orders are asked, so that this
makes ties and not winners, and the results say how often the place has decided.
"""

import random

import dspy

from iapo_dspy import IAPO, Preference, demo, objectives
from iapo_dspy.demo import addition_task


def distance(question: str, answer: str) -> float:
    """Tell how far an answer is from the sum that was asked for, which nobody needs a label to see."""
    total = sum(int(word.strip("?")) for word in question.split() if word.strip("?").isdigit())
    return abs(int(answer) - total) if answer.strip().isdigit() else float("inf")


def judge(example: dspy.Example, first: dspy.Prediction, second: dspy.Prediction) -> str:
    """Name the nearer answer, or the first one by habit."""
    if random.Random(f"{example.question}|{first.answer}|{second.answer}").random() < 0.3:
        return "first"
    one, two = distance(example.question, first.answer), distance(example.question, second.answer)
    return "tie" if one == two else "first" if one < two else "second"


dspy.configure(lm=demo.lm())
train = [dspy.Example(question=e.question).with_inputs("question") for e in addition_task().train(30, 0)]
student = dspy.Predict(dspy.Signature("question -> answer", "Give a rough estimate."))
better = objectives.prefers(judge)  # the opponent is the student itself

program = IAPO(
    metric=better,
    preferences=[Preference("quality", cost=0.0)],
    candidates=[student, "Answer at once.", "Work column by column, carrying, before you answer."],
    max_n=1,
    budget=150,
).compile(student, trainset=train)
print(program.detailed_results)

for name, found in program.detailed_results.policy[0].wins.items():
    print(f"{name}: {found.wins:.2f} won, {found.ties:.2f} tied, {found.losses:.2f} lost; win rate {found.rate:.2f}")
print(f"the judge: {better.bias()}")
