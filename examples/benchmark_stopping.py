"""Measure adaptive stopping against the best policy that draws a fixed N; needs the extra `simulation`.

    python examples/benchmark_stopping.py MATH_FILE --runs 200 --jobs 2
    python examples/benchmark_stopping.py synthetic-categorical --runs 20 --jobs 2 --budgets 5000

An environment is a recording or a synthetic one. In each run the queries are split anew, 80 to 20; `auto` and `psst`
draw from the training queries; the arms of auto are then chosen anew with stopping rules from the same draws
(`auto+stop`), or only get waves that end a vote that is settled (`auto+exact`). All policies are valued on the held-out
queries: arms that draw all N exactly, and what stopping changes on the same 400 sequences of completions per query for
every rule (Best-of-N: exactly).
Printed for each budget:

(a) the mean ACR of all four, and Wilcoxon's paired two-sided p of the differences over runs;
(b) for each cost weight: reward and completions of auto's arms and of auto+stop's, and the waves of the latter;
(c) what exact waves alone change: the largest change of a reward in any run, and the share of completions saved;
(d) how good the estimates are: what the run expected of its stopped arms, minus the truth on the training queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import joblib
import numpy as np
from tqdm import tqdm

from iapo_dspy.bandit.auto import auto
from iapo_dspy.bandit.problem import Outcome
from iapo_dspy.bandit.psst import psst
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.environments.port import drive
from iapo_dspy.simulation.results import wilcoxon
from iapo_dspy.simulation.sources import Instance, Source, source
from iapo_dspy.types import Policy

NAMES = ("psst", "auto", "auto+exact", "auto+stop")
_ENVIRONMENT = 1


def runs_of(where: Source, budgets: Sequence[int], numbers: Sequence[int], seed: int) -> list[dict]:
    """Make these runs one after the other, so that they share sampled completions."""
    return [row for run in numbers for row in one_run(where, budgets, seed, run)]


def one_run(where: Source, budgets: Sequence[int], seed: int, run: int) -> list[dict]:
    """Return the numbers of one run at each budget."""
    instance = where.instance(seed, run)
    problem = instance.train.problem(where.max_n, where.ties)
    rows = []
    for budget in budgets:
        stream = int(np.random.SeedSequence([seed, run, budget]).generate_state(1)[0])
        found: dict[str, Outcome] = {}
        for name, algorithm in (("psst", psst), ("auto", auto)):
            made = algorithm(problem, budget=budget, seed=stream)
            found[name] = drive(made, instance.train.environment(seed, run, _ENVIRONMENT, budget))
        found["auto+exact"] = with_stops(problem, found["auto"], mode="exact")
        found["auto+stop"] = with_stops(problem, found["auto"])
        for name in NAMES:
            stops = found[name].stops
            truth = value(instance, found[name].policy, held_out=False)
            off = None
            if stops is not None:
                off = {
                    "gain": np.array([s.gain for s in stops]) - truth["gain"],
                    "completions": np.array([s.completions for s in stops]) - truth["completions"],
                    "waves": np.array([s.waves for s in stops]) - truth["waves"],
                }
            rows.append({"name": name, "budget": budget, "off": off, **value(instance, found[name].policy)})
    return rows


def value(instance: Instance, policy: Policy, *, held_out: bool = True) -> dict[str, np.ndarray]:
    """Return what the policy is worth in each context [C]."""
    q = instance.q_test if held_out else instance.q_train
    calls = instance.stopped.calls(policy, instance.test_queries if held_out else instance.train_queries)
    contexts, recording = instance.train.contexts, instance.train
    prompt, n = (np.array([getattr(arm, name) for arm in policy.arms]) for name in ("prompt", "n"))
    fixed = q[np.arange(len(policy)), prompt, n - 1]
    price = contexts.cost * (recording.overhead[prompt] + n * recording.cost[prompt])
    return {
        "utility": fixed + calls.gain + calls.saved,
        "reward": fixed + price + calls.gain,
        "gain": calls.gain,
        "completions": calls.completions,
        "waves": calls.waves,
    }


def report(where: Source, rows: Sequence[dict], budgets: Sequence[int]) -> None:
    """Print the tables."""
    contexts = where.instance(0, 0).train.contexts
    weights = np.unique(contexts.cost)

    def of(name: str, budget: int, what: str) -> np.ndarray:
        return np.array([r[what] for r in rows if (r["name"], r["budget"]) == (name, budget)])

    n = len(of("auto", budgets[0], "utility"))
    print(f"\n{where.name}: {n} runs\n\n(a) ACR on held-out queries, and paired differences (p)")
    print("| T | " + " | ".join(NAMES) + " | stop - auto | exact - auto | stop - psst |")
    print("| --- " * (len(NAMES) + 4) + "|")
    for b in budgets:
        acr = {name: of(name, b, "utility").mean(axis=1) for name in NAMES}
        pairs = (("auto+stop", "auto"), ("auto+exact", "auto"), ("auto+stop", "psst"))
        tests = [f"{(acr[x] - acr[y]).mean():+.4f} ({wilcoxon(acr[x] - acr[y]):.2g})" for x, y in pairs]
        print(f"| {b:,} | " + " | ".join([*(f"{acr[name].mean():.4f}" for name in NAMES), *tests]) + " |")

    print("\n(b) by cost weight: reward and completions of a call")
    print("| T | cost weight | auto | auto+stop | change of reward | share of completions | waves |")
    print("| --- " * 7 + "|")
    for b in budgets:
        for w in weights:
            at = contexts.cost == w
            mean = {
                (name, what): of(name, b, what)[:, at].mean()
                for name in ("auto", "auto+stop")
                for what in ("reward", "completions", "waves")
            }
            cells = [f"{mean[name, 'reward']:.4f}, {mean[name, 'completions']:.1f}" for name in ("auto", "auto+stop")]
            change = mean["auto+stop", "reward"] - mean["auto", "reward"]
            share = mean["auto+stop", "completions"] / mean["auto", "completions"]
            print(
                f"| {b:,} | {w:g} | "
                + " | ".join([*cells, f"{change:+.4f}", f"{share:.2f}", f"{mean['auto+stop', 'waves']:.2f}"])
                + " |"
            )

    print("\n(c) exact waves alone")
    print("| T | largest change of a reward | completions of auto | of auto+exact | saved |")
    print("| --- " * 5 + "|")
    for b in budgets:
        change = np.abs(of("auto+exact", b, "gain")).max()
        plain, exact = (of(name, b, "completions").mean() for name in ("auto", "auto+exact"))
        print(f"| {b:,} | {change:g} | {plain:.2f} | {exact:.2f} | {1 - exact / plain:.1%} |")

    print("\n(d) expected minus true on the training queries, auto+stop: mean (root mean square)")
    print("| T | gain | completions | waves |")
    print("| --- " * 4 + "|")
    for b in budgets:
        off = [r["off"] for r in rows if (r["name"], r["budget"]) == ("auto+stop", b)]
        cells = []
        for what in ("gain", "completions", "waves"):
            values = np.array([o[what] for o in off])
            cells.append(f"{values.mean():+.4f} ({np.sqrt((values**2).mean()):.4f})")
        print(f"| {b:,} | " + " | ".join(cells) + " |")


def main() -> None:
    """Print the tables of one environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", help="a recording, or the name of a synthetic environment")
    parser.add_argument("--budgets", type=lambda t: [int(b) for b in t.split(",")], default=[1_000, 5_000, 20_000])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--max-n", type=int, default=32)
    asked = parser.parse_args()
    where = source(asked.environment, max_n=asked.max_n)
    size = max(1, min(5, asked.runs // max(abs(asked.jobs), 1)))
    blocks = [range(i, min(i + size, asked.runs)) for i in range(0, asked.runs, size)]
    tasks = (joblib.delayed(runs_of)(where, asked.budgets, block, asked.seed) for block in blocks)
    rows: list[dict] = []
    with tqdm(total=asked.runs, unit="run") as bar:
        for block, made in zip(blocks, joblib.Parallel(n_jobs=asked.jobs, return_as="generator")(tasks), strict=True):
            rows += made
            bar.update(len(block))
    report(where, rows, asked.budgets)


if __name__ == "__main__":
    main()
