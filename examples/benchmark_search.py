"""Compare searches on prompts that a writer brings, on recordings or synthetic environments.

    python examples/benchmark_search.py ENVIRONMENT... [--budgets 1000,2500] [--runs 20]

A run starts from one prompt, of a low quality by default, and a scripted writer brings the others. For each prompt that
is wished for it draws a parent from the wish's front, adds noise to the parent's quality (utility of the best arm on
the training queries, mean over preferences), and brings that prompt of the recording, not there yet, whose quality is
nearest. These have the same arrivals and seeds, and the same estimator:

- `generations`: asks for prompts when they are worth more than further draws;
- `uniform`: has all arrivals at once, and draws all of them alike;
- `halving`: has all arrivals at once, and drops the worse half (mean over preferences) after every round;
- `auto`: the default algorithm, has all arrivals at once.

So the last three know from the start what the first one has to find out. The script prints the mean ACR on held-out
queries (exact) and the paired differences with their standard errors. `student` is the first prompt alone, with its N
tuned by `auto`. The second table is for a writer that brings only the worst prompts there are, to a student of high
quality: what is left of the student's utility. `--noise` and `--shift` change the writer, `--most` and `--size` the
search.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from iapo_dspy.bandit.algorithms.auto import Auto, Ranking
from iapo_dspy.bandit.algorithms.generations import Generations, best_utility
from iapo_dspy.bandit.outcome import Outcome, Run, Wish
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import Environment, drive
from iapo_dspy.environments.wrappers import Some
from iapo_dspy.simulation.sources import SYNTHETIC, Instance, Source, source
from iapo_dspy.types import FloatArray, Observations, Pulls

NAMES = ("student", "generations", "uniform", "halving", "auto")


class Writer:
    """Brings prompts of an environment; those that are there have the order in which they came.

    Args:
        problem: The problem with all prompts.
        quality: Of each prompt [P].
        first: The prompt that is there at the start.
        child: Quality of a child, from the quality of its parent.
        rng: Draws parents.
    """

    def __init__(
        self,
        problem: Problem,
        quality: FloatArray,
        first: int,
        child: Callable[[float], float],
        rng: np.random.Generator,
    ) -> None:
        self._all, self._quality, self._child, self._rng = problem, quality, child, rng
        self.order, self.parent = [first], [-1]

    @property
    def problem(self) -> Problem:
        """The problem with the prompts that are there."""
        return replace(self._all, n_prompts=len(self.order), parts=None, parent=np.array(self.parent))

    def more(self, wish: Wish) -> Problem:
        """Answer a wish; preferences take turns."""
        front = wish.front + (wish.front.sum(axis=1, keepdims=True) == 0)
        away = np.setdiff1d(np.arange(len(self._quality)), self.order)
        for i in range(min(wish.n, len(away))):
            weights = front[i % len(front)]
            parent = int(self._rng.choice(len(weights), p=weights / weights.sum()))
            aim = self._child(float(self._quality[self.order[parent]]))
            came = int(away[np.abs(self._quality[away] - aim).argmin()])
            away = away[away != came]
            self.order.append(came)
            self.parent.append(parent)
        return self.problem


class Growing:
    """An environment of those prompts that are there."""

    def __init__(self, inner: Environment, order: list[int]) -> None:
        self._inner, self._order, self.n_queries = inner, order, inner.n_queries

    @property
    def n_prompts(self) -> int:
        """How many are there."""
        return len(self._order)

    def pull(self, pulls: Pulls) -> Observations:
        """Implement `Environment.pull`."""
        return Some(self._inner, prompts=np.array(self._order)).pull(pulls)


def halving(problem: Problem, budget: int, seed: int) -> Run:
    """Draw all prompts alike, drop the worse half of them, and so on (sequential halving, Karnin et al. 2013)."""
    state, (_, schedule) = Ranking(problem), Auto().schedule(problem, budget, seed)
    alive = np.arange(problem.n_prompts)
    rounds = max(math.ceil(math.log2(len(alive))), 1)
    for r in range(rounds):
        observations = yield schedule.pulls(alive, (budget - state.spent) // (rounds - r))
        state.observe(observations, alive)
        order = np.argsort(-best_utility(state).mean(axis=0)[alive], kind="stable")
        alive = np.sort(alive[order[: math.ceil(len(alive) / 2)]])
    return state.outcome(complete=True)


@dataclass(frozen=True)
class World:
    """One run's environment, and how its budget is spent."""

    where: Source
    seed: int
    run: int
    budget: int
    search: Generations

    def instance(self) -> Instance:
        """Return the split of the run."""
        return self.where.instance(self.seed, self.run)

    def search_with(
        self, instance: Instance, start: float, child: Callable[[float, np.random.Generator], float]
    ) -> tuple[Writer, Outcome]:
        """Search from the prompt at this quantile of quality; return the writer, and the outcome."""
        quality = instance.q_train.max(axis=2).mean(axis=0)
        rng = np.random.default_rng([self.seed, self.run, 9])
        first = int(np.argsort(quality)[int(len(quality) * start)])
        problem = instance.train.problem(self.where.max_n, self.where.ties)
        writer = Writer(problem, quality, first, lambda parent: child(parent, rng), rng)
        run = self.search.start(writer.problem, budget=self.budget, seed=self.run)
        return writer, drive(run, self.environment(instance, writer.order), writer.more)

    def environment(self, instance: Instance, order: list[int]) -> Environment:
        """Return a fresh environment of some prompts; the completions of a cell are always the same ones."""
        return Growing(instance.train.environment(self.seed, self.run, 1, self.budget), order)

    def acr(self, instance: Instance, order: Sequence[int], outcome: Outcome) -> float:
        """Return the held-out ACR of a policy."""
        arms = outcome.policy.arms
        return float(np.mean([instance.q_test[c, order[arm.prompt], arm.n - 1] for c, arm in enumerate(arms)]))


