"""IAPO, then GEPA on the winner: GEPA rewrites the best prompt of one preference, and the result is a candidate again.

needs: nothing (runs on the small LM that ships with the package; prompts are dealt by `scripted_writer`)
"""

import dspy
from scripted_writer import ScriptedWriter

from iapo_dspy import IAPO, Execution, MajorityVote, Preference
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, addition_task

register()  # your own: dspy.LM("hosted_vllm/MODEL", api_base="http://localhost:8000/v1", max_tokens=800)
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False))
task = addition_task()
train, val = task.train(60, 0)[:45], task.train(60, 0)[45:]
student = dspy.Predict("question -> answer")
given = [student, "Answer at once.", "Jot down the column sums, then answer."]


def metric(gold, pred, trace=None, pred_name=None, pred_trace=None):
    """Return a score with the reason in words, which GEPA's LM reads."""
    right = task.metric(gold, pred)
    return dspy.Prediction(score=float(right), feedback="Right." if right else f"The answer is {gold.answer}.")


optimizer = IAPO(
    metric=metric,
    strategy=MajorityVote("answer"),
    preferences=[Preference("quality", cost=0.0), Preference("thrifty", cost=1.0)],
    max_n=4,
    budget=200,
    execution=Execution(progress=False),
)
first = optimizer.compile(student, trainset=train + val, candidates=given)
winner = first.detailed_results.candidate_programs[first.solve("quality").prompt]
print(f"the winner for quality: {winner.signature.instructions!r}")

with ScriptedWriter(task, seed=0) as writer:  # your own: a strong LM
    gepa = dspy.GEPA(metric=metric, max_metric_calls=50, reflection_lm=writer.lm(), seed=0)
    rewritten = gepa.compile(winner, trainset=train, valset=val)
print(f"GEPA made of it: {rewritten.signature.instructions!r}")

second = optimizer.compile(student, trainset=train + val, candidates=[*given, rewritten])
print(second.detailed_results)
