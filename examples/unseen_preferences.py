"""Compare preferences that were solved without LM calls with a fresh compile for each of them (about ten minutes).

    python examples/unseen_preferences.py [--preferences 100] [--budget 1000] [--bases 5] [--at-a-time 8]

A program is compiled for three named preferences on the demo's splitting task (two objectives). This is done several
times, with other draws each time, because one set of draws may be lucky. Then

- each program solves, from its stored evidence, 100 preferences that it was not compiled for: random weights of the
  objectives (uniform on the simplex), random cost weights (log-uniform from 0.02 to 2);
- each of them gets a fresh compile, with the same budget, on the same training questions, with draws of its own.

All chosen arms are scored on one table: 24 draws of every prompt on 100 held-out questions give the reward of every
arm by unbiased subset estimates. A loss is the utility of the fresh arm minus that of the solved one. The table shows
the losses of the first program.

It runs on the small LM that ships with the package: a fixture that shows the path, not evidence about large LMs.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import dspy
import numpy as np
from numpy.typing import NDArray

from iapo_dspy import IAPO, BestOfN, CompiledProgram, Execution, Objective, Preference
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.demo import register, splitting_task
from iapo_dspy.demo.tasks import MODEL
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.types import Arm, Contexts, Observations, Pulls

MAX_N = 16
DRAWS = 24
BASE = 10_000  # distance of the programs' seeds; those of the fresh compiles and of the table lie between them
TASK = splitting_task()
STRATEGY = BestOfN([Objective(name, score) for name, score in TASK.objectives.items()])
NAMED = [
    Preference("exact", weights={"correctness": 0.8, "brevity": 0.2}),
    Preference("even", weights={"correctness": 0.5, "brevity": 0.5}, cost=0.2),
    Preference("short", weights={"correctness": 0.2, "brevity": 0.8}, cost=1.0),
]


def lm(seed: int) -> dspy.LM:
    """Return the demo LM with a seed of its own, so that no two runs share a draw."""
    return dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=seed)


def unseen(count: int, seed: int) -> list[Preference]:
    """Draw preferences."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(2), size=count)
    costs = np.exp(rng.uniform(np.log(0.02), np.log(2.0), size=count))
    return [
        Preference(f"#{i}", weights=dict(zip(TASK.objectives, w.tolist(), strict=True)), cost=float(c))
        for i, (w, c) in enumerate(zip(weights, costs, strict=True))
    ]


def compile_for(preferences: Sequence[Preference], budget: int, seed: int) -> CompiledProgram:
    """Compile on the training questions, which are the same for all."""
    optimizer = IAPO(
        strategy=STRATEGY,
        preferences=preferences,
        max_n=MAX_N,
        budget=budget,
        candidates=TASK.instructions,
        seed=seed,
        execution=Execution(progress=False),
    )
    with dspy.context(lm=lm(seed)):
        return optimizer.compile(TASK.student(), trainset=TASK.train(150, 0))


async def draw(programs: Sequence[dspy.Module], examples: Sequence[dspy.Example]) -> Observations:
    """Draw every prompt on every held-out question."""
    sampler = Sampler()
    rows = [(p, x) for x in range(len(examples)) for p in range(len(programs))]
    drawn = await asyncio.gather(
        *(sampler.sample(programs[p], examples[x].inputs().toDict(), DRAWS, key=[p, x]) for p, x in rows)
    )
    failed = (float("nan"),) * len(STRATEGY.objectives)
    scores = [
        (STRATEGY.score(examples[x], r.prediction, None).scores if r.prediction is not None else None) or failed
        for (_, x), rollouts in zip(rows, drawn, strict=True)
        for r in rollouts
    ]
    return Observations(
        pulls=Pulls(*np.array([(p, x, DRAWS) for p, x in rows]).T),
        label=np.full(len(scores), -1),
        score=np.array(scores),
        cost=np.array([r.usage.completion_tokens for rollouts in drawn for r in rollouts]),
    )


