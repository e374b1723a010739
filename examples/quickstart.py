"""Compile a program for three preferences, call it, save it and load it again.

needs: nothing (runs on the small LM that ships with the package; put your own in `dspy.configure`)
"""

import tempfile
from pathlib import Path

import dspy

from iapo_dspy import IAPO, Budget, CompiledProgram, MajorityVote, Preference
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, addition_task

register()  # your own: dspy.LM("hosted_vllm/MODEL", api_base="http://localhost:8000/v1", max_tokens=800)
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0))
task = addition_task()

student = dspy.Predict("question -> answer")
optimizer = IAPO(
    metric=task.metric,
    strategy=MajorityVote("answer"),
    preferences=[Preference("quality", cost=0.0), Preference("balanced", cost=0.5), Preference("thrifty", cost=5.0)],
    max_n=8,
    budget=Budget(completions=1_200),
    candidates=[student, "Answer at once.", "Work column by column, carrying, before you answer."],
)
train = task.train(100, 0)
print(optimizer.quote(student, trainset=train))
program = optimizer.compile(student, trainset=train)
print(program.detailed_results)

for preference in ("quality", "thrifty", Preference(cost=1.5)):
    prediction = program(question="What is 358 + 467?", preference=preference)
    print(prediction.answer, prediction.iapo.n, prediction.iapo.votes, prediction.iapo.completion_tokens)

with tempfile.TemporaryDirectory() as folder:
    program.save(Path(folder) / "adder.json")
    loaded = CompiledProgram(dspy.Predict("question -> answer"))
    loaded.load(Path(folder) / "adder.json")
print(loaded.solve("quality"))
