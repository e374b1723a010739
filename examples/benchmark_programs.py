"""Measure how large saved programs are, and how long it takes to save and to load them (a benchmark, minutes).

    python examples/benchmark_programs.py [--completions 2000 20000 200000] [--prompts 25] [--queries 300] [--max-n 32]

Single completions of random prompts on random queries are drawn in eight rounds from a synthetic environment of two
answers, and the default algorithm chooses arms for three preferences from them. Every request takes prompt tokens of
its query and its prompt, output tokens, dollars and seconds at random, as one of a real LM does: nothing about them can
be packed away. The program is saved, loaded into a fresh student, asked for its results, and asked to solve a
preference that was not compiled.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import dspy
import numpy as np

from iapo_dspy import CompiledProgram, Cost, Decoding, MajorityVote, Preference
from iapo_dspy.bandit.named import named
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.environments.port import Environment
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
from iapo_dspy.program.evidence.columns import rounded
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.program.results.compile_result import make_result
from iapo_dspy.prompts.copies import program_state
from iapo_dspy.prompts.prompt import PromptState
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.scoring.failures import FailureReport
from iapo_dspy.types import Observations, Pulls

T = TypeVar("T")
ROUNDS = 8
PREFERENCES = (Preference("quality"), Preference("balanced", cost=0.2), Preference("thrifty", cost=1.0))
INSTRUCTION = "Think about the question step by step, check every step, and give the answer alone. Manner {}."


class Metered:
    """An environment whose pulls take tokens, dollars and seconds."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._rng = np.random.default_rng(0)

    def pull(self, pulls: Pulls) -> Observations:
        """Draw as the environment does."""
        seen = self._environment.pull(pulls)
        pulls = seen.pulls
        words = np.maximum(np.round(self._rng.lognormal(4.5, 0.4, pulls.completions)), 1.0)
        first = np.cumsum(pulls.size) - pulls.size
        output, asked = np.add.reduceat(words, first), 60.0 + 3.0 * pulls.prompt + pulls.query % 40
        seconds = self._rng.lognormal(0.0, 0.3, len(pulls))
        used = np.stack([output, asked, 0.15e-6 * asked + 0.6e-6 * output, seconds], axis=1)
        once = np.stack([0.0 * output, asked, 0.15e-6 * asked, seconds], axis=1)
        return replace(seen, cost=words, used=used, once=once)


def compiled(completions: int, n_prompts: int, n_queries: int, max_n: int) -> CompiledProgram:
    """Return the program of a run that has drawn so many completions."""
    strategy, algorithm = MajorityVote("answer"), named("auto")
    recording = synthetic_bernoulli(0, n_prompts=n_prompts, n_queries=n_queries)
    environment, rng = Metered(recording.environment(0)), np.random.default_rng(0)
    rounds = []
    for size in np.diff(np.linspace(0, completions, ROUNDS + 1).astype(int)).tolist():
        cells = np.sort(rng.integers(0, n_prompts * n_queries, size))
        rounds.append(environment.pull(Pulls(*np.divmod(cells, n_queries), np.ones(size, dtype=np.int64))))
    problem = recording.problem(max_n=max_n)
    outcome = with_stops(problem, algorithm.solve(problem, rounds))
    student = dspy.Predict("question -> answer")
    prompts = []
    for i in range(n_prompts):
        student.signature = student.signature.with_instructions(INSTRUCTION.format(i))
        label, state = student.signature.instructions, program_state(student)
        prompts.append(PromptState(state=state, decoding=Decoding(), candidate=i, label=label, lms={}))
    policy = CompiledPolicy(
        preferences=PREFERENCES,
        arms=outcome.policy.arms,
        default="quality",
        prompts=tuple(prompts),
        max_n=max_n,
        n_queries=n_queries,
        cost_scale=outcome.cost_scale,
        algorithm=algorithm,
        stopping="confidence",
        strategy=strategy.to_dict(),
        evidence=rounded(outcome.observations),
        spent=Spent(completions=outcome.spent).to_dict(),
        cost=Cost(),
    )
    program = CompiledProgram(student, strategy, policy)
    failures = FailureReport(completions=outcome.spent, total=0, errors=0, share=(0.0,) * n_prompts, causes=())
    tokens, programs = outcome.estimates.cost[:, 0], functools.partial(tuple, [student] * n_prompts)
    models = ["openai/gpt-4o-mini"] * n_prompts
    program.detailed_results = make_result(
        policy, strategy, outcome, tokens, models, programs, failures=failures, rounds=outcome.rounds, complete=True
    )
    return program


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return how many seconds something takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    """Measure programs of several runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--completions", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--prompts", type=int, default=25)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--max-n", type=int, default=32)
    given = parser.parse_args()
    print("completions  file bytes  evidence  results  gzip  save s  load s  results s  solve s")
    for completions in given.completions:
        program = compiled(completions, given.prompts, given.queries, given.max_n)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program.json"
            save, _ = timed(functools.partial(program.save, path))
            again = CompiledProgram(dspy.Predict("question -> answer"))
            load, _ = timed(functools.partial(again.load, path))
            data = path.read_bytes()
        look, results = timed(lambda: again.detailed_results)  # noqa: B023 - called at once
        assert repr(results.policy) == repr(program.detailed_results.policy)
        solve, arm = timed(functools.partial(again.solve, Preference(cost=0.37)))
        assert arm == program.solve(Preference(cost=0.37))
        state = json.loads(data)["policy"]
        parts = [len(json.dumps(state[name])) for name in ("evidence", "results")]
        print(
            f"{results.spent.completions:>11,}  {len(data):>10,}  {parts[0]:>8,}  {parts[1]:>7,}  "
            f"{len(zlib.compress(data)):>7,}  {save:.2f}  {load:.2f}  {look:.4f}  {solve:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