def utilities(program: CompiledProgram, preferences: Sequence[Preference], seen: Observations) -> NDArray[np.float64]:
    """Return the held-out utility of every arm for every preference [C, P, N], priced as the program prices."""
    results = program.detailed_results
    contexts = Contexts.from_preferences(preferences, STRATEGY.objectives)
    problem = Problem(
        n_prompts=len(results.labels),
        n_queries=int(seen.pulls.query.max()) + 1,
        max_n=MAX_N,
        contexts=contexts,
        aggregator=STRATEGY.aggregator(),
        cost_scale=results.cost_scale,
    )
    estimator = SubsetEstimator(problem)
    estimator.update(seen)
    return estimator.estimates().utility(contexts, results.cost_scale)


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preferences", type=int, default=100)
    parser.add_argument("--budget", type=int, default=1_000, help="completions of every compile")
    parser.add_argument("--bases", type=int, default=5, help="programs that solve, each with draws of its own")
    parser.add_argument("--at-a-time", type=int, default=8, help="fresh compiles that share the LM")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("iapo_dspy").setLevel(logging.ERROR)  # a completion in a thousand does not parse
    register()
    start = time.perf_counter()
    wanted = unseen(args.preferences, args.seed)
    programs = [compile_for(NAMED, args.budget, args.seed + k * BASE) for k in range(args.bases)]
    program = programs[0]
    print(f"Compiled for {len(NAMED)} preferences with {args.budget:,} completions:\n{program.detailed_results}\n")

    since = time.perf_counter()
    with dspy.context(lm=None):  # an LM call would raise
        solved = [[p.solve(w) for w in wanted] for p in programs]
    each = (time.perf_counter() - since) / len(wanted) / len(programs)
    print(f"{len(wanted)} unseen preferences solved without an LM, {1e3 * each:.0f} ms each")

    since = time.perf_counter()
    with ThreadPoolExecutor(args.at_a_time) as pool:
        seeds = range(args.seed + 1, args.seed + 1 + len(wanted))
        compiled = list(pool.map(lambda p, s: compile_for([p], args.budget, s), wanted, seeds))
    spent = sum(c.detailed_results.spent.completions for c in compiled)
    print(f"{len(wanted)} fresh compiles: {spent:,} completions, {time.perf_counter() - since:.0f} s")
    fresh: list[Arm] = [c.policy.ready.arms[0] for c in compiled]

    with dspy.context(lm=lm(args.seed + BASE // 2)):
        seen = asyncio.run(draw(program.detailed_results.candidate_programs, TASK.heldout(100, 0)))
    table = utilities(program, wanted, seen)
    rows = np.arange(len(wanted))
    *values, theirs = (table[rows, [a.prompt for a in arms], [a.n - 1 for a in arms]] for arms in (*solved, fresh))
    ours = np.array(values)
    best = table.max(axis=(1, 2))

    print(f"\n{'correctness':>11} {'brevity':>8} {'cost':>6}   {'solved':<14} {'fresh':<14} {'utility':>8} {'loss':>8}")
    for p, a, b, value, lost in zip(
        wanted, solved[0], fresh, ours[0].tolist(), (theirs - ours[0]).tolist(), strict=True
    ):
        assert p.weights is not None
        weights = f"{p.weights['correctness']:>11.2f} {p.weights['brevity']:>8.2f} {p.cost:>6.3f}"
        arms = " ".join(f"prompt {arm.prompt} N={arm.n:<3}" for arm in (a, b))
        print(f"{weights}   {arms}  {value:>8.4f} {lost:>8.4f}")
    print()
    for k, (arms, value) in enumerate(zip(solved, ours, strict=True)):
        loss = theirs - value
        same = np.mean([a == b for a, b in zip(arms, fresh, strict=True)])
        prompts = np.mean([a.prompt == b.prompt for a, b in zip(arms, fresh, strict=True)])
        print(
            f"program {k}: loss mean {loss.mean():.4f} (standard error {loss.std(ddof=1) / len(loss) ** 0.5:.4f}), "
            f"sd {loss.std(ddof=1):.4f}, largest {loss.max():.4f}; same prompt {prompts:.0%}, same arm {same:.0%}"
        )
    print(
        f"mean loss over programs {np.mean(theirs - ours):.4f}; LM calls made by solving 0\n"
        f"behind the table's best arm: solved {np.mean(best - ours):.4f}, fresh {np.mean(best - theirs):.4f}\n"
        f"{time.perf_counter() - start:.0f} s in all"
    )


if __name__ == "__main__":
    main()
