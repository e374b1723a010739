"""Compare the expectation of `IAPO.quote` with the real run, on the small language model that ships with the package.

    python examples/quote_against_real.py

needs: nothing (neither a key nor a network; about a minute)

Lengths come from the ledger of a short first run of the same prompts, as after a trial with a small budget.
"""

import tempfile

import dspy

from iapo_dspy import IAPO, Cost, Execution, MajorityVote, Preference, Search
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, addition_task

register()
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0))
task = addition_task()
student = dspy.Predict("question -> answer")
train = task.train(100, 0)


def optimizer(budget: int, max_n: int, log_dir: str | None = None) -> IAPO:
    """Return the optimizer of a run; prices are made up, because the model costs nothing."""
    return IAPO(
        metric=task.metric,
        strategy=MajorityVote("answer"),
        preferences=[Preference("quality", cost=0.0), Preference("thrifty", cost=5.0)],
        max_n=max_n,
        budget=budget,
        candidates=task.instructions,
        log_dir=log_dir,
        search=Search(cost_unit=Cost(completion_tokens=1, usd_per_million=(0.15, 0.60))),
        execution=Execution(progress=False),
    )


with tempfile.TemporaryDirectory() as folder:
    optimizer(500, 8, folder).compile(student, trainset=train)  # the pilot
    sizes = ((2_000, 8), (2_000, 16))
    quotes = [optimizer(budget, max_n, folder).quote(student, trainset=train) for budget, max_n in sizes]
    print(quotes[0])
    print(f"\n{'budget':>7}{'max_n':>6}  {'':<18}{'expected':>12}{'between':>12}{'and':>12}{'real':>12}{'off':>8}")
    for (budget, max_n), quote in zip(sizes, quotes, strict=True):
        expected = quote.expected
        spent = optimizer(budget, max_n).compile(student, trainset=train).detailed_results.spent
        for name in ("requests", "prompt_tokens", "completion_tokens", "usd"):
            guess, real, (low, high) = getattr(expected, name), getattr(spent, name), expected.spread[name]
            row = "".join(f"{value:>12,.4g}" for value in (guess, low, high, real))
            print(f"{budget:>7}{max_n:>6}  {name:<18}{row}{guess / real - 1:>8.1%}")