def searches(world: World, start: float, noise: float, shift: float) -> dict[str, float]:
    """Return the held-out ACR of every search in one run, and what they had."""
    instance = world.instance()
    writer, ours = world.search_with(instance, start, lambda parent, rng: parent + shift + noise * rng.normal())
    found = {"arrivals": float(len(writer.order)), "spent": float(ours.spent)}
    found["generations"] = world.acr(instance, writer.order, ours)
    found["best arrival"] = float(instance.q_test[:, writer.order].max(axis=(1, 2)).mean())
    everyone = replace(writer.problem, parent=None)
    alone = replace(everyone, n_prompts=1)
    rivals: dict[str, tuple[Problem, Run]] = {
        "student": (alone, Auto().start(alone, budget=world.budget, seed=world.run)),
        "uniform": (everyone, Auto(rounds=1).start(everyone, budget=world.budget, seed=world.run)),
        "halving": (everyone, halving(everyone, world.budget, world.run)),
        "auto": (everyone, Auto().start(everyone, budget=world.budget, seed=world.run)),
    }
    for name, (problem, run) in rivals.items():
        order = writer.order[: problem.n_prompts]
        found[name] = world.acr(instance, order, drive(run, world.environment(instance, order)))
    return found


def bad_writer(world: World) -> tuple[float, float, float]:
    """Return the ACR of the student alone and after bad arrivals, and the completions that these took."""
    instance = world.instance()
    writer, ours = world.search_with(instance, 0.9, lambda parent, rng: -math.inf)
    alone = replace(writer.problem, n_prompts=1, parent=None)
    rest = drive(
        Auto().start(alone, budget=world.budget, seed=world.run), world.environment(instance, writer.order[:1])
    )
    taken = sum(int(o.pulls.size[o.pulls.prompt > 0].sum()) for o in ours.observations)
    return world.acr(instance, writer.order, rest), world.acr(instance, writer.order, ours), float(taken)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", help=f"{', '.join(SYNTHETIC)}, or recordings")
    parser.add_argument("--budgets", type=lambda text: [int(b) for b in text.split(",")], default=[1000, 2500, 6000])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=float, default=0.25, help="quantile of the first prompt's quality")
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation of a child about its parent")
    parser.add_argument("--shift", type=float, default=0.0, help="mean of a child minus its parent")
    parser.add_argument("--most", type=int, default=2, help="generations")
    parser.add_argument("--size", type=int, default=8, help="prompts of a generation")
    parser.add_argument("--prompts", type=int, help="of synthetic environments")
    asked = parser.parse_args()
    search = Generations(most=asked.most, size=asked.size)
    for name in asked.environments:
        where = source(name, prompts=asked.prompts)
        columns = [
            *NAMES,
            *(f"{ours} (s.e.)" for ours in ("- uniform", "- halving", "- auto")),
            "best arrival",
            "arrivals",
        ]
        print(f"\n{where.name}: {asked.runs} runs, held-out ACR; differences are those of generations")
        print("| T | " + " | ".join(columns) + " | spent |")
        print("| --- " * (len(columns) + 2) + "|", flush=True)
        bad = []
        for budget in asked.budgets:
            worlds = [World(where, asked.seed, run, budget, search) for run in range(asked.runs)]
            rows = [searches(w, asked.start, asked.noise, asked.shift) for w in tqdm(worlds, desc=f"T = {budget:,}")]
            mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            cells = [f"{mean[key]:.4f}" for key in NAMES]
            for rival in NAMES[2:]:
                cells.append(difference(np.array([row["generations"] - row[rival] for row in rows])))
            cells += [f"{mean['best arrival']:.4f}", f"{mean['arrivals']:.1f}", f"{mean['spent']:,.0f}"]
            print(f"| {budget:,} | " + " | ".join(cells) + " |", flush=True)
            bad.append((budget, np.array([bad_writer(w) for w in tqdm(worlds, desc="bad writer")])))
        print("\n| T | student | with a bad writer | difference (s.e.) | share kept | completions of bad prompts |")
        print("| --- " * 6 + "|")
        for budget, found in bad:
            alone, after, taken = found.mean(axis=0)
            lost = difference(found[:, 1] - found[:, 0])
            print(
                f"| {budget:,} | {alone:.4f} | {after:.4f} | {lost} | {after / alone:.3f} | {taken:,.0f} |", flush=True
            )


def difference(values: FloatArray) -> str:
    """Return the mean with its standard error."""
    return f"{values.mean():+.4f} ({values.std(ddof=1) / len(values) ** 0.5:.4f})"


if __name__ == "__main__":
    main()
