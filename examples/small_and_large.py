"""Compare a small model asked many times with a large one asked once, for several worths of a point of accuracy.

needs: nothing (runs on the small LMs that ship with the package; prices are made up)

The large model is the demo's; the small one is the same network rounded to three bits, ten times cheaper. Both are
fixtures of a million parameters: the example shows how to ask the question, and is not evidence about LLMs.
"""

import asyncio
import dataclasses
import statistics

import dspy
import numpy as np

from iapo_dspy import IAPO, CompiledProgram, Cost, Execution, MajorityVote, Preference, Search
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, SMALL_MODEL, USD_PER_MILLION, addition_task
from iapo_dspy.errors import AllCompletionsFailed
from iapo_dspy.types import Arm

WORTH = [0.000003, 0.00003, 0.0002, 0.002]  # the worth of one hundredth of accuracy in dollars, per question
PREFERENCES = [Preference.worth(f"${usd:g}", usd=usd) for usd in WORTH]  # the same exchange rates for every program
BUDGET, QUESTIONS, HELD_OUT = 2_000, 200, 100

register()
settings = {"engine": "litellm", "temperature": 1.0, "max_tokens": 200, "cache": False, "seed": 0}
small, large = dspy.LM(SMALL_MODEL, **settings), dspy.LM(MODEL, **settings)
task = addition_task()
instructions = [
    "Answer at once.",
    "Note the sums from right to left in brief, then answer.",
    "Add the units, then the tens, then the hundreds, and carry as you go.",
]
held_out = task.heldout(HELD_OUT, 0)


def compiled(lms: list[dspy.LM]) -> CompiledProgram:
    """Compile with these LMs, for the same budget."""
    optimizer = IAPO(
        metric=task.metric,
        strategy=MajorityVote("answer"),
        lms=lms,
        preferences=PREFERENCES,
        candidates=instructions,
        max_n=16,
        budget=BUDGET,
        search=Search(cost_unit=Cost(usd_per_million=USD_PER_MILLION)),
        execution=Execution(progress=False),
    )
    return optimizer.compile(task.student(), trainset=task.train(QUESTIONS, 0))


measured: dict[tuple[str, Arm], tuple[float, float]] = {}


async def measure(program: CompiledProgram, preference: Preference) -> tuple[str, Arm, float, float]:
    """Ask every held-out question as an application would; return prompt, arm, accuracy and dollars a question."""
    arm = program.solve(preference)
    name = program.policy.programs.label(arm.prompt)
    if not name.endswith("]"):  # a run with one LM does not name it
        name += f" [{program.models[0]}]"
    if (name, arm) not in measured:
        answers = await asyncio.gather(*(ask(program, example, preference) for example in held_out))
        accuracy, dollars = (statistics.fmean(column) for column in zip(*answers, strict=True))
        measured[name, arm] = accuracy, dollars
    return name, arm, *measured[name, arm]


async def ask(program: CompiledProgram, example: dspy.Example, preference: Preference) -> tuple[bool, float]:
    """Whether one question is answered right, and its dollars; a missing answer is a wrong answer."""
    try:
        prediction = await program.acall(**example.inputs(), preference=preference)
    except AllCompletionsFailed as failed:
        model = program.policy.programs.runnable(program.solve(preference).prompt).get_lm().model
        rates = zip(USD_PER_MILLION[model], (failed.prompt_tokens, failed.completion_tokens), strict=True)
        return False, sum(rate * tokens / 1e6 for rate, tokens in rates)
    return task.metric(example, prediction), prediction.iapo.usd


async def main() -> None:
    """Compile, then compare on held-out questions."""
    programs = {"both": compiled([small, large]), "small only": compiled([small]), "large only": compiled([large])}
    print("policy of the program that may use both, per worth of one hundredth of accuracy:")
    for preference in PREFERENCES:
        arm = programs["both"].solve(preference)
        print(f"  {preference.name:<9} N={arm.n:<3} {programs['both'].policy.programs.label(arm.prompt)}")

    print(f"\n{HELD_OUT} held-out questions; utility is accuracy - dollars x .01 / worth:")
    print(f"{'worth of .01':<14}{'program':<12}{'accuracy':>9}{'$/1000':>9}{'utility':>9}  arm")
    totals: dict[str, list[float]] = {}
    for usd, preference in zip(WORTH, PREFERENCES, strict=True):
        for name, program in programs.items():
            label, arm, accuracy, dollars = await measure(program, preference)
            utility = accuracy - 0.01 / usd * dollars
            totals.setdefault(name, []).append(utility)
            print(f"${usd:<13g}{name:<12}{accuracy:>9.3f}{1000 * dollars:>9.4f}{utility:>9.3f}  N={arm.n} {label}")
    print("mean utility: " + ", ".join(f"{name} {statistics.fmean(values):.3f}" for name, values in totals.items()))

    # The large model asked once, with its best instruction, against every arm of the small one.
    result = programs["large only"].detailed_results
    policy, once = programs["large only"].policy.ready, Preference("once")
    fixed = dataclasses.replace(
        policy, preferences=(once,), arms=(Arm(int(np.nanargmax(result.reward[0, :, 0])), 1),), default="once"
    )
    single = CompiledProgram(task.student(), policy=fixed, strategy=MajorityVote("answer"), lms=[large])
    name, _, accuracy, dollars = await measure(single, once)
    print(f"\nlarge once: accuracy {accuracy:.3f} at ${1000 * dollars:.4f} per 1000 questions ({name})")
    for (other, arm), (theirs, price) in sorted(measured.items(), key=lambda item: item[1][1]):
        if SMALL_MODEL in other and theirs > accuracy:
            print(f"  small with N={arm.n} is better: {theirs:.3f} at ${1000 * price:.4f} ({other})")


asyncio.run(main())
