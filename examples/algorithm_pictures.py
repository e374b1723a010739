"""Draw the pictures of docs/explanation/algorithm.md; needs the extra `plots`.

    python examples/algorithm_pictures.py docs/pictures

Every picture is made by the package's own code on synthetic environments with fixed seeds. All of them take a minute or
two. Names of pictures after the folder draw only those, and `--format png` writes another format.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iapo_dspy.bandit.algorithms.auto import Auto, Ranking
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator
from iapo_dspy.bandit.measurement import measured, measuring_pulls, reserved
from iapo_dspy.bandit.models.exact import majority_vote_rewards
from iapo_dspy.bandit.models.information import error
from iapo_dspy.bandit.models.port import Informed
from iapo_dspy.bandit.models.traits import DIFFICULTY, THETA, laws
from iapo_dspy.bandit.models.votes import VotePredictor
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.factorial import synthetic_factorial
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.synthetic import kinds, logistic, right_or_wrong, synthetic_bernoulli
from iapo_dspy.simulation.entrants import entrants
from iapo_dspy.simulation.runner import simulate
from iapo_dspy.simulation.sources import ArrivingSource, source
from iapo_dspy.types import Pulls

BLUE, ORANGE, GREY, GREEN = "#1f77b4", "#d95f02", "#8c8c8c", "#2a8f5a"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "algorithm",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def shared(repetitions: int = 4000, queries: int = 25) -> Figure:
    """Spread of the difference between two prompts, with shared and with independent questions."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=2000)
    noise = rng.normal(size=(2, 2000))
    theta = logistic(np.array([[0.5], [0.3]]) - 1.5 * difficulty + 0.3 * noise)
    reward = right_or_wrong(theta, rng).exact(8).reward[0, :, :, 7]  # votes of eight
    order = rng.integers(0, 2000, (3, repetitions, queries))
    same = (reward[0, order[0]] - reward[1, order[0]]).mean(axis=1)
    different = (reward[0, order[1]] - reward[1, order[2]]).mean(axis=1)
    figure, axes = _panel()
    bins = np.linspace(-0.35, 0.45, 81)
    for values, color, label in (
        (different, ORANGE, "each prompt its own questions"),
        (same, BLUE, "the same questions"),
    ):
        axes.hist(values, bins, density=True, color=color, alpha=0.65, label=f"{label} (s.d. {values.std():.3f})")
    truth = float(reward[0].mean() - reward[1].mean())
    axes.axvline(truth, color="black", linestyle="--", label=f"truth (+{truth:.3f})")
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set(xlabel=f"difference of two prompts in a trial of {queries} questions each", ylabel="density of trials")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def law() -> Figure:
    """Laws of a cell's probability, U-shaped and peaked, and what votes make of them."""
    figure, (left, right) = _panels("How often a question is answered rightly", "What a vote makes of it")
    difficulty, own = np.random.default_rng(0).normal(size=(2, 200_000))
    of_difficulty = np.exp(-(DIFFICULTY**2) / 2)
    table = majority_vote_rewards(np.stack([THETA, 1.0 - THETA], axis=1), np.array([[1.0, 0.0]] * len(THETA)), 32)
    for (level, slope, spread), color, label, shift in (
        ((0.36, 0.25, 0.25), BLUE, "peaked: a = 0.25, s = 0.25", -0.02),
        ((1.05, 3.0, 1.0), ORANGE, "U-shaped: a = 3, s = 1", 0.02),
    ):
        share, edges = np.histogram(logistic(level + slope * difficulty + spread * own), np.linspace(0.0, 1.0, 11))
        left.bar((edges[1:] + edges[:-1]) / 2 + shift, share / len(own), width=0.04, color=color, label=label)
        probs = of_difficulty / of_difficulty.sum() @ laws(np.array([[[level, slope, np.log(spread)]]]))[0, 0]
        right.plot(np.arange(1, 33), probs @ table, "o-", color=color, markersize=2.5)
    left.set(xlabel="probability theta that a completion is right", ylabel="share of questions", ylim=(0, 0.55))
    right.set(xlabel="votes N", ylabel="share of questions answered rightly", ylim=(0.5, 0.8))
    left.legend(loc="upper left")
    return figure


