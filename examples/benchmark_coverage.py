"""Whether what users are shown is true: a utility and its interval, "best with p", and gains over the baselines.

    python examples/benchmark_coverage.py synthetic-bernoulli recording.npz --queries 2,20,200,0 --per-prompt 20,400

Every run draws a training set and spends T = per-prompt x prompts completions. `bias` is the reported utility of the
chosen arms minus the exact one on the training queries, with its standard error over runs. `coverage` is how often the
interval holds the exact utility over all queries, and `+-` is half the mean width of the intervals. A number of queries
of 0 stands for 80 % of the environment's own. The last table has the gains of the chosen arms over the baselines, where
these are other arms; prompt 0 stands for the student.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from iapo_dspy.simulation.entrants import entrants
from iapo_dspy.simulation.runner import Trial, simulate
from iapo_dspy.simulation.sources import source

BINS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", help="as of `python -m iapo_dspy.simulation --environment`")
    parser.add_argument("--queries", default="2,5,10,20,50,200,0", help="training queries, separated by commas")
    parser.add_argument("--per-prompt", default="20,40,100,400", help="completions per prompt, separated by commas")
    parser.add_argument("--algorithm", default="auto")
    parser.add_argument("--max-n", type=int, default=32)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    asked = parser.parse_args()
    print("| environment | queries | completions per prompt | bias (s.e.) | coverage | +- | ACR |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    claims: list[tuple[float, bool]] = []
    gains: list[tuple[str, float, float, bool]] = []
    rows = []
    for environment in asked.environments:
        for queries in map(int, asked.queries.split(",")):
            where = source(environment, max_n=asked.max_n, queries=queries or None)
            first = where.instance(asked.seed, 0)
            budgets = [int(each) * first.train.n_prompts for each in asked.per_prompt.split(",")]
            runs = simulate(
                where, entrants([asked.algorithm]), budgets, runs=asked.runs, seed=asked.seed, jobs=asked.jobs
            )
            for budget in budgets:
                trials = [t for r in runs if (t := r.trials[asked.algorithm, budget]) is not None]
                claims += [claim for t in trials for claim in t.claims]
                gains += [gain for t in trials for gain in t.gains]
                rows.append(row(where.name, first.train.n_queries, budget // first.train.n_prompts, trials))
                print("| {environment} | {queries} | {per_prompt} | {bias:+.3f} ({se:.3f}) | {coverage:.3f} "
                      "| {half_width:.3f} | {acr:.4f} |".format(**rows[-1]), flush=True)  # fmt: skip
    print("\n| said | mean p | really best | choices |\n| --- | --- | --- | --- |")
    said, best = np.array([p for p, _ in claims]), np.array([b for _, b in claims])
    for low, high in pairwise(BINS):
        mine = (said >= low) & ((said < high) | (high == 1.0))
        if mine.any():
            print(f"| {low:.1f} to {high:.1f} | {said[mine].mean():.2f} | {best[mine].mean():.2f} | {mine.sum()} |")
    print("\n| gain over | bias | coverage | +- | arms |\n| --- | --- | --- | --- | --- |")
    for baseline in dict.fromkeys(name for name, *_ in gains):
        error, half_width, held = np.array([numbers for name, *numbers in gains if name == baseline]).T
        print(f"| {baseline} | {error.mean():+.3f} | {held.mean():.3f} | {half_width.mean():.3f} | {len(held)} |")
    if asked.json:
        asked.json.write_text(json.dumps({"rows": rows, "claims": claims, "gains": gains}))


def row(name: str, queries: int, per_prompt: int, trials: list[Trial]) -> dict[str, object]:
    """Return the numbers of one line."""
    bias = np.array([t.bias for t in trials], dtype=float)
    return {
        "environment": name, "queries": queries, "per_prompt": per_prompt, "runs": len(trials),
        "bias": float(bias.mean()), "se": float(bias.std(ddof=1) / np.sqrt(len(bias))),
        "coverage": float(np.mean([t.coverage for t in trials])),
        "half_width": float(np.mean([t.half_width for t in trials])), "acr": float(np.mean([t.acr for t in trials])),
    }  # fmt: skip


if __name__ == "__main__":
    main()
