"""Measure mixtures of prompts on recordings, beside the best single prompt that draws as many completions.

    python examples/benchmark_mixtures.py MATH_FILE CQA_FILE --budgets 2000,8000 --seeds 10
    python examples/benchmark_mixtures.py synthetic-families synthetic-unstructured --budgets 4000

An environment is a synthetic one or the path of a recording. In each run `auto` draws T completions on four fifths of
the questions. For each N the best mixture of N completions is found in these draws, and compared with the prompt whose
N completions are best; completions are free here. For each T and N the script prints:

- found: in how many runs the product says that a mixture is better: its cross-fitted gain is more than 1.5 standard
  errors above 0. In the others it says that there is none;
- said: the cross-fitted gain of what was found, mean over these runs;
- true: the gain of the same mixtures on the held-out questions by the true law, mean, and how many are below 0;
- all: the cross-fitted and the true gain of the best mixture of every run, whatever the product says of it;
- law: the gain on the held-out questions of the mixture that is best on the training questions by the true law, over
  the best prompt there by the true law: is there anything to gain?

True gains are played on `--sequences` sequences of completions for each question, and corrected by the closed form.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.compound.cascades import ArmPrices
from iapo_dspy.bandit.compound.chosen import mixture_of
from iapo_dspy.bandit.compound.mixtures import Mixtures
from iapo_dspy.bandit.outcome import Considered
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.families import synthetic_families
from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_unstructured
from iapo_dspy.recordings import load
from iapo_dspy.types import Arm

SCALES = (4, 8, 16, 32)
SYNTHETIC: dict[str, Callable[[int], Recording]] = {
    "synthetic-bernoulli": synthetic_bernoulli,
    "synthetic-families": synthetic_families,
    "synthetic-unstructured": synthetic_unstructured,
}
BY_LAW = 8  # prompts that the best mixture by the true law is made of, at most
ROWS = 48  # sequences for each question on which it is looked for


@dataclass(frozen=True)
class Row:
    """The claim of a run about N completions, and the truth on held-out questions; NaN without a mixture."""

    n: int
    said: float
    found: bool
    true: float
    law: float


def compared(values: StoppedValues, arm: Arm, beside: Arm) -> float:
    """Return the true gain of an arm over another one."""
    return float((values.on_queries(0, arm).reward - values.on_queries(0, beside).reward).mean())


def best_by_law(train: Recording, n: int) -> tuple[Arm, Arm]:
    """Return the best mixture of n completions by the true law, and the best prompt; the same arm where none is."""
    reward = train.exact(n).reward[0, :, :, n - 1].mean(axis=1)
    prompts = np.sort(np.argsort(-reward)[:BY_LAW])
    rows = StoppedValues(recording=train, sequences=ROWS).rows(0, prompts, n, np.arange(train.n_queries))
    free = ArmPrices(fixed=np.zeros(train.n_prompts), each=np.zeros(train.n_prompts))
    found = Mixtures(rows, np.tile(reward[:, None], n)).best(n, free, free)
    single = Arm(int(reward.argmax()), n)
    return (found.arm, found.beside) if found is not None else (single, single)


def run(recording: Recording, budgets: list[int], seed: int, sequences: int) -> dict[int, list[Row]]:
    """Return the rows of one split, by budget."""
    train, test = (recording.subset(part) for part in recording.split(seed))
    values = StoppedValues(recording=test, sequences=sequences)
    law = {n: compared(values, *best_by_law(train, n)) for n in SCALES}
    problem, found = train.problem(max(SCALES)), dict[int, list[Row]]()
    for budget in budgets:
        outcome = drive(Auto().start(problem, budget=budget, seed=seed), train.environment(seed, budget))
        found[budget] = [row(mixture_of(problem, outcome, 0, n), values, n, law[n]) for n in SCALES]
    return found


def row(best: Considered | None, values: StoppedValues, n: int, law: float) -> Row:
    """Return what one run says of N completions."""
    if best is None:
        return Row(n, np.nan, False, np.nan, law)
    return Row(n, best.gain, best.chosen, compared(values, best.arm, best.beside), law)


def mean(values: list[float]) -> str:
    """Return a mean in words."""
    known = [value for value in values if np.isfinite(value)]
    return f"{np.mean(known):+.4f}" if known else "      -"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", help=f"paths of recordings, or {', '.join(SYNTHETIC)}")
    parser.add_argument("--budgets", default="2000,8000", help="completions T")
    parser.add_argument("--seeds", type=int, default=5, help="runs")
    parser.add_argument("--sequences", type=int, default=400, help="sequences of completions for each question")
    arguments = parser.parse_args()
    budgets = [int(budget) for budget in arguments.budgets.split(",")]
    for name in arguments.environments:
        rows: dict[tuple[int, int], list[Row]] = {(t, n): [] for t in budgets for n in SCALES}
        for seed in tqdm(range(arguments.seeds), desc=Path(name).stem, leave=False):
            recording = SYNTHETIC[name](seed) if name in SYNTHETIC else load(Path(name))
            for budget, said in run(recording, budgets, seed, arguments.sequences).items():
                for found in said:
                    rows[budget, found.n].append(found)
        print(f"\n{Path(name).stem}, {arguments.seeds} runs")
        print(
            f"{'T':>6} {'N':>3} {'found':>6} {'said':>8} {'true':>8} {'< 0':>4} "
            f"{'all said':>9} {'all true':>9} {'law':>8}"
        )
        for (budget, n), them in rows.items():
            found_ = [r for r in them if r.found]
            below = sum(r.true < 0 for r in found_)
            print(
                f"{budget:>6} {n:>3} {len(found_):>6} {mean([r.said for r in found_]):>8} "
                f"{mean([r.true for r in found_]):>8} {below:>4} {mean([r.said for r in them]):>9} "
                f"{mean([r.true for r in them]):>9} {mean([r.law for r in them]):>8}"
            )


if __name__ == "__main__":
    main()
