"""MIPROv2, then IAPO: all that MIPROv2 tried is a candidate, instructions and demonstrations.

needs: nothing but Optuna (`pip install "dspy[optuna]"`; runs on the small LM that ships with the package, and prompts
are dealt by `scripted_writer`)
"""

import dspy
from scripted_writer import ScriptedWriter

from iapo_dspy import IAPO, Execution, MajorityVote, Preference, candidates_of
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, addition_task

register()  # your own: dspy.LM("hosted_vllm/MODEL", api_base="http://localhost:8000/v1", max_tokens=800)
lm = dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False)
dspy.configure(lm=lm)
task = addition_task()
train, val = task.train(60, 0)[:40], task.train(60, 0)[40:]

with ScriptedWriter(task, seed=0) as writer:  # your own: a strong LM
    mipro = dspy.MIPROv2(
        metric=task.metric,
        prompt_model=writer.lm(),
        task_model=lm,
        auto=None,
        num_candidates=4,
        max_bootstrapped_demos=2,
        max_labeled_demos=0,
    )
    student = dspy.Predict("question -> answer")
    found = mipro.compile(student, trainset=train, valset=val, num_trials=5, minibatch=False)
print(candidates_of(found))

optimizer = IAPO(
    metric=task.metric,
    strategy=MajorityVote("answer"),
    preferences=[Preference("quality", cost=0.0), Preference("thrifty", cost=1.0)],
    max_n=4,
    budget=300,
    candidates=found,
    execution=Execution(progress=False),
)
program = optimizer.compile(dspy.Predict("question -> answer"), trainset=train + val)
print(program.detailed_results)
