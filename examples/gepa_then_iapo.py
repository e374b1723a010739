"""GEPA, then IAPO: GEPA finds candidates, IAPO chooses among them for each preference, together with N.

needs: nothing (runs on the small LM that ships with the package; prompts are dealt by `scripted_writer`)
"""

import dspy
from scripted_writer import ScriptedWriter

from iapo_dspy import IAPO, Execution, MajorityVote, Preference, candidates_of
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, addition_task

register()  # your own: dspy.LM("hosted_vllm/MODEL", api_base="http://localhost:8000/v1", max_tokens=800)
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False))
task = addition_task()
train, val = task.train(60, 0)[:45], task.train(60, 0)[45:]


def metric(gold, pred, trace=None, pred_name=None, pred_trace=None):
    """Return a score with the reason in words, which GEPA's LM reads."""
    right = task.metric(gold, pred)
    return dspy.Prediction(score=float(right), feedback="Right." if right else f"The answer is {gold.answer}.")


with ScriptedWriter(task, seed=0) as writer:  # your own: a strong LM
    gepa = dspy.GEPA(metric=metric, max_metric_calls=80, reflection_lm=writer.lm(), track_stats=True, seed=0)
    found = gepa.compile(dspy.Predict("question -> answer"), trainset=train, valset=val)
print(candidates_of(found))

optimizer = IAPO(
    metric=metric,
    strategy=MajorityVote("answer"),
    preferences=[Preference("quality", cost=0.0), Preference("thrifty", cost=1.0)],
    max_n=4,
    budget=300,
    candidates=found,
    execution=Execution(progress=False),
)
program = optimizer.compile(dspy.Predict("question -> answer"), trainset=train + val)
print(program.detailed_results)
