"""Compare optimizers that are given a prompt-writing LM and no instructions, at equal spend (a benchmark, hours).

    python examples/benchmark_writers.py --folder writers
    python examples/benchmark_writers.py --folder writers --methods list,iapo --spend demo --beside list
    python examples/benchmark_writers.py --folder writers --methods as-is,student,bad --spend demo --beside as-is

The tasks' LM is the demo's, on a server; prompts are written by `scripted_writer`, which deals instructions of the same
pool to everybody. So the numbers are about the search among instructions and about choosing N, not about writing, and
they are no evidence about large language models.

A method may spend T completions, counted by the two servers, the task's LM and the writer together:

- `gepa`: dspy.GEPA with three quarters of them, then N tuned with the rest;
- `mipro`: dspy.MIPROv2 likewise, without demos, which do not help the demo's LM;
- `iapo`: IAPO with `candidates="auto"` and the writer as its `prompt_model`;
- `harvest`: GEPA with half of them, then IAPO on all candidates of GEPA's run;
- `pool`: IAPO on the whole pool, as if it were known; `list`: on the demo's own list of instructions;
- `as-is`: the student with N = 1, which spends nothing; `student`: the student with its N tuned; `bad`: `iapo` with a
  writer of bad instructions alone.

`equal_spend` says how GEPA and MIPROv2 keep to their shares. N is tuned in the same way for both: by IAPO
with the prompt as its only candidate, and with all that is left. IAPO's budget counts completions of the task's LM
only, so `iapo` keeps one in twenty for its writer (`WRITING`).

Each seed has other training questions and another order of the pool. Chosen arms are valued on fresh questions that all
runs share, exactly on the law of many completions of their prompt: mean utility over the preferences, without stopping
early. GEPA and MIPROv2 climb the task's metric; where completions are scored, the mean of the preferences' rewards.
Runs and values are kept in `--folder`, so that a call that is repeated goes on where it ended. `--spend demo` stands
for the demo's own budgets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from equal_spend import add_row, law_of, prompt_of, rows_of
from equal_spend import gepa as gepa_within
from equal_spend import mipro as mipro_within
from scipy.stats import ttest_rel
from scripted_writer import ScriptedWriter, pool_of

from iapo_dspy import IAPO, BestOfN, Execution, MajorityVote, Objective, Search, Strategy
from iapo_dspy.demo.experiment import PREFERENCES, SETTINGS
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.server import DemoServer
from iapo_dspy.demo.tasks import MODEL, DemoTask, addition_task, splitting_task
from iapo_dspy.types import Contexts, FloatArray

TASKS = {"addition": ("mv", addition_task()), "splitting": ("bon", splitting_task())}
SEARCH, HALF = 0.75, 0.5  # shares of an optimizer before N is tuned, and before IAPO goes on with its candidates
WRITING = 0.05  # share that `iapo` leaves to its writer
QUESTIONS, SAMPLES = 120, 48  # fresh questions on which arms are valued, and completions of a prompt on each of them
COUNTS = ("completions", "tokens", "written", "writer_tokens")  # of the task's LM and of the writer

Arms = list[tuple[dspy.Module, int]]
"""The prompt and N of each preference."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: a task, a seed, a spend T, and the two servers."""

    name: str
    seed: int
    spend: int
    server: DemoServer
    writer: ScriptedWriter

    @property
    def task(self) -> DemoTask:
        """The task."""
        return TASKS[self.name][1]

    @property
    def settings(self) -> dict[str, int]:
        """The demo's settings of the task."""
        return SETTINGS[TASKS[self.name][0]]

    @property
    def trainset(self) -> list[dspy.Example]:
        """The training questions of this seed."""
        return self.task.train(self.settings["train"], self.seed)

    def counts(self) -> tuple[int, ...]:
        """Return what the servers have counted so far; see `COUNTS`."""
        return tuple(
            count
            for side in (self.server, self.writer)
            for count in (side.completions, side.prompt_tokens + side.completion_tokens)
        )

    def left(self) -> int:
        """Return how much of T is left."""
        return self.spend - self.server.completions - self.writer.completions

    def iapo(self, candidates: Any, completions: int, **more: Any) -> Arms:
        """Compile the demo's student by IAPO with so many completions."""
        optimizer = IAPO(
            metric=None if self.task.objectives else self.task.metric,
            strategy=strategy_of(self.task),
            preferences=PREFERENCES[TASKS[self.name][0]],
            max_n=self.settings["max_n"],
            budget=completions,
            candidates=candidates,
            seed=self.seed,
            **more,
            search=Search(stopping=None),
            execution=Execution(progress=False),
        )
        program = optimizer.compile(self.task.student(), trainset=self.trainset)
        prompts = program.detailed_results.candidate_programs
        return [(prompts[arm.prompt], arm.n) for arm in program.policy.ready.arms]

    def metric(self, example: Any, pred: Any, trace: Any = None, name: Any = None, calls: Any = None) -> float:
        """Score one prediction for the optimizers that climb a single score."""
        if not self.task.objectives:
            return float(self.task.metric(example, pred))
        scores = [objective(example, pred) for objective in self.task.objectives.values()]
        preferences = PREFERENCES[TASKS[self.name][0]]
        return float(np.mean([p.vector(list(self.task.objectives)) for p in preferences], axis=0) @ scores)


