"""Best-of-N with two objectives that pull apart: the weights of a preference choose the prompt and N.

needs: nothing (runs on the small LM that ships with the package)
"""

import dspy

from iapo_dspy import IAPO, BestOfN, Objective, Preference
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, brevity, correctness, splitting_task

register()
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0))
task = splitting_task()

optimizer = IAPO(
    strategy=BestOfN([Objective("correctness", correctness), Objective("brevity", brevity)]),
    preferences=[
        Preference("exact", weights={"correctness": 1.0}),
        Preference("short", weights={"correctness": 0.2, "brevity": 0.8}, cost=0.5),
    ],
    max_n=8,
    budget=1_200,
    candidates=task.instructions,
)
program = optimizer.compile(dspy.Predict("target -> answer"), trainset=task.train(100, 0))
print(program.detailed_results)
for name in ("exact", "short"):
    prediction = program(target="735", preference=name)
    print(name, prediction.answer, prediction.iapo.utilities)
