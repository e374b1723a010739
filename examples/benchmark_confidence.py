"""Measure whether confidences are true, and promises of right answers kept, on recordings.

    python examples/benchmark_confidence.py MATH_FILE CQA_FILE --runs 40
    python examples/benchmark_confidence.py synthetic-families synthetic-bernoulli --runs 20

An environment is a recording or a synthetic one. In each run the queries are split anew, 80 to 20; a fifth of the
budget measures the chosen arms. Everything is valued on the recorded law of completions, which the run does not see.

The first table has the expected calibration error (ECE, ten bins) of confidences on held-out queries: of each run on
its own, and of all runs together; the same of a curve that knows the law of the training queries, which is the noise
floor of any method; and the mean confidence minus the share of right answers.

The second table has promises (`min_confidence`): in how many runs calls answer at all, because the run was sure to keep
the promise; in which share of all runs it is kept, on the law of all queries and on held-out ones, and of those that
answer; and of these the share of right answers, and the share of abstentions as estimated and true.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import needed
from iapo_dspy.bandit.confidence.learning import FURTHER, calibrated, rightness, stage_curves
from iapo_dspy.bandit.confidence.promise import with_promises
from iapo_dspy.bandit.measurement import measured, measuring_pulls, reserved
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.simulation.sources import Instance, source
from iapo_dspy.types import Arm, FloatArray, IntArray

PROMISES = 0.8, 0.9, 0.95
BINS = 10
SEQUENCES = 16  # calls that each query is valued by


def calibration_error(confidence: FloatArray, right: FloatArray) -> float:
    """Return the expected calibration error."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(place, confidence - right)).sum() / len(right))


def search(instance: Instance, budget: int, seed: int, max_n: int) -> tuple[Problem, Outcome]:
    """Run the default algorithm with a part of the budget, and measure its arms with the rest."""
    problem, algorithm = instance.train.problem(max_n), Auto()
    kept = reserved(budget, problem, algorithm.least(problem), problem.n_queries)
    environment = instance.train.environment(seed)
    outcome = drive(algorithm.start(problem, budget=budget - kept, seed=seed), environment)
    outcome = with_stops(problem, outcome)
    pulls = measuring_pulls(problem, outcome, np.arange(problem.n_queries), kept, seed)
    return problem, measured(problem, outcome, environment.pull(pulls)) if len(pulls) else outcome


