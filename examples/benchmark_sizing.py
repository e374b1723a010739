"""How good a choice is by the number of examples, of candidates and of completions; needs the extra `simulation`.

    python examples/benchmark_sizing.py CQA_FILE --runs 20

Each run draws so many candidates and so many training examples of the environment, and compiles with the default
algorithm. `lost` is what the chosen arms lose against the best arms of the same candidates: mean over the preferences,
exact, on the queries that are held out. `+-` is half the mean width of the 95 % interval of the utility that a user is
shown. Part of every budget measures the chosen arms.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from iapo_dspy.bandit.models.winning import Ties
from iapo_dspy.simulation.entrants import entrants
from iapo_dspy.simulation.runner import simulate
from iapo_dspy.simulation.sources import Instance, Source, source


@dataclass(frozen=True, kw_only=True)
class SomePrompts:
    """Another source with a few of its prompts, others in each run."""

    inner: Source
    prompts: int

    @property
    def name(self) -> str:
        """Name of the inner source."""
        return self.inner.name

    @property
    def ties(self) -> Ties:
        """Those of the inner source."""
        return self.inner.ties

    @property
    def max_n(self) -> int:
        """That of the inner source."""
        return self.inner.max_n

    def instance(self, seed: int, run: int) -> Instance:
        """Return the environment of a run."""
        whole = self.inner.instance(seed, run)
        return whole.of_prompts(np.random.default_rng([seed, run]).permutation(whole.train.n_prompts)[: self.prompts])


def whole_numbers(text: str) -> list[int]:
    """Return numbers that commas separate."""
    return [int(each) for each in text.split(",")]


def main() -> None:
    """Print a row for every number of examples and of candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", help="as of `python -m iapo_dspy.simulation --environment`")
    parser.add_argument("--examples", type=whole_numbers, default=[25, 100, 400], help="separated by commas")
    parser.add_argument("--candidates", type=whole_numbers, default=[5, 15, 30], help="separated by commas")
    parser.add_argument("--per-candidate", type=whole_numbers, default=[20, 50, 100], help="completions, by commas")
    parser.add_argument("--max-n", type=int, default=16)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    columns = "".join(f" {each} completions a candidate |" for each in asked.per_candidate)
    print(f"| examples | candidates |{columns}\n| --- | --- |{' --- |' * len(asked.per_candidate)}")
    for examples in asked.examples:
        inner = source(asked.environment, max_n=asked.max_n, queries=examples)
        for candidates in asked.candidates:
            budgets = [each * candidates for each in asked.per_candidate]
            with tqdm(total=asked.runs, leave=False) as bar:
                runs = simulate(
                    SomePrompts(inner=inner, prompts=candidates),
                    entrants(["auto"]),
                    budgets,
                    runs=asked.runs,
                    seed=asked.seed,
                    jobs=asked.jobs,
                    progress=lambda done, bar=bar: bar.update(done - bar.n),  # type: ignore[misc]
                )
            cells = []
            for budget in budgets:
                trials = [(run.oracle, trial) for run in runs if (trial := run.trials["auto", budget]) is not None]
                lost = np.mean([oracle - trial.acr for oracle, trial in trials])
                width = np.mean([trial.half_width for _, trial in trials if trial.half_width is not None])
                cells.append(f" {budget:,}: lost {lost:.3f}, +-{width:.2f} |")
            print(f"| {examples} | {candidates} |{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
