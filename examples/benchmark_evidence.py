"""Compare a run that goes on from an earlier one with a run that has the whole budget at once (seconds a seed).

    python examples/benchmark_evidence.py [--seeds 20] [--first 600] [--total 900] [--environment synthetic-bernoulli]

Both runs are the default algorithm's on the same simulated world, with the part of each budget that measures the chosen
arms. The table has the completions that the second run pays for, and the difference in the policies' true value.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.standing import joined
from iapo_dspy.bandit.measurement import measuring_pulls, reserved
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import Environment, drive
from iapo_dspy.simulation.sources import SYNTHETIC, source
from iapo_dspy.types import FloatArray, Observations


def run(problem: Problem, world: Environment, budget: int, seed: int) -> tuple[Outcome, list[Observations]]:
    """Run the algorithm and measure its arms; return the outcome and all that was drawn now."""
    algorithm = Auto()
    new = 0 if problem.known is None else problem.n_prompts - len(np.unique(problem.known.pulls.prompt))
    least = max(algorithm.least(problem), problem.n_known + new)
    kept = reserved(budget, problem, least, problem.n_queries)
    outcome = drive(algorithm.start(problem, budget=budget - kept, seed=seed), world)
    drawn = list(outcome.observations[1:] if problem.known is not None else outcome.observations)
    drawn.append(world.pull(measuring_pulls(problem, outcome, np.arange(problem.n_queries), kept, seed)))
    return outcome, drawn


def value(outcome: Outcome, q: FloatArray) -> float:
    """Return the true utility of the policy, mean over contexts."""
    return float(np.mean([q[c, arm.prompt, arm.n - 1] for c, arm in enumerate(outcome.policy.arms)]))


def main() -> None:
    """Run both on each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=600)
    parser.add_argument("--total", type=int, default=900)
    parser.add_argument("--environment", choices=SYNTHETIC, default="synthetic-bernoulli")
    given = parser.parse_args()
    world = source(given.environment)
    paid, gain, values = [], [], []
    for seed in range(given.seeds):
        instance = world.instance(0, seed)
        problem = instance.train.problem(world.max_n, world.ties)
        _, drawn = run(problem, instance.train.environment(seed, 0), given.first, seed)
        known = joined(drawn)
        on, more = run(replace(problem, known=known), instance.train.environment(seed, 1), given.total, seed)
        whole, _ = run(problem, instance.train.environment(seed, 2), given.total, seed)
        at_once = value(whole, instance.q_train)
        paid.append(sum(o.pulls.completions for o in more))
        gain.append(value(on, instance.q_train) - at_once)
        values.append(at_once)
        assert known.pulls.completions <= given.first and known.pulls.completions + paid[-1] <= given.total
    error = np.std(gain, ddof=1) / np.sqrt(len(gain))
    print(f"{given.environment}, {given.first} and then {given.total} completions, {given.seeds} seeds")
    print(f"paid by the second run: {min(paid)} to {max(paid)}, mean {np.mean(paid):.0f}")
    print(
        f"value at once: {np.mean(values):.4f}; going on: {np.mean(gain):+.4f} +- {error:.4f} (standard error, paired)"
    )


if __name__ == "__main__":
    main()