def parts(questions: int = 60) -> Figure:
    """Estimates of prompts that were never drawn, with and without what they have in common with drawn ones."""
    rng = np.random.default_rng(0)
    figure, axes = _panel()
    found = []
    for seed in range(3):
        recording = synthetic_factorial(seed, n_queries=questions)
        problem, order = recording.problem(8), rng.permutation(recording.n_prompts)
        drawn, never = np.sort(order[:24]), order[24:]
        prompt, query = np.repeat(drawn, questions), np.tile(np.arange(questions), 24)
        seen = recording.environment(seed).pull(Pulls(prompt, query, np.full(24 * questions, 2)))
        truth = recording.exact(8).reward[0, never, :, 7].mean(axis=1)
        for estimator in (CorrectedEstimator(replace(problem, parts=None)), CorrectedEstimator(problem)):
            estimator.update(seen)
            found.append((truth, estimator.evidence().reward()[0, never, 7]))
    for pairs, color, label in ((found[::2], ORANGE, "without parts"), (found[1::2], BLUE, "with parts")):
        axes.plot(*np.concatenate(pairs, axis=1), "o", color=color, markersize=4, label=label)
    axes.axline((0.5, 0.5), slope=1, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="exact reward of a prompt that was never drawn, N = 8", ylabel="its estimate")
    axes.legend(loc="upper left")
    return figure


