"""Neither labels nor scores: a judge compares answers with those of the student, and finds the better prompt.

needs: nothing (runs on the small LM that ships with the package; the judge is a function)

The judge prefers the first place in three of ten verdicts, whatever stands there. Both orders are asked, so that this
makes ties and not winners, and the results say how often the place has decided.
"""

import random

import dspy

from iapo_dspy import IAPO, Preference, demo, objectives
from iapo_dspy.demo import addition_task


def right(question: str, answer: str) -> bool:
    """Tell whether an answer is the sum that was asked for; a judge can see this without a label."""
    numbers = [int(word.strip("?")) for word in question.split() if word.strip("?").isdigit()]
    return answer.strip() == str(sum(numbers))


def judge(example: dspy.Example, first: dspy.Prediction, second: dspy.Prediction) -> str:
    """Name the better answer, or the first one by habit."""
    chance = random.Random(f"{example.question}|{first.answer}|{second.answer}").random()
    one, two = right(example.question, first.answer), right(example.question, second.answer)
    if chance < 0.3:
        return "first"
    return "tie" if one == two else "first" if one else "second"


dspy.configure(lm=demo.lm())
task = addition_task()
train = [dspy.Example(question=example.question).with_inputs("question") for example in task.train(40, 0)]
student = dspy.Predict(dspy.Signature("question -> answer", "Answer at once."))
better = objectives.prefers(judge)  # the opponent is the student itself

program = IAPO(
    metric=better,
    preferences=[Preference("quality", cost=0.0)],
    candidates=[student, "Guess.", "Work column by column, carrying, before you answer."],
    max_n=2,
    budget=300,
).compile(student, trainset=train)
print(program.detailed_results)

row = program.detailed_results.policy[0]
print(f"\nN={row.arm.n} of {row.label!r}")
for name, found in row.wins.items():
    print(f"{name}: {found.wins:.2f} won, {found.ties:.2f} tied, {found.losses:.2f} lost; win rate {found.rate:.2f}")
print(f"the judge: {better.bias()}")
