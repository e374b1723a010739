"""Measure how estimation grows: seconds and peak memory of large cases, each in a fresh process.

    python examples/benchmark_scaling.py --scaling                # all cases
    python examples/benchmark_scaling.py --scaling spread --completions 100000

- `spread`: 200,000 completions of 200 prompts, one a time, on all of 20,000 queries; max_n 64, majority vote. Estimates
  of every arm, the policy, its stopping rules and how certain it is come from one batch.
- `run`: a run of the default algorithm on the same world; the time of the environment is not counted.
- `scores`: `spread` for Best-of-N with continuous scores.
- `preferences`: 500 preferences over 30 objectives, 2,000 completions of 20 prompts on 200 queries; max_n 32.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.inference import choices, deceptive_prompts
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.types import Contexts, Observations, Pulls

PROMPTS, QUERIES, MAX_N = 200, 20_000, 64


class World:
    """Prompts that are right, or score well, with a probability of their own on every query; made when asked for."""

    def __init__(self, n_prompts: int, n_queries: int, n_objectives: int, *, scored: bool) -> None:
        rng = np.random.default_rng(0)
        self.n_prompts, self.n_queries, self._scored = n_prompts, n_queries, scored
        self._level = rng.normal(-0.2, 0.6, size=(n_prompts, n_objectives))
        self._difficulty = rng.normal(size=n_queries)
        self._rng = rng

    def pull(self, pulls: Pulls) -> Observations:
        """Implement `Environment.pull`."""
        prompt, query = np.repeat(pulls.prompt, pulls.size), np.repeat(pulls.query, pulls.size)
        logit = self._level[prompt] - self._difficulty[query, None]
        if self._scored:
            label = np.zeros(len(prompt), dtype=np.int64)
            score = 1.0 / (1.0 + np.exp(-logit - self._rng.normal(size=logit.shape)))
        else:
            right = self._rng.random(len(prompt)) < 1.0 / (1.0 + np.exp(-logit[:, 0]))
            label = np.where(right, 0, 1 + self._rng.geometric(0.5, size=len(prompt)))
            score = right[:, None].astype(float)
        cost = self._rng.uniform(20.0, 40.0, size=len(prompt))
        return Observations(pulls=pulls, label=label, score=score, cost=cost)


def spread(completions: int, *, scored: bool = False) -> tuple[float, Outcome]:
    """Estimate everything from one batch in which every query has as many prompts as the completions allow."""
    world = World(PROMPTS, QUERIES, 1, scored=scored)
    at = np.arange(completions)
    pulls = Pulls((at + at // QUERIES * 7 + at % 3) % PROMPTS, at % QUERIES, np.ones(completions, dtype=np.int64))
    return _finish(_problem(scored), [world.pull(pulls)])


def run(completions: int) -> tuple[float, Outcome]:
    """Run the default algorithm."""
    world, problem = World(PROMPTS, QUERIES, 1, scored=False), _problem(scored=False)
    return _drive(problem, world, completions)


def preferences(completions: int) -> tuple[float, Outcome]:
    """Serve many preferences over many objectives."""
    rng = np.random.default_rng(1)
    contexts = Contexts(rng.dirichlet(np.ones(30), size=500), rng.choice([0.0, 0.2, 1.0], size=500))
    problem = Problem(n_prompts=20, n_queries=200, max_n=32, contexts=contexts, aggregator=BestOfNAggregator())
    return _drive(problem, World(20, 200, 30, scored=True), completions)


def _problem(scored: bool) -> Problem:
    aggregator = BestOfNAggregator() if scored else MajorityVoteAggregator()
    contexts = Contexts(np.ones((3, 1)), np.array([0.0, 0.2, 1.0]))
    return Problem(n_prompts=PROMPTS, n_queries=QUERIES, max_n=MAX_N, contexts=contexts, aggregator=aggregator)


def _drive(problem: Problem, world: World, completions: int) -> tuple[float, Outcome]:
    algorithm, observations, spent = Auto().start(problem, budget=completions, seed=0), None, 0.0
    while True:
        start = time.perf_counter()
        try:
            pulls = algorithm.send(observations)
        except StopIteration as stop:
            rest, outcome = _conclude(problem, stop.value)
            return spent + rest + time.perf_counter() - start, outcome
        spent += time.perf_counter() - start
        observations = world.pull(pulls)


def _finish(problem: Problem, rounds: list[Observations]) -> tuple[float, Outcome]:
    start = time.perf_counter()
    outcome = Auto().solve(problem, rounds)
    _, outcome = _conclude(problem, outcome)
    return time.perf_counter() - start, outcome


def _conclude(problem: Problem, outcome: Outcome) -> tuple[float, Outcome]:
    outcome = with_stops(problem, outcome)
    choices(outcome)
    deceptive_prompts(outcome)
    return 0.0, outcome


CASES: dict[str, tuple[Callable[[int], tuple[float, Outcome]], int]] = {
    "spread": (spread, 200_000),
    "run": (run, 200_000),
    "scores": (lambda completions: spread(completions, scored=True), 200_000),
    "preferences": (preferences, 2_000),
}


def measure(case: str, completions: int | None) -> dict[str, object]:
    """Run one case in this process."""
    function, usual = CASES[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    seconds, outcome = function(completions or usual)
    cpu = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "case": case,
        "completions": outcome.spent,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mb": round(peak / 1024),
        "before_mb": round(before / 1024),
    }


def main() -> None:
    """Print one line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scaling", nargs="*", choices=list(CASES), help="cases, each in a process of its own")
    parser.add_argument("--here", choices=list(CASES), help="one case in this process")
    parser.add_argument("--completions", type=int)
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure(asked.here, asked.completions)), flush=True)
        return
    for case in asked.scaling or CASES:
        extra = ["--completions", str(asked.completions)] if asked.completions else []
        subprocess.run([sys.executable, __file__, "--here", case, *extra], check=True)


if __name__ == "__main__":
    main()
