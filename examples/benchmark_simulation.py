"""Reproduce the published MATH figures of PSST, and time one run.

needs: the MATH environment of the paper's authors as a recording (.npz, .parquet) or as their pickle (.pkl).

    python examples/benchmark_simulation.py MATH_FILE --jobs 2

For each algorithm and budget the script prints the mean ACR over re-splits next to the ACR of the authors' code, and
the difference in standard errors. Both use the 0.5 credit for ties and the overspending budget rule. Then the script
checks that the package's own rule never spends more than the budget, and times PSST at T = 20,000 on one core. `--all`
also times 200 runs x 6 budgets x 8 algorithms.
"""

from __future__ import annotations

import argparse
import time

from tqdm import tqdm

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.environments.port import drive
from iapo_dspy.simulation.entrants import Rule, entrants
from iapo_dspy.simulation.runner import simulate
from iapo_dspy.simulation.sources import RecordedSource, Source, source
from iapo_dspy.simulation.summaries import summarize

BUDGETS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
# Mean ACR over 200 re-splits from the authors' code: exact test values, ties with the right answer count .5.
PUBLISHED = {
    "psst": (0.7935, 0.7953, 0.7974, 0.7982, 0.8012, 0.8046),
    "psst+k1": (0.7913, 0.7978, 0.7997, 0.7999, 0.8053, 0.8073),
    "psst+k4": (0.7908, 0.7954, 0.7993, 0.8019, 0.8050, 0.8094),
    "psst+k8": (0.7917, 0.7937, 0.7982, 0.8031, 0.8067, 0.8093),
    "uniform": (0.7426, 0.7612, 0.7907, 0.7934, 0.7975, 0.7984),
    "triple": (0.7488, 0.7524, 0.7575, 0.7598, 0.7631, 0.7669),
    "triple-random": (0.7748, 0.7754, 0.7778, 0.7779, 0.7747, 0.7720),
}
SEM = 0.0026  # of each published mean
EIGHT = ("psst", "psst+k1", "psst+k4", "psst+k8", "uniform", "epsilon-greedy", "softmax", "ucb")


def run(where: Source, names: tuple[str, ...], runs: int, seed: int, jobs: int, rule: Rule) -> tuple[dict, float]:
    """Simulate and return the summary's cells by (algorithm, budget), and the seconds it took."""
    start = time.perf_counter()
    with tqdm(total=runs, unit="run") as bar:
        made = simulate(
            where, entrants(names, rule), BUDGETS, runs=runs, seed=seed, jobs=jobs, progress=lambda _: bar.update()
        )
    seconds = time.perf_counter() - start
    summary = summarize(where.name, made, {})
    cells = {(r["algorithm"], r["budget"]): r for r in summary["results"]}
    return {"cells": cells, "references": summary["references"]}, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="also time 200 runs x 6 budgets x 8 algorithms")
    asked = parser.parse_args()

    where = source(asked.environment, ties="half")
    found, seconds = run(where, tuple(PUBLISHED), asked.runs, asked.seed, asked.jobs, "overspending")
    print(
        f"\nACR, ours / published ({asked.runs} runs, seed {asked.seed}, {seconds:.0f} s); in brackets their difference"
    )
    print(f"in standard errors of a published mean ({SEM})\n")
    print(f"{'':14}" + "".join(f"{b:>24,}" for b in BUDGETS))
    beyond = 0
    for name, published in PUBLISHED.items():
        row = f"{name:14}"
        for budget, theirs in zip(BUDGETS, published, strict=True):
            ours = found["cells"][name, budget]["acr"]
            off = (ours - theirs) / SEM
            beyond += abs(off) > 2.5
            row += f"   {ours:.4f} / {theirs:.4f} ({off:+.1f})"
        print(row)
    references = found["references"]
    print(f"\nbest train policy {references['train_best']:.4f} / .8162    oracle {references['oracle']:.4f} / .8296")
    print(f"{beyond} of {len(PUBLISHED) * len(BUDGETS)} entries differ by more than 2.5 standard errors")
    print(
        "spent by psst under the overspending rule:", *(f"{found['cells']['psst', b]['spent']:,.0f}" for b in BUDGETS)
    )

    bounded, _ = run(where, ("psst", "psst+k4", "uniform", "triple"), min(asked.runs, 20), asked.seed, 1, "bounded")
    over = [key for key, cell in bounded["cells"].items() if cell["acr"] is not None and cell["spent"] > key[1]]
    print("\nover budget under the package's own rule:", over or "none")

    if isinstance(where, RecordedSource):
        train = where.recording.subset(where.recording.split(asked.seed)[0])
        took = []
        for seed in range(10):
            environment = train.environment(seed)
            start = time.perf_counter()
            drive(PSST().start(train.problem(32), budget=20_000, seed=seed), environment)
            took.append(time.perf_counter() - start)
        print(f"one psst run at T = 20,000: {min(took):.3f} s (best of 10), {max(took):.3f} s (worst)")
    if asked.all:
        _, seconds = run(where, EIGHT, 200, asked.seed, asked.jobs, "bounded")
        print(f"200 runs x 6 budgets x 8 algorithms: {seconds / 60:.1f} min with --jobs {asked.jobs}")


if __name__ == "__main__":
    main()
