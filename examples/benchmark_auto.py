"""Measure the default algorithm, `auto`, against PSST; needs the extra `simulation`.

    python examples/benchmark_auto.py synthetic-bernoulli synthetic-unstructured --runs 200 --jobs 2
    python examples/benchmark_auto.py MATH_FILE --budgets 1000,2000,5000,20000 --reach 500,1000,2000,5000
    python examples/benchmark_auto.py MATH_FILE synthetic-factorial --ablation --budgets 40x,5000 --runs 40
    python examples/benchmark_auto.py CQA_FILE --arrivals 8 --budgets 4000
    OMP_NUM_THREADS=1 python examples/benchmark_auto.py --overhead

An environment is a synthetic one or the path of a recording. All algorithms share the splits, ties count 1/t, and an
algorithm never spends more than its budget, to which the completions that measure the chosen arms belong. A budget of
40x stands for 40 completions per prompt. For each environment the script prints:

- for every budget, the mean ACR on held-out queries (exact), the excess regret over the policy that is best on the
  training queries, the completions spent, and Wilcoxon's paired two-sided p of auto against psst and psst+k8;
- the calls that auto needs to reach the ACR of psst with 20,000 calls: the smallest of the given budgets at which its
  mean ACR is not below.

`--ablation` takes one part of the algorithm out at a time (`auto_variants.VARIANTS`) and tells what is lost by it. Part
of each budget measures the chosen arms there as well. `--arrivals` lets the prompts join in so many generations, and
compares the policy with that of a run that knew all of them from the start. `--overhead` times all estimation and
allocation of a run on one core: set OMP_NUM_THREADS=1. `--json` keeps the numbers of every run of the other tables, and
`--read` prints these again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from auto_variants import VARIANTS
from tqdm import tqdm

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import Environment
from iapo_dspy.environments.recorded.synthetic import MAX_N, synthetic_bernoulli, synthetic_categorical
from iapo_dspy.environments.wrappers import Noise
from iapo_dspy.simulation.entrants import Entrant, entrants
from iapo_dspy.simulation.runner import SimulatedRun, Trial, simulate
from iapo_dspy.simulation.sources import SYNTHETIC, ArrivingSource, Source, source
from iapo_dspy.simulation.summaries import wilcoxon

AIM = ("psst", 20_000)  # auto is to reach its ACR
RIVALS = ("psst", "psst+k8")


@dataclass(frozen=True)
class Found:
    """The runs on one environment."""

    name: str
    runs: Sequence[SimulatedRun]

    def values(self, algorithm: str, budget: int, field: str = "acr") -> np.ndarray | None:
        """One number per run; `None` where the algorithm refused the budget or was not run."""
        trials = [r.trials.get((algorithm, budget)) for r in self.runs]
        return None if any(t is None for t in trials) else np.array([getattr(t, field) for t in trials], dtype=float)

    @property
    def best(self) -> float:
        """Mean ACR of the policy that is best on the training queries."""
        return float(np.mean([r.train_best for r in self.runs]))

    def budgets(self, algorithm: str) -> list[int]:
        """Budgets at which the algorithm ran."""
        return sorted(b for name, b in self.runs[0].trials if name == algorithm)


def run(where: Source, plan: dict[str, tuple[Sequence[Entrant], Sequence[int]]], asked: argparse.Namespace) -> Found:
    """Run each group of algorithms at its budgets, all on the same splits."""
    merged: list[SimulatedRun] = []
    with tqdm(total=asked.runs * len(plan), unit="run", desc=where.name) as bar:
        for who, budgets in plan.values():
            made = simulate(
                where, who, budgets, runs=asked.runs, seed=asked.seed, jobs=asked.jobs, progress=lambda _: bar.update()
            )
            if merged:
                for before, new in zip(merged, made, strict=True):
                    before.trials.update(new.trials)
            else:
                merged = made
    return Found(where.name, merged)


def comparison(found: Found) -> None:
    """Print the ACR of each algorithm at each budget."""
    best, n = found.best, len(found.runs)
    oracle = np.mean([r.oracle for r in found.runs])
    print(f"\n{found.name}: {n} runs; best policy of the training queries {best:.4f}, best of all {oracle:.4f}")
    print(
        "| T | ACR of psst, psst+k8, auto | excess regret | auto - psst (p) | auto - psst+k8 (p) | most spent by auto |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for budget in sorted({b for name in (*RIVALS, "auto") for b in found.budgets(name)}):
        acrs = [found.values(name, budget) for name in (*RIVALS, "auto")]
        row = f"| {budget:,} | " + ", ".join("-" if a is None else f"{a.mean():.4f}" for a in acrs)
        row += " | " + ", ".join("-" if a is None else f"{best - a.mean():.4f}" for a in acrs)
        for rival in acrs[:2]:
            row += " | " + ("-" if rival is None or acrs[2] is None else _paired(acrs[2] - rival))
        spent = found.values("auto", budget, "spent")
        print(row + " | " + ("-" if spent is None else f"{spent.max():,.0f}") + " |")
    ours = found.values("auto", found.budgets("auto")[-1])
    print(f"standard error of auto's last ACR: {ours.std(ddof=1) / n**0.5:.4f}")
    single = found.values(*AIM), found.values("auto", AIM[1])
    if single[0] is not None and single[1] is not None:
        ratio = (best - single[1].mean()) / (best - single[0].mean())
        print(f"excess regret of auto at {AIM[1]:,}: {ratio:.2f} of {AIM[0]}'s")


def reach(found: Sequence[Found]) -> None:
    """Print the number of calls that auto needs to reach psst with 20,000 calls."""
    print(f"\ncalls to reach {AIM[0]} at {AIM[1]:,}")
    print("| environment | runs | ACR of psst | calls of auto | ACR of auto | fewer calls | auto - psst (p) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for f in found:
        aim = f.values(*AIM)
        if aim is None:
            continue
        for budget in f.budgets("auto"):
            ours = f.values("auto", budget)
            if ours is not None and ours.mean() >= aim.mean():
                times = f"{AIM[1] / budget:.3g} x | {_paired(ours - aim)} |"
                print(f"| {f.name} | {len(f.runs)} | {aim.mean():.4f} | {budget:,} | {ours.mean():.4f} | {times}")
                break
        else:
            print(f"| {f.name} | {len(f.runs)} | {aim.mean():.4f} | more than {max(f.budgets('auto')):,} | | | |")


def ablation(found: Found) -> None:
    """Print the excess regret of every variant, and its paired difference from the default algorithm."""
    budgets = found.budgets("default")
    print(
        f"\n{found.name}, ablation: {len(found.runs)} runs; excess regret, difference from the default (s.e.), p, spent"
    )
    print("| variant | " + " | | | ".join(f"T = {b:,}" for b in budgets) + " | | | |")
    print("| --- " * (1 + 4 * len(budgets)) + "|")
    for name in VARIANTS:
        row = f"| {name} |"
        for budget in budgets:
            acr, default = found.values(name, budget), found.values("default", budget)
            if acr is None or default is None:
                row += " - | - | - | - |"
                continue
            loss, spent = default - acr, found.values(name, budget, "spent")
            row += f" {found.best - acr.mean():.4f} |"
            row += f" {loss.mean():+.4f} ({loss.std(ddof=1) / len(loss) ** 0.5:.4f}) | {wilcoxon(loss):.2g} |"
            row += f" {spent.mean():,.0f} |"
        print(row)


def arrivals(where: Source, budgets: Sequence[int], asked: argparse.Namespace) -> None:
    """Print what is lost where prompts join while a run goes on, and the completions of those that were put aside."""
    joining = ArrivingSource(inner=where, generations=asked.arrivals, order=asked.arrival_order)
    known, late = (
        Found(w.name, simulate(w, entrants(["auto"]), budgets, runs=asked.runs, seed=asked.seed, jobs=asked.jobs))
        for w in (where, joining)
    )
    print(f"\n{where.name}, {asked.arrivals} generations, order {asked.arrival_order}: {asked.runs} runs")
    print("| T | all known | generations | difference (s.e.) | p | of a newcomer put aside: mean, 90 %, most |")
    print("| --- " * 6 + "|")
    for budget in budgets:
        ours, others = late.values("auto", budget), known.values("auto", budget)
        if ours is None or others is None:
            print(f"| {budget:,} | - | - | - | - | - |")
            continue
        loss = others - ours
        trials = [r.trials["auto", budget] for r in late.runs]
        aside = [n for t in trials for generation, n, chosen in t.newcomers if generation and not chosen]
        taken = f"{np.mean(aside):.0f}, {np.quantile(aside, 0.9):.0f}, {max(aside)}" if aside else "-"
        error = loss.std(ddof=1) / len(loss) ** 0.5
        print(f"| {budget:,} | {others.mean():.4f} | {ours.mean():.4f} | {loss.mean():+.4f} ({error:.4f}) "
              f"| {wilcoxon(loss):.2g} | {taken} |")  # fmt: skip


def _paired(difference: np.ndarray) -> str:
    return f"{difference.mean():+.4f} ({wilcoxon(difference):.2g})"


def overhead(seed: int) -> None:
    """Time estimation and allocation alone, as the data grows."""
    print("\nCPU seconds of estimation and allocation, 32 prompts, n_max 32")
    print("| environment | contexts | queries | T | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for factor in (1, 2, 4):
        queries, budget = 500 * factor, 5_000 * factor
        scored = synthetic_categorical(seed, n_queries=queries)
        voted = synthetic_bernoulli(seed, n_queries=queries)
        for name, recording, environment in (
            ("best-of-N, 25 outcomes", scored, scored.environment(seed)),
            ("best-of-N, continuous scores", scored, Noise(scored.environment(seed), sd=0.1)),
            ("majority vote", voted, voted.environment(seed)),
        ):
            seconds = _time(recording.problem(MAX_N), environment, budget, seed)
            print(f"| {name} | {len(recording.contexts)} | {queries:,} | {budget:,} | {seconds:.2f} |")


def _time(problem: Problem, environment: Environment, budget: int, seed: int) -> float:
    """Return the CPU seconds that a run spends outside the environment."""
    algorithm, observations, spent = Auto().start(problem, budget=budget, seed=seed), None, 0.0
    while True:
        start = time.process_time()
        try:
            pulls = algorithm.send(observations)
        except StopIteration:
            return spent + time.process_time() - start
        spent += time.process_time() - start
        observations = environment.pull(pulls)


def write(found: Sequence[Found], path: str) -> None:
    """Keep the numbers of every run."""
    rows = []
    for f in found:
        for r in f.runs:
            trials = [[name, b, asdict(t) if t else None] for (name, b), t in r.trials.items()]
            rows.append(
                {"environment": f.name, "run": r.run, "best": r.train_best, "oracle": r.oracle, "trials": trials}
            )
    Path(path).write_text(json.dumps(rows) + "\n", encoding="utf-8")


def read(paths: Sequence[str]) -> list[Found]:
    """Read a file that `write` wrote."""
    by_name: dict[str, list[SimulatedRun]] = {}
    for path in paths:
        for row in json.loads(Path(path).read_text(encoding="utf-8")):
            trials = {
                (name, b): Trial(**{"completions": math.nan, "waves": math.nan, **t}) if t else None
                for name, b, t in row["trials"]
            }  # older files do not have the draws of calls
            made = SimulatedRun(run=row["run"], trials=trials, train_best=row["best"], oracle=row["oracle"])
            by_name.setdefault(row["environment"], []).append(made)
    return [Found(name, runs) for name, runs in by_name.items()]


def budgets_for(asked: Sequence[str], where: Source, seed: int) -> list[int]:
    """Return budgets in completions; 40x stands for 40 completions per prompt."""
    prompts = where.instance(seed, 0).train.n_prompts if any(b.endswith("x") for b in asked) else 1
    return sorted({int(b[:-1]) * prompts if b.endswith("x") else int(b) for b in asked})


def _listed(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", help=f"{', '.join(SYNTHETIC)}, or recordings")
    parser.add_argument("--budgets", type=_listed, default=["2000", "5000", "20000"], help="of all algorithms")
    parser.add_argument("--reach", type=_listed, default=["10000"], help="further budgets of auto")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--prompts", type=int, help="of synthetic environments")
    parser.add_argument("--queries", type=int, help="training queries of synthetic environments")
    parser.add_argument("--ablation", action="store_true", help="compare variants of auto instead")
    parser.add_argument("--arrivals", type=int, help="let prompts join in so many generations instead")
    parser.add_argument("--arrival-order", choices=["worst", "random"], default="worst", help="worst: good ones late")
    parser.add_argument("--overhead", action="store_true", help="time auto")
    parser.add_argument("--json", help="write the numbers of every run here")
    parser.add_argument("--read", nargs="+", default=[], help="print the tables of files that --json wrote")
    asked = parser.parse_args()
    if not (asked.environments or asked.read or asked.overhead):
        parser.error("name an environment, or ask for --overhead or --read")

    found = read(asked.read)
    for name in asked.environments:
        where = source(name, prompts=asked.prompts, queries=asked.queries)
        budgets, reach_at = (budgets_for(texts, where, asked.seed) for texts in (asked.budgets, asked.reach))
        if asked.arrivals:
            arrivals(where, budgets, asked)
        elif asked.ablation:
            who = [Entrant(variant, algorithm) for variant, algorithm in VARIANTS.items()]
            found.append(run(where, {"variants": (who, budgets)}, asked))
        else:
            psst_budgets, auto_budgets = sorted({*budgets, AIM[1]}), sorted({*budgets, *reach_at})
            plan = {"rivals": (entrants(RIVALS), psst_budgets), "auto": (entrants(["auto"]), auto_budgets)}
            found.append(run(where, plan, asked))
    if asked.json:
        write(found, asked.json)
    for f in found:
        if f.budgets("auto"):
            comparison(f)
        else:
            ablation(f)
    if any(f.values(*AIM) is not None for f in found):
        reach(found)
    if asked.overhead:
        overhead(asked.seed)


if __name__ == "__main__":
    main()
