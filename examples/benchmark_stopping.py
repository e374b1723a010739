"""Measure adaptive stopping against the best policy that draws a fixed N; needs the extra `simulation`.

    python examples/benchmark_stopping.py MATH_FILE --runs 200 --jobs 2
    python examples/benchmark_stopping.py synthetic-categorical --runs 20 --jobs 2 --budgets 5000
    python examples/benchmark_stopping.py MATH_FILE --schedules

An environment is a recording or a synthetic one. In each run the queries are split anew, 80 to 20; `auto` and `psst`
draw from the training queries; the arms of auto are then chosen anew with stopping rules from the same draws
(`auto+stop`), or only get waves that end a vote that is settled (`auto+exact`). All policies are valued on the held-out
queries. Arms that draw all N are valued exactly. The change by stopping is measured on the same 400 sequences of
completions per query for every rule (Best-of-N: exactly).

For each budget the script prints:

(a) the mean ACR of all four, and Wilcoxon's paired two-sided p of the differences over runs;
(b) for each cost weight: reward and completions of auto's arms and of auto+stop's, and the waves of the latter;
(c) the effect of exact waves alone: the largest change of a reward in any run, and the share of completions saved;
(d) the errors of the estimates: the run's expectation of its stopped arms, minus the truth on the training queries.

`--schedules` compares lists of waves for votes instead, by the true law of all queries: the ACR of the best of all
(prompt, N, confidence), with completions and waves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import joblib
import numpy as np
from tqdm import tqdm

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.stopping.rules import CONFIDENCES, doubling_waves, tuned_scales
from iapo_dspy.bandit.stops import THRIFT, with_stops
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.simulation.sources import Instance, RecordedSource, Source, source
from iapo_dspy.simulation.summaries import wilcoxon
from iapo_dspy.types import Arm, Policy, Stop

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
        for name, algorithm in (("psst", PSST()), ("auto", Auto())):
            made = algorithm.start(problem, budget=budget, seed=stream)
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
    """Return the worth of the policy in each context [C]."""
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


SCHEDULES = {
    "all N at once": lambda n: (n,),
    "half, then the rest": lambda n: ((n + 1) // 2, n),
    "1, 2, 4, ..": lambda n: doubling_waves(1, n),
    "2, 4, 8, ..": lambda n: doubling_waves(2, n),
    "3, 6, 12, ..": lambda n: doubling_waves(3, n),
    "4, 8, 16, ..": lambda n: doubling_waves(4, n),
    "2, 8, 32, ..": lambda n: (*(k for k in (2, 8, 32) if k < n), n),
    "one by one": lambda n: tuple(range(1, n + 1)),
}


def schedules(where: RecordedSource) -> None:
    """Print the worth of the best arms under each list of waves, by the true law of all queries."""
    recording, q = where.recording, where.values.q()
    values, contexts = StoppedValues(recording=recording, sequences=200), where.recording.contexts
    print("| waves | ACR | by cost weight: utility, completions, waves |")
    print("| --- | --- | --- |")
    for name, waves_of in SCHEDULES.items():
        found = []
        for c, price in enumerate(contexts.cost):
            best = (-np.inf, 0.0, 0.0, 0.0)
            for prompt in np.argsort(-q[c].max(axis=1))[:4]:
                for n in tuned_scales(where.max_n):
                    for confidence in (None,) if name == "all N at once" else (None, *CONFIDENCES):
                        stop = Stop(waves=waves_of(n), confidence=confidence)
                        gain, completions, waves = values.law(c, Arm(int(prompt), n, stop)).mean(axis=1)
                        worth = q[c, prompt, n - 1] + gain + price * recording.cost[prompt] * (n - completions)
                        # Where completions are free, the same small price decides as in a run.
                        thrifty = worth - max(0.0, THRIFT / where.max_n - price * recording.cost[prompt]) * completions
                        best = max(best, (thrifty, worth, completions, waves))
            found.append(best)
        each = "; ".join(
            f"{w:g}: {u:.4f}, {m:.1f}, {k:.1f}" for w, (_, u, m, k) in zip(contexts.cost, found, strict=True)
        )
        print(f"| {name} | {np.mean([f[1] for f in found]):.4f} | {each} |")


def main() -> None:
    """Print the tables of one environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", help="a recording, or the name of a synthetic environment")
    parser.add_argument("--budgets", type=lambda t: [int(b) for b in t.split(",")], default=[1_000, 5_000, 20_000])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--max-n", type=int, default=32)
    parser.add_argument("--schedules", action="store_true", help="compare lists of waves on a recording of votes")
    asked = parser.parse_args()
    where = source(asked.environment, max_n=asked.max_n)
    if asked.schedules:
        if not isinstance(where, RecordedSource) or not isinstance(where.recording, VotingRecording):
            parser.error("--schedules needs a recording of votes")
        schedules(where)
        return
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