def strategy_of(task: DemoTask) -> Strategy:
    """Return how the task's completions become one answer."""
    objectives = [Objective(name, function) for name, function in task.objectives.items()]
    return BestOfN(objectives) if objectives else MajorityVote(task.answer_field)


# --- methods ---------------------------------------------------------------------------------------------------------


def gepa(case: Case, share: float) -> dspy.Module:
    """Run GEPA until so large a share of T is gone."""
    stop = round((1 - share) * case.spend)
    about: dict[str, Any] = {"metric": case.metric, "writer": case.writer.lm(), "spend": case.spend, "seed": case.seed}
    return gepa_within(case.task.student(), case.trainset, over=lambda: case.left() <= stop, **about)


def mipro(case: Case, share: float) -> dspy.Module:
    """Run MIPROv2 with as many trials as a share of T pays for."""
    about: dict[str, Any] = {"metric": case.metric, "writer": case.writer.lm(), "seed": case.seed}
    return mipro_within(case.task.student(), case.trainset, spend=share * case.spend, **about)


def with_n_tuned(case: Case, program: dspy.Module) -> Arms:
    """Tune N of a program's prompt with what is left of T."""
    return case.iapo([program.predictors()[0].signature.instructions], case.left())


def harvest(case: Case) -> Arms:
    """Compile on all candidates of a GEPA run."""
    found = gepa(case, HALF).detailed_results
    return case.iapo(found, case.left())


def auto(case: Case) -> Arms:
    """Compile with nothing but a writer."""
    return case.iapo("auto", round((1 - WRITING) * case.spend), prompt_model=case.writer.lm())


METHODS: dict[str, tuple[str, Callable[[Case], Arms]]] = {
    "gepa": ("GEPA, then N tuned", lambda case: with_n_tuned(case, gepa(case, SEARCH))),
    "mipro": ("MIPROv2, then N tuned", lambda case: with_n_tuned(case, mipro(case, SEARCH))),
    "harvest": ("GEPA's half, then IAPO", harvest),
    "iapo": ('IAPO, `candidates="auto"`', auto),
    "pool": (
        "IAPO, the pool is known",
        lambda case: case.iapo([case.task.student(), *pool_of(case.task)], case.spend),
    ),
    "list": ("IAPO, the demo's list", lambda case: case.iapo(case.task.instructions, case.spend)),
    "as-is": ("the student, N = 1", lambda case: [(case.task.student(), 1)] * len(PREFERENCES[TASKS[case.name][0]])),
    "student": ("the student, N tuned", lambda case: case.iapo([case.task.student()], case.spend)),
    "bad": ('IAPO, `candidates="auto"`, bad writer', auto),
}
"""Method -> its name in tables, and how it runs."""


# --- values ----------------------------------------------------------------------------------------------------------


def utilities(name: str, arms: Arms, path: Path) -> list[float]:
    """Return the utility of the arm of each preference on fresh questions; what prompts do is kept in a file."""
    key, task = TASKS[name]
    unit, found = measured(name, task.student(), path)["cost"], []
    for context, (program, n) in enumerate(arms):
        known, weight = measured(name, program, path), PREFERENCES[key][context].cost
        found.append(known["reward"][context][n - 1] - weight * 0.01 * known["cost"] / unit * n)
    return found