class Law:
    """Calls on the recorded law."""

    def __init__(self, instance: Instance) -> None:
        self._values = StoppedValues(recording=instance.stopped.recording, sequences=SEQUENCES)

    def calls(self, arm: Arm, queries: IntArray, margin: float | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return sureness, rightness and whether there is an answer, of calls on these queries [S] each."""
        length = max(needed(arm).values()) * (1 if margin is None else FURTHER)
        rows = self._values.rows(0, np.array(sorted(arm.prompts)), length, np.arange(self.n_queries))
        chosen = np.flatnonzero(np.isin(rows.query, queries))
        rows = replace(rows, label=rows.label[:, chosen], score=rows.score[:, chosen], query=rows.query[chosen])
        played = play(arm, rows)
        return played.sureness, rightness(arm, played, rows, margin), played.answered.astype(float)

    def curve(self, arm: Arm, queries: IntArray, margin: float | None) -> FloatArray:
        """Return knots and levels of the curve of the last stage by the law of these queries [2, M]."""
        length = max(needed(arm).values()) * (1 if margin is None else FURTHER)
        rows = self._values.rows(0, np.array(sorted(arm.prompts)), length, np.arange(self.n_queries))
        chosen = np.flatnonzero(np.isin(rows.query, queries))
        rows = replace(rows, label=rows.label[:, chosen], score=rows.score[:, chosen], query=rows.query[chosen])
        (found, *_) = stage_curves(arm, rows, margin)
        return np.array([found.sureness, found.confidence])

    @property
    def n_queries(self) -> int:
        """X."""
        return self._values.recording.n_queries


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", help="as of `python -m iapo_dspy.simulation --environment`")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--budgets", default="2000", help="completions, separated by commas")
    parser.add_argument("--max-n", type=int, default=32)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    asked = parser.parse_args()
    first: list[dict[str, object]] = []
    second: list[dict[str, object]] = []
    for environment in asked.environments:
        where = source(environment, max_n=asked.max_n)
        for budget in map(int, asked.budgets.split(",")):
            about = {"environment": where.name, "budget": budget, "runs": asked.runs}
            each: list[tuple[float, float]] = []
            together: list[tuple[FloatArray, FloatArray]] = []
            kept: dict[float, list[tuple[float, ...]]] = {p: [] for p in PROMISES}
            for run in range(asked.runs):
                instance = where.instance(asked.seed, run)
                problem, outcome = search(instance, budget, run, asked.max_n)
                law = Law(instance)
                found, arm = calibrated(problem, outcome)[0], outcome.policy[0]
                assert found is not None, "the default algorithm has a model of votes and of Best-of-N"
                sureness, right, _ = law.calls(arm, instance.test_queries, found.map.margin)
                confidence = np.array([found.map.confidence(0, s) for s in sureness.tolist()])
                together.append((confidence, right))
                known = np.interp(sureness, *law.curve(arm, instance.train_queries, found.map.margin))
                each.append((calibration_error(confidence, right), calibration_error(known, right)))
                for promise in PROMISES:
                    kept[promise].append(kept_by(problem, outcome, law, instance, promise, found.map.margin))
            p, right = (np.concatenate(part) for part in zip(*together, strict=True))
            own, floor = np.mean(each, axis=0).tolist()
            pooled, bias = calibration_error(p, right), float((p - right).mean())
            first.append({**about, "ece": own, "floor": floor, "pooled": pooled, "bias": bias})
            for promise, numbers in kept.items():
                second.append({**about, "promise": promise, **summary(np.array(numbers), promise)})
            print(f"{where.name}, {budget}: ECE of all {pooled:.3f}", flush=True)
    show(("environment", "budget", "ece", "floor", "pooled", "bias"), first)
    show(tuple(second[0]), second)
    if asked.json:
        asked.json.write_text(json.dumps({"calibration": first, "promises": second}))


def show(names: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """Print a table."""
    print("\n| " + " | ".join(names) + " |\n" + "| --- " * len(names) + "|")
    for row in rows:
        values = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in (row[name] for name in names)]
        print("| " + " | ".join(values) + " |")


def kept_by(
    problem: Problem, outcome: Outcome, law: Law, instance: Instance, promise: float, margin: float | None
) -> tuple[float, ...]:
    """Return whether a run was sure, the shares of right answers on all and on held-out queries, and abstentions."""
    contexts = replace(problem.contexts, confidence=np.array([promise] + [0.0] * (len(problem.contexts) - 1)))
    problem = replace(problem, contexts=contexts)
    found = with_promises(problem, outcome)
    assert found.stops is not None
    call, shares = found.stops[0], list[float]()
    for queries in (np.arange(law.n_queries), instance.test_queries):
        _, right, answered = law.calls(call.arm, queries, margin)
        shares += [float(right @ answered / answered.sum()) if answered.any() else 1.0, float(1.0 - answered.mean())]
    promised = found.promises[0]
    return float(promised is not None and promised.kept), shares[0], shares[2], call.abstains, shares[1]


def summary(numbers: FloatArray, promise: float) -> dict[str, str]:
    """Return the numbers of one promise; rows of `kept_by` [R, 5]."""
    answering = numbers[numbers[:, 0] > 0]

    def of(values: NDArray[Any]) -> str:
        return f"{float(values.mean()):.3f}" if len(values) else "-"

    return {
        "answers": f"{len(answering)}/{len(numbers)}",
        "kept": of(numbers[:, 1] >= promise),
        "kept_out": of(numbers[:, 2] >= promise),
        "kept_answering": of(answering[:, 1] >= promise),
        "right": of(answering[:, 1]),
        "estimated": of(answering[:, 3]),
        "true": of(answering[:, 4]),
    }


if __name__ == "__main__":
    main()