def information(queries: int = 60, completions: int = 240) -> Figure:
    """Error of an arm at N = 16 by the size of pulls, for two kinds of prompts."""
    rng = np.random.default_rng(3)
    follows, own_mind, level = np.arange(6), np.arange(6, 12), np.linspace(0.6, 1.2, 6)[:, None]
    difficulty, noise = rng.normal(size=queries), rng.normal(size=(12, queries))
    theta = np.concatenate([level - 1.5 * difficulty + 0.1 * noise[follows], level + 2.0 * noise[own_mind]])
    recording = right_or_wrong(logistic(theta), rng)
    prompt, query = np.divmod(np.arange(12 * queries), queries)
    seen = recording.environment(0).pull(Pulls(prompt, query, np.where(query < queries // 2, 2, 1)))
    fitted = VotePredictor(12, 16).predict(Cells.of([seen], 12, 1)).model
    assert isinstance(fitted, Informed)
    known, sizes = fitted.knowledge(0), np.arange(1, 17)
    assert known is not None
    figure, axes = _panel()
    for prompts, color, label in (
        (follows, BLUE, "prompts that follow the shared difficulty"),
        (own_mind, ORANGE, "prompts with a mind of their own"),
    ):
        gradient = known.gradient(prompts, np.full(6, 16))
        errors = [error(gradient, known.after(prompts, m, completions / m)) for m in sizes.tolist()]
        mean = np.sqrt((np.array(errors) ** 2).mean(axis=1))
        axes.plot(sizes, mean, color=color, marker="o", markersize=3, label=label)
        axes.plot(sizes[mean.argmin()], mean.min(), "o", color=color, markersize=10, fillstyle="none")
    axes.set(
        xlabel=f"completions of a question, m (of {completions} for each prompt)", ylabel="error of the arm at N = 16"
    )
    axes.legend()
    return figure


def correction(seeds: int = 5, most: int = 1600) -> Figure:
    """Errors of the model alone, of unbiased estimates alone and of corrected ones, as draws grow."""
    counts = [n for n in (6, 12, 25, 50, 100, 200, 400, 800, 1600) if n <= most]
    squares = np.zeros((3, len(counts)))
    for seed in range(seeds):
        recording = synthetic_bernoulli(seed, n_prompts=16, n_queries=most)
        exact, problem = recording.exact(8).reward[0, :, :, 7], recording.problem(8)
        for i, n in enumerate(counts):
            prompt, query = np.divmod(np.arange(16 * n), n)
            seen = recording.environment(seed).pull(Pulls(prompt, query, np.full(16 * n, 8)))
            model, unbiased, both = (
                CorrectedEstimator(problem, corrected=False),
                SubsetEstimator(problem),
                CorrectedEstimator(problem),
            )
            for k, estimator in enumerate((model, unbiased, both)):
                estimator.update(seen)
                off = estimator.estimates().reward[0, :, 7] - exact[:, :n].mean(axis=1)
                squares[k, i] += (off**2).mean() / seeds
    figure, axes = _panel()
    for values, color, label in zip(
        np.sqrt(squares), (ORANGE, GREY, BLUE), ("model alone", "unbiased alone", "corrected"), strict=True
    ):
        axes.loglog(counts, values, "o-", markersize=3, color=color, label=label)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set_yticks([0.01, 0.02, 0.05, 0.1], [".01", ".02", ".05", ".10"])
    axes.minorticks_off()
    axes.set(xlabel="questions that each prompt has answered, 8 completions each", ylabel="error of an arm at N = 8")
    axes.legend()
    return figure


def allocation(budget: int = 3000, seed: int = 5) -> Figure:
    """One run: the estimates of the prompts that are drawn, round by round."""
    recording = synthetic_bernoulli(seed)
    outcome = drive(Auto().start(recording.problem(32), budget=budget, seed=0), recording.environment(1))
    steady, deceptive, _ = kinds(np.random.default_rng(seed), 32)
    color = np.full(32, GREY, dtype=object)
    color[steady], color[deceptive] = BLUE, ORANGE
    ranking, best = Ranking(recording.problem(32)), np.full((len(outcome.rounds), 32), np.nan)
    drawn = np.zeros(best.shape, dtype=int)
    for r, observations in enumerate(outcome.observations):
        np.add.at(drawn[r], observations.pulls.prompt, observations.pulls.size)
        ranking.observe(observations, np.flatnonzero(drawn[r]))
        best[r] = np.nanmax(ranking.outcome(complete=True).q[0], axis=1)
    figure, axes = _panel()
    rounds = np.arange(1, len(best) + 1)
    for p in np.argsort(color == GREY)[::-1].tolist():
        alive = drawn[:, p] > 0
        axes.plot(rounds[alive], best[alive, p], "o-", color=color[p], linewidth=0.8, markersize=3)
    for tone, label in ((BLUE, "gains by votes"), (ORANGE, "best single completions, gains nothing"), (GREY, "others")):
        axes.plot([], [], "o-", color=tone, markersize=4, label=label)
    axes.set_xticks(rounds, [f"{r}\n{n:,}" for r, n in zip(rounds, drawn.max(axis=1), strict=True)])
    truth = float(recording.exact(32).q()[0].max())
    axes.axhline(truth, color="black", linestyle="--", linewidth=0.8, label="truth of the best arm")
    axes.set(xlabel="round, and completions of each living prompt in it", ylabel="estimate of the prompt's best arm")
    axes.set_ylim(0, 1.1)
    axes.legend(loc="lower right")
    return figure


def newcomers(runs: int = 4, budget: int = 3000) -> Figure:
    """Completions that prompts of each generation took, where prompts join while a run goes on."""
    where = ArrivingSource(inner=source("synthetic-bernoulli", prompts=32), generations=4)
    found = [r.trials["auto", budget] for r in simulate(where, entrants(["auto"]), [budget], runs=runs, seed=0)]
    prompts = np.array([prompt for trial in found if trial is not None for prompt in trial.newcomers])
    figure, axes = _panel()
    shift = np.random.default_rng(0).uniform(-0.25, 0.25, len(prompts))
    served = prompts[:, 2] == 1
    for mask, color, label in ((~served, GREY, "put aside"), (served, BLUE, "serves a preference in the end")):
        axes.semilogy(
            prompts[mask, 0] + 1 + shift[mask], prompts[mask, 1], "o", color=color, markersize=3.5, label=label
        )
    axes.set_xticks(range(1, 5))
    axes.set_yticks([10, 30, 100, 300], ["10", "30", "100", "300"])
    axes.minorticks_off()
    axes.set(xlabel="generation in which a prompt joined (good ones late)", ylabel="completions of the prompt")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def end(budget: int = 20_000, seed: int = 5) -> Figure:
    """What the rest of a run may bring against its price, round by round, for two tasks."""
    figure, panels = _panels("An easy task: the run ends early", "A hard task: the run goes on")
    calls = Auto().calls
    for axes, recording in zip(panels, (_easy(seed), synthetic_bernoulli(seed)), strict=True):
        problem, gain, price = recording.problem(32), [], []
        outcome = drive(Auto().start(problem, budget=budget, seed=0), recording.environment(1))
        ranking = Ranking(problem)
        for observations in outcome.observations:
            prompts, first = np.unique(observations.pulls.prompt, return_index=True)
            ranking.observe(observations, prompts)
            gain.append(ranking.gains(traits=True).max() * calls)
            price.append(ranking.price(prompts, observations.pulls.size[first]) * (budget - ranking.spent))
        rounds = np.arange(1, len(gain) + 1)
        axes.semilogy(rounds, gain, "o-", color=BLUE, label=f"largest expected gain x {calls:,} calls")
        axes.semilogy(rounds[:7], price[:7], "o-", color=ORANGE, label="price of the completions that are left")
        axes.set(xlabel="after round", xlim=(0.5, 8.5), ylim=(10, 3e4))
    panels[0].set_ylabel("utility, summed over calls")
    panels[0].legend(loc="upper left")
    return figure


def measuring(runs: int = 60, per_prompt: tuple[int, ...] = (20, 40, 100, 200)) -> Figure:
    """Error of the estimate by which an arm was chosen, and of the measured one, mean over runs."""
    off = np.full((2, len(per_prompt), runs), np.nan)
    for run in range(runs):
        recording = synthetic_bernoulli(run, n_prompts=12, n_queries=200)
        problem, exact = recording.problem(16), recording.exact(16).q()
        for i, each in enumerate(per_prompt):
            budget, environment = each * problem.n_prompts, recording.environment(run)
            kept = reserved(budget, problem, Auto().least(problem), problem.n_queries)
            outcome = drive(Auto().start(problem, budget=budget - kept, seed=run), environment)
            pulls = measuring_pulls(problem, outcome, np.arange(problem.n_queries), budget - outcome.spent, run)
            found, arm = measured(problem, outcome, environment.pull(pulls)).measured, outcome.policy.arms[0]
            if found is not None and found[0] is not None:
                off[:, i, run] = np.array([outcome.q[0, arm.prompt, arm.n - 1], found[0].utility])
                off[:, i, run] -= exact[0, arm.prompt, arm.n - 1]
    figure, axes = _panel()
    for values, color, label in (
        (off[0], ORANGE, "estimate by which the arm was chosen"),
        (off[1], BLUE, "the same arm, measured afterwards"),
    ):
        n = (~np.isnan(values)).sum(axis=1)
        error_bar = 2.0 * np.nanstd(values, axis=1) / np.sqrt(n)
        axes.errorbar(per_prompt, np.nanmean(values, axis=1), error_bar, fmt="o-", color=color, capsize=3, label=label)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(per_prompt, [str(each) for each in per_prompt])
    axes.minorticks_off()
    axes.set(xlabel="completions per prompt", ylabel="utility said minus the truth")
    axes.legend()
    return figure


def _easy(seed: int) -> VotingRecording:
    """An environment in which one prompt is far better than all others."""
    rng = np.random.default_rng(seed)
    level = np.append(1.5, rng.uniform(-1.5, -0.5, 31))[:, None]
    return right_or_wrong(logistic(level - rng.normal(size=520) + 0.3 * rng.normal(size=(32, 520))), rng)


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    return figure, figure.subplots()


def _panels(left: str, right: str) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    one, two = figure.subplots(1, 2)
    one.set_title(left, fontsize=10)
    two.set_title(right, fontsize=10)
    return figure, (one, two)


PICTURES: dict[str, Callable[[], Figure]] = {
    "shared": shared,
    "law": law,
    "parts": parts,
    "information": information,
    "correction": correction,
    "allocation": allocation,
    "newcomers": newcomers,
    "end": end,
    "measuring": measuring,
}


def main() -> None:
    """Draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", nargs="*", help=f"default: all of {', '.join(PICTURES)}")
    parser.add_argument("--format", default="svg")
    asked = parser.parse_args()
    with matplotlib.rc_context(STYLE):
        for name in asked.pictures or PICTURES:
            figure = PICTURES[name]()
            metadata = {"Date": None} if asked.format == "svg" else {}
            figure.savefig(asked.folder / f"{name}.{asked.format}", metadata=metadata, dpi=110)


if __name__ == "__main__":
    main()