def measured(name: str, program: dspy.Module, path: Path) -> dict[str, Any]:
    """Return a prompt's mean reward for each preference and N, and the cost of a call, from the file or anew."""
    which = json.dumps([name, prompt_of(program)], sort_keys=True)
    for row in rows_of(path):
        if row["which"] == which:
            return row
    key, task = TASKS[name]
    lm = dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0)
    with dspy.context(lm=lm):  # the same model within this process, past the server that counts
        recording = law_of(
            program,
            task.heldout(QUESTIONS, 0),
            samples=SAMPLES,
            strategy=strategy_of(task),
            metric=None if task.objectives else task.metric,
            contexts=Contexts.from_preferences(PREFERENCES[key], list(task.objectives) or ["accuracy"]),
            kind="best-of" if task.objectives else "vote",
        )
    exact = recording.exact(SETTINGS[key]["max_n"])
    reward: FloatArray = exact.reward[:, 0].mean(axis=1)[exact.row]
    row = {"which": which, "cost": float(recording.cost[0]), "reward": np.round(reward, 6).tolist()}
    add_row(path, row)
    return row


# --- runs ------------------------------------------------------------------------------------------------------------


def run(wanted: dict[str, Any], folder: Path) -> None:
    """Run what is wanted, and keep it."""
    task, start = TASKS[wanted["task"]][1], time.perf_counter()
    with (
        DemoServer(seed=wanted["seed"]) as server,
        ScriptedWriter(task, seed=wanted["seed"], bad_only=wanted["method"] == "bad") as writer,
    ):
        case = Case(name=wanted["task"], seed=wanted["seed"], spend=wanted["spend"], server=server, writer=writer)
        at = {"engine": "litellm", "api_base": server.api_base, "api_key": "none"}
        with dspy.context(lm=dspy.LM("openai/tiny-adder", **at, temperature=1.0, max_tokens=200, cache=False)):
            arms = METHODS[wanted["method"]][1](case)
        row = wanted | dict(zip(COUNTS, case.counts(), strict=True)) | {"seconds": time.perf_counter() - start}
    row["arms"] = [[program.predictors()[0].signature.instructions, n] for program, n in arms]
    row["utility"] = utilities(wanted["task"], arms, folder / "values.jsonl")
    add_row(folder / "runs.jsonl", row)
    print("...", json.dumps(row), flush=True)


def table(rows: Sequence[dict[str, Any]], beside: str) -> None:
    """Print a row for each task, T and method, with its paired difference from the method `beside`."""
    print(f"\n| task | T | method | mean utility | of each seed | completions | tokens | less {beside} | p | share |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    cells: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        cells.setdefault((row["task"], row["spend"], row["method"]), []).append(row)
    for (task, spend, method), found in cells.items():
        by_seed, other = (
            {row["seed"]: float(np.mean(row["utility"])) for row in cell}
            for cell in (found, cells.get((task, spend, beside), []))
        )
        mean, pairs = np.mean(list(by_seed.values())), [(u, other[s]) for s, u in by_seed.items() if s in other]
        compared = "| | |"
        if method != beside and len(pairs) > 1:
            a, b = np.array(pairs).T
            p = ttest_rel(a, b).pvalue
            compared = f"{np.mean(a - b):+.3f} | {p:.3f} | {np.mean(a) / np.mean(b):.1%} |"
        counts = [np.mean([row[name] for row in found]) for name in COUNTS]
        print(
            f"| {task} | {spend:,} | {METHODS[method][0]} | {mean:.3f} "
            f"| {' '.join(f'{u:.3f}' for u in by_seed.values())} "
            f"| {counts[0]:,.0f} + {counts[2]:,.0f} | {counts[1]:,.0f} + {counts[3]:,.0f} | {compared}"
        )


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs and values are kept; made if missing")
    parser.add_argument("--tasks", default=",".join(TASKS), help="separated by commas")
    parser.add_argument("--methods", default="gepa,mipro,harvest,iapo", help="separated by commas")
    parser.add_argument("--spend", default="1500,4000", help="T, separated by commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--beside", default="iapo", help="the method with which others are compared")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what there is")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    for name in ("dspy", "iapo_dspy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    register()
    asked.folder.mkdir(parents=True, exist_ok=True)
    names = ("seed", "spend", "task", "method")
    spends = asked.spend.split(",")
    every = itertools.product(range(asked.seeds), spends, asked.tasks.split(","), asked.methods.split(","))
    found = []
    for seed, spend, task, method in every:
        completions = SETTINGS[TASKS[task][0]]["budget"] if spend == "demo" else int(spend)
        wanted = dict(zip(names, (seed, completions, task, method), strict=True))
        known = [row for row in rows_of(asked.folder / "runs.jsonl") if wanted.items() <= row.items()]
        if not known and not asked.table:
            run(wanted, asked.folder)
            known = rows_of(asked.folder / "runs.jsonl")[-1:]
        found += known[:1]
    table(found, asked.beside)


if __name__ == "__main__":
    main()
