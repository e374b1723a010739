"""Measure cascades and mixtures on recordings of votes against single prompts, and compile one live on the demo's LMs.

    python examples/benchmark_cascades.py --record two_models.npz
    python examples/benchmark_cascades.py two_models.npz MATH_FILE --budgets 1000,2000,4000 --seeds 20 --jobs 2
    python examples/benchmark_cascades.py --live

In each run four fifths of the questions are trained on. `auto` draws T completions there, stops are chosen, and then
compound arms from the same draws (`auto+compound`). Both policies are measured as `compile` does. All arms are valued
exactly: on all questions, and for the intervals on the held-out ones too. For each recording the script prints:

(a) the cost at which calls reach the accuracy, minus .01, of the best prompt at N = 1 ("always large"), and of the most
    accurate arm of one prompt, in calls of these: by the true law the cheapest arm of one prompt and the cheapest
    cascade of a grid; then the cheapest such arm that runs chose over the cost weights, median over seeds, and how many
    seeds have one;
(b) the utility by cost weight, mean over seeds, with the share of contexts that got a compound arm;
(c) estimated minus exact utility of the chosen compound arms, how often their 95 % intervals hold the exact one, and
    the seconds of processor time that choosing them took.

The grid of cascades by the true law has two stages: every prompt (`--prompts`: those with the best votes), N up to 16,
every threshold, with and without waves; then every arm of one prompt, with every stop. The second stage decides alone.

`--record FILE` records the demo's additions with two LMs, a large and a small one, at made-up prices. `--live` compiles
on them with `lms=[small, large]`, with and without compound arms, and prints policies, completions and seconds.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy
import joblib
import numpy as np
from tqdm import tqdm

from iapo_dspy import IAPO, Budget, CompiledProgram, Cost, Execution, MajorityVote, Preference, Search
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.compound.chosen import with_compounds
from iapo_dspy.bandit.inference import choices
from iapo_dspy.bandit.measurement import measured, measuring_pulls, reserved
from iapo_dspy.bandit.stopping.replays import VoteTally
from iapo_dspy.bandit.stopping.rules import exact_waves, tuned_scales, tuned_vote_stops
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, SMALL_MODEL, USD_PER_MILLION, addition_task
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.recordings import load, save
from iapo_dspy.types import Arm, Escalation, FloatArray, Stop

WEIGHTS = (0.0, *np.geomspace(0.02, 5.0, 11).round(3).tolist())  # of costs
FIRST = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)  # completions of a first stage in the grid
CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
SLACK = 0.01  # accuracy that may be lost against the large model
SEQUENCES = 200
NAMES = ("auto", "auto+compound")
INSTRUCTIONS = (
    "Answer at once.",
    "Note the sums from right to left in brief, then answer.",
    "Add the units, then the tens, then the hundreds, and carry as you go.",
    "Work slowly and say what you write and what you carry in every column.",
)
QUESTIONS, SAMPLES = 120, 16  # of the recording of the demo


# --- by the true law -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Arms with their mean rewards and costs, by the true law."""

    arms: Sequence[Arm]
    reward: FloatArray
    cost: FloatArray

    def best(self, weight: float) -> tuple[Arm, float]:
        """Return the best arm at a cost weight, and its utility."""
        utility = self.reward - weight * self.cost
        return self.arms[int(utility.argmax())], float(utility.max())

    def reaching(self, reward: float) -> tuple[Arm, float] | None:
        """Return the cheapest arm with such a reward, and its cost; None where there is none."""
        cost = np.where(self.reward >= reward, self.cost, np.inf)
        return (self.arms[int(cost.argmin())], float(cost.min())) if np.isfinite(cost).any() else None


class Law:
    """The worth of arms by the true law of a recording."""

    def __init__(self, path: str, max_n: int, n_prompts: int | None) -> None:
        recording = load(Path(path))
        if not isinstance(recording, VotingRecording):
            raise SystemExit(f"{path} is not a recording of votes.")
        self.recording = replace(recording, cost_weights=np.array(WEIGHTS))
        self.values = StoppedValues(recording=self.recording, sequences=SEQUENCES)
        self.max_n = max_n
        votes = self.recording.exact(max_n).reward[0].mean(axis=1)
        self.large = Arm(int(votes[:, 0].argmax()), 1)
        kept = {*np.argsort(-votes.max(axis=1))[:n_prompts].tolist(), *np.argsort(-votes[:, 0])[:n_prompts].tolist()}
        self._prompts = sorted({*kept, *np.argsort(self.recording.cost)[:2].tolist()})

    def singles(self) -> tuple[Options, FloatArray, FloatArray]:
        """Return arms of one prompt, with rewards and costs on every question [F, X]."""
        arms = []
        for prompt, n in itertools.product(self._prompts, sorted({*range(1, 9), *tuned_scales(self.max_n)})):
            arms.append(Arm(prompt, n))
            if n > 1:
                arms.append(Arm(prompt, n, Stop(waves=exact_waves(n))))
            if 2 < n <= FIRST[-1]:
                arms += [Arm(prompt, n, stop) for stop in tuned_vote_stops(n) if stop.confidence in CONFIDENCES]
        found = [self.values.on_queries(0, arm) for arm in arms]
        reward, cost = np.stack([f.reward for f in found]), np.stack([f.cost for f in found])
        return Options(arms, reward.mean(axis=1), cost.mean(axis=1)), reward, cost

    def cascades(self, singles: Options, reward: FloatArray, cost: FloatArray) -> Options:
        """Return the cascades of the grid: each first stage goes on to each of these arms."""
        stages = [stage for prompt in self._prompts for stage in self._first(prompt)]
        goes_on = np.stack([on for _, on, _, _ in stages]) / self.recording.n_queries
        own, paid = (np.stack([stage[i] for stage in stages]).mean(axis=1) for i in (2, 3))
        total, price = own[:, None] + goes_on @ reward.T, paid[:, None] + goes_on @ cost.T
        arms = _Cascades([arm for arm, *_ in stages], singles.arms)
        return Options(arms, total.reshape(-1), price.reshape(-1))

    def _first(self, prompt: int) -> list[tuple[Arm, FloatArray, FloatArray, FloatArray]]:
        """Return first stages: probability of going on, reward where it answers, and cost on every question [X]."""
        seen: dict[tuple[int, int], list[FloatArray]] = {}
        n_queries, each = self.recording.n_queries, max(20_000 // SEQUENCES, 1)
        for begin in range(0, n_queries, each):
            queries = np.arange(begin, min(begin + each, n_queries))
            rows = self.values.rows(0, np.array([prompt]), FIRST[-1], queries)
            tally = VoteTally(rows.label[0], self.recording.probs.shape[2])
            for n in FIRST:
                right = rows.aggregator.reward(rows.label[0][:, :n], rows.score[0][:, :n], rows.weights[None])[0]
                first = exact_waves(n)[0]
                votes, early, settled = tally.at(n)[1], tally.at(first)[1], tally.settled(first, n)
                for least in range(1, n + 1):
                    unsure = votes < least
                    open_ = ~(settled & (early >= least)) & (early + n - first >= least)
                    parts = np.stack([unsure, np.where(unsure, right, 0.0), open_], axis=1)
                    mean = parts.reshape(len(queries), SEQUENCES, 3).mean(axis=1)
                    seen.setdefault((n, least), []).append(mean)
        found = []
        cost, overhead = self.recording.cost_on[prompt], float(self.recording.overhead[prompt])
        for (n, least), parts in seen.items():
            unsure, lost, open_ = np.concatenate(parts).T
            then, first = Escalation(below=(least - 0.5) / n), exact_waves(n)[0]
            answered = self.values.reward(0, prompt, n) - lost
            found.append((Arm(prompt, n, then=then), unsure, answered, n * cost + overhead))
            if first < n:
                waves = Arm(prompt, n, Stop(waves=exact_waves(n)), then=then)
                paid = (first + (n - first) * open_) * cost + overhead * (1.0 + open_)
                found.append((waves, unsure, answered, paid))
        return found


class _Cascades(Sequence[Arm]):
    """Every pair of a first stage and an arm of one prompt."""

    def __init__(self, first: Sequence[Arm], last: Sequence[Arm]) -> None:
        self._first, self._last = first, last

    def __len__(self) -> int:
        return len(self._first) * len(self._last)

    def __getitem__(self, at: Any) -> Any:
        stage, last = self._first[at // len(self._last)], self._last[at % len(self._last)]
        assert stage.then is not None
        return replace(stage, then=replace(stage.then, arm=last))


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """One context's arm in one run.

    `reward`, `cost` and `utility` are exact, over all questions; `claimed` is what choosing said, `train` exact on the
    training questions; `said` and `interval` as measured.
    """

    seed: int
    budget: int
    name: str
    context: int
    arm: Arm
    reward: float
    cost: float
    utility: float
    train: float
    held_out: float
    claimed: float
    said: float
    interval: tuple[float, float]


def one_run(law: Law, budget: int, seed: int) -> tuple[list[Choice], tuple[float, float]]:
    """Return the choices of both algorithms, and the seconds of drawing and stops, and of compound arms."""
    train, test = law.recording.split(seed)
    part = law.recording.subset(train)
    problem, world = part.problem(law.max_n), part.environment(seed, 1)
    kept = reserved(budget, problem, Auto().least(problem), len(train))
    begun = time.process_time()
    stopped = with_stops(problem, drive(Auto().start(problem, budget=budget - kept, seed=seed), world))
    chosen = time.process_time()
    outcomes = dict(zip(NAMES, (stopped, with_compounds(problem, stopped)), strict=True))
    seconds = chosen - begun, time.process_time() - chosen
    found = []
    for name, outcome in outcomes.items():
        assert outcome.stops is not None
        seen = world.pull(measuring_pulls(problem, outcome, np.arange(len(train)), kept, seed))
        said = choices(measured(problem, outcome, seen), problem.contexts, problem.aggregator)
        assert said is not None
        for context, (call, certainty) in enumerate(zip(outcome.stops, said, strict=True)):
            exact, weight = law.values.on_queries(0, call.arm), WEIGHTS[context]
            utility = exact.reward - weight * exact.cost
            found.append(
                Choice(
                    seed=seed,
                    budget=budget,
                    name=name,
                    context=context,
                    arm=call.arm,
                    reward=float(exact.reward.mean()),
                    cost=float(exact.cost.mean()),
                    utility=float(utility.mean()),
                    train=float(utility[train].mean()),
                    held_out=float(utility[test].mean()),
                    claimed=call.utility,
                    said=certainty.utility,
                    interval=certainty.interval,
                )
            )
    return found, seconds


def report(
    law: Law, path: str, runs: Sequence[tuple[list[Choice], tuple[float, float]]], budgets: Sequence[int]
) -> None:
    """Print the tables of one recording."""
    large = law.values.on_queries(0, law.large)
    accuracy, price = float(large.reward.mean()), float(large.cost.mean())
    singles, *each = law.singles()
    cascades = law.cascades(singles, *each)
    rows = [choice for found, _ in runs for choice in found]
    seeds, pairs = len({choice.seed for choice in rows}), list(itertools.product(budgets, NAMES))

    def of(name: str, budget: int, context: int | None = None) -> list[Choice]:
        return [c for c in rows if (c.name, c.budget) == (name, budget) and context in (None, c.context)]

    print(f"\n{path}: {seeds} seeds")
    print("\n(a) cost, in calls of the arm that is named first, of its accuracy minus .01")
    print(
        "| accuracy of | by the true law: one prompt | cascade | chosen: "
        + " | ".join(f"{n}, T = {b:,}" for b, n in pairs)
    )
    print("| --- " * (3 + len(pairs)) + "|")
    for arm in (law.large, singles.best(0.0)[0]):
        reference = law.values.on_queries(0, arm)
        right, paid = float(reference.reward.mean()), float(reference.cost.mean())
        cells = [f"{in_short(arm)}: {right:.4f} at {paid:.5f}"]
        for options in (singles, cascades):
            reached = options.reaching(right - SLACK)
            cells.append(f"{reached[1] / paid:.3f}: {in_short(reached[0])}" if reached else "-")
        for budget, name in pairs:
            least = []
            for seed in range(seeds):
                costs = [c.cost for c in of(name, budget) if c.seed == seed and c.reward >= right - SLACK]
                least.append(min(costs, default=np.inf) / paid)
            cells.append(f"{np.median(least):.3f} ({int(np.isfinite(least).sum())} of {seeds})")
        print("| " + " | ".join(cells) + " |")

    print("\n(b) utility by cost weight; in brackets the share of compound arms")
    head = ["cost weight", "always large", "one prompt, true law", "cascade, true law"]
    head += [f"{name}, T = {budget:,}" for budget, name in pairs]
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    table = []
    for context, weight in enumerate(WEIGHTS):
        table.append([accuracy - weight * price, singles.best(weight)[1], cascades.best(weight)[1]])
        cells = [f"{v:.4f}" for v in table[-1]]
        for budget, name in pairs:
            mine = of(name, budget, context)
            table[-1].append(float(np.mean([c.utility for c in mine])))
            share = np.mean([c.arm.compound for c in mine])
            cells.append(f"{table[-1][-1]:.4f}" + (f" ({share:.2f})" if share else ""))
        print(f"| {weight:g} | " + " | ".join(cells) + " |")
    print("| mean | " + " | ".join(f"{v:.4f}" for v in np.mean(table, axis=0)) + " |")
    for budget in budgets:
        both = [np.array([[c.utility for c in of(n, budget) if c.seed == s] for s in range(seeds)]) for n in NAMES]
        gain = (both[1] - both[0]).mean(axis=1)
        error = gain.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else float("nan")
        print(f"T = {budget:,}: auto+compound minus auto {gain.mean():+.4f} +- {error:.4f}")
    print(f"\nthe best arms by the true law: {'; '.join(law_words(w, singles, cascades) for w in WEIGHTS)}")

    print("\n(c) chosen compound arms; in brackets the arms of one prompt of the same runs")
    head = ["T", "arms", "by choice - exact on training", "measured - exact", "coverage, all", "coverage, held-out"]
    print("| " + " | ".join([*head, "exact - exact of auto"]) + " |\n" + "| --- " * 7 + "|")
    for budget in budgets:
        mine = of("auto+compound", budget)
        beside = [(c, a.utility) for c, a in zip(mine, of("auto", budget), strict=True)]
        parts = [[c for c in mine if c.arm.compound == kind] for kind in (True, False)]
        cells = [f"{len(parts[0])} ({len(parts[1])})"]
        measures = (
            lambda c: c.claimed - c.train,
            lambda c: c.said - c.train,
            lambda c: c.interval[0] <= c.utility <= c.interval[1],
            lambda c: c.interval[0] <= c.held_out <= c.interval[1],
        )
        for measure in measures:
            means = [f"{np.mean([measure(c) for c in part]):+.4f}" if part else "-" for part in parts]
            cells.append(f"{means[0]} ({means[1]})")
        gains = [c.utility - other for c, other in beside if c.arm.compound]
        cells.append(f"{np.mean(gains):+.4f}, {np.mean(np.array(gains) < 0):.2f} below 0" if gains else "-")
        print(f"| {budget:,} | " + " | ".join(cells) + " |")
    drawing, choosing = np.array([seconds for _, seconds in runs]).T
    seconds = f"{drawing.mean():.2f} for the search with stops, {choosing.mean():.2f} more for compound arms"
    print(f"\nseconds of processor time: {seconds}")


def law_words(weight: float, singles: Options, cascades: Options) -> str:
    """Return the best arms at a cost weight in a few words."""
    return f"{weight:g}: {in_short(singles.best(weight)[0])} or {in_short(cascades.best(weight)[0])}"


def in_short(arm: Arm) -> str:
    """Return an arm in a few words."""
    parts = []
    for stage in arm.stages:
        words = " + ".join(f"p{share.prompt} x{share.n}" for share in stage.shares)
        if stage.stop is not None:
            words += "w" if stage.stop.confidence is None else f" conf {stage.stop.confidence:g}"
        if stage.then is not None:
            words += f" below {stage.then.below:.2f}" + (f" times {stage.then.weight}" if stage.then.weight else "")
        parts.append(words)
    return " -> ".join(parts) + (" -> abstains" if arm.abstains else "")


# --- the demo's LMs --------------------------------------------------------------------------------------------------


def optimizer(preferences: Sequence[Preference], **more: Any) -> IAPO:
    """Return an optimizer over the demo's small and large LM."""
    register()
    settings: dict[str, Any] = {"engine": "litellm", "temperature": 1.0, "max_tokens": 200, "cache": False, "seed": 0}
    search = {"cost_unit": Cost(usd_per_million=USD_PER_MILLION), **more.pop("search", {})}
    return IAPO(
        metric=addition_task().metric,
        strategy=MajorityVote("answer"),
        lms=[dspy.LM(SMALL_MODEL, **settings), dspy.LM(MODEL, **settings)],
        preferences=list(preferences),
        candidates=list(INSTRUCTIONS),
        search=Search(**search),
        execution=Execution(progress=False),
        **more,
    )


def recorded(path: Path) -> None:
    """Record the demo's additions with both LMs."""
    task = addition_task()
    made = optimizer([Preference("quality", cost=0.0), Preference("thrifty", cost=1.0)])
    save(made.record(task.student(), trainset=task.train(QUESTIONS, 0), samples=SAMPLES), path)
    print(f"{path}: {2 * len(INSTRUCTIONS)} prompts, {QUESTIONS} questions, {SAMPLES} completions each")


def live(budget: int) -> None:
    """Compile with and without compound arms, and print policies, requests and seconds."""
    task = addition_task()
    preferences = [Preference(f"{w:g}", cost=w) for w in WEIGHTS[::2]]
    seconds, programs = {}, dict[bool, CompiledProgram]()
    for compound in (False, True):
        begun = time.process_time()
        made = optimizer(preferences, budget=Budget(budget), max_n=16, seed=0, search={"compound": compound})
        programs[compound] = made.compile(task.student(), trainset=task.train(200, 0))
        seconds[compound] = time.process_time() - begun
        spent = programs[compound].detailed_results.spent
        print(f"\ncompound={compound}: {spent.completions} completions, {seconds[compound]:.1f} s")
        for preference, arm in zip(preferences, programs[compound].policy.ready.arms, strict=True):
            print(f"  cost weight {preference.name:<6} {in_short(arm)}")
    print(f"\nseconds of processor time with compound arms over those without: {seconds[True] / seconds[False]:.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", help="recordings of votes (.npz)")
    parser.add_argument("--budgets", type=lambda t: [int(b) for b in t.split(",")], default=[1_000, 2_000, 4_000])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--max-n", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=6, help="prompts of the grid: so many of the best ones")
    parser.add_argument("--record", type=Path, help="record the demo's two LMs in this file")
    parser.add_argument("--live", action="store_true", help="compile on the demo's two LMs")
    asked = parser.parse_args()
    if asked.record is not None:
        recorded(asked.record)
    for path in asked.recordings:
        law = Law(path, asked.max_n, asked.prompts)
        tasks = [joblib.delayed(one_run)(law, b, seed) for b in asked.budgets for seed in range(asked.seeds)]
        with tqdm(total=len(tasks), unit="run") as bar:
            runs = []
            for made in joblib.Parallel(n_jobs=asked.jobs, return_as="generator")(tasks):
                runs.append(made)
                bar.update()
        report(law, path, runs, asked.budgets)
    if asked.live:
        live(asked.budgets[-1])


if __name__ == "__main__":
    main()
