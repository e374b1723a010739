"""How certain a choice is: intervals, runners-up, the chance of being best, deceptive prompts, held-out estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.aggregators.port import distinct_rows
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.estimators.subsets import cell_subsets
from iapo_dspy.bandit.models.surfaces import groups
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import call_prices, observed_calls
from iapo_dspy.types import Arm, FloatArray, IntArray, Observations, Pulls

Z95 = 1.959964  # half width of a 95 % interval, in standard errors
_DRAWS = 400


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How certain the choice of one context's arm is.

    Attributes:
        standard_error: Of the arm's estimated utility, for new queries like the training ones.
        interval: The 95 % interval of its utility. The best of many estimates tends to be too high: `HeldOut` is not.
        runner_up: The best arm with another prompt; None where there is no other.
        behind: How much less utility the runner-up is estimated to have; may be slightly negative where a near-tie
            went to the cheaper arm.
        probability_best: Probability that the arm's prompt is the best one for the context, at its best scale each.
    """

    standard_error: float
    interval: tuple[float, float]
    runner_up: Arm | None
    behind: float
    probability_best: float


@dataclass(frozen=True, kw_only=True)
class Deceptive:
    """A prompt that is the best one for single completions and is beaten where completions are aggregated.

    Attributes:
        context: For which context.
        prompt: The deceptive prompt.
        beaten_by: The prompt that the policy has instead.
        n: At which scale.
        difference: By how much task reward it is beaten there, on the same queries, > 0.
        interval: The 95 % interval of the difference; it lies above 0.
    """

    context: int
    prompt: int
    beaten_by: int
    n: int
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Utility of the chosen arm on queries that had no part in the choice.

    Attributes:
        utility: Mean over queries; NaN where no query has n completions.
        standard_error: Its standard error; NaN with fewer than two queries.
        interval: The 95 % interval.
        queries: How many queries it rests on.
    """

    utility: float
    standard_error: float
    interval: tuple[float, float]
    queries: int


def choices(outcome: Outcome, seed: int = 0) -> tuple[Certainty, ...] | None:
    """Return how certain each context's arm is; None for algorithms whose estimates have no standard errors.

    Args:
        outcome: The run.
        seed: Seed of the joint normal draws behind `probability_best`.
    """
    evidence, se = outcome.detail, outcome.estimates.standard_error
    if evidence is None or se is None:
        return None
    noise = [_noise(evidence, row, np.random.default_rng([seed, row])) for row in range(len(evidence.values))]
    found = []
    for context, arm in enumerate(outcome.policy.arms):
        q = np.where(np.isnan(outcome.q[context]), -np.inf, outcome.q[context])
        reach = q.max(axis=1)
        others = np.where(np.arange(len(q)) == arm.prompt, -np.inf, reach)
        second = int(others.argmax())
        runner_up = Arm(second, int(q[second].argmax()) + 1) if np.isfinite(others[second]) else None
        value, error = float(q[arm.prompt, arm.n - 1]), float(se[context, arm.prompt, arm.n - 1])
        if outcome.stops is not None:  # what stopping changes is known far better than the reward itself
            value = outcome.stops[context].utility
        drawn = q + evidence.factor[context] * noise[evidence.row[context]]
        best = drawn.max(axis=2).argmax(axis=1)
        found.append(
            Certainty(
                standard_error=error,
                interval=_interval(value, error),
                runner_up=runner_up,
                behind=value - float(others[second]) if runner_up else float("nan"),
                probability_best=float((best == arm.prompt).mean()),
            )
        )
    return tuple(found)


def _noise(evidence: Evidence, row: int, rng: np.random.Generator) -> FloatArray:
    """Draw joint errors of all arms [draws, P, N]: of the queries by the multiplier bootstrap, and of the bias."""
    n_prompts, max_n = evidence.doubt[row].shape
    n_visited = evidence.n_visited
    scale = 1.0 / np.sqrt(n_visited * max(n_visited - 1, 1))
    drawn = rng.normal(size=(_DRAWS, n_visited))
    queries = np.empty((_DRAWS, n_prompts, max_n))
    for prompts in groups(n_prompts, n_visited, max_n):
        influence = evidence.influence[row].block(prompts)
        influence -= influence.mean(axis=1, keepdims=True)
        queries[:, prompts] = np.moveaxis(drawn @ influence * scale, 1, 0)
    return np.asarray(queries + rng.normal(size=(_DRAWS, n_prompts, 1)) * np.sqrt(evidence.doubt[row]))


def deceptive_prompts(outcome: Outcome) -> tuple[Deceptive, ...] | None:
    """Return the prompts that a comparison of single completions would have chosen, where that would be a mistake.

    Task rewards are compared, on the queries that both prompts share, at the scale of the context's arm; None for
    algorithms whose estimates have no standard errors.
    """
    evidence = outcome.detail
    if evidence is None:
        return None
    reward = outcome.reward
    found = []
    for context, arm in enumerate(outcome.policy.arms):
        single = np.where(np.isnan(outcome.q[context, :, 0]), -np.inf, reward[context, :, 0])
        first = int(single.argmax())
        if first == arm.prompt or arm.n == 1:
            continue
        difference = float(reward[context, arm.prompt, arm.n - 1] - reward[context, first, arm.n - 1])
        error = float(evidence.against(context, np.array([first]), np.array([arm.n]), arm.prompt, arm.n)[0])
        interval = _interval(difference, error)
        if interval[0] > 0:
            found.append(
                Deceptive(
                    context=context,
                    prompt=first,
                    beaten_by=arm.prompt,
                    n=arm.n,
                    difference=difference,
                    interval=interval,
                )
            )
    return tuple(found)


def held_out_pulls(arms: Sequence[Arm], queries: IntArray, budget: int, seed: int) -> Pulls:
    """Return pulls that measure chosen arms on held-out queries: each prompt once per query, at its largest scale.

    Args:
        arms: The policy.
        queries: Indices of the held-out queries.
        budget: Completions at most; where it does not reach for all queries, a random part of them is used.
        seed: Seed of that part.
    """
    largest: dict[int, int] = {}
    for arm in arms:
        largest[arm.prompt] = max(largest.get(arm.prompt, 0), arm.n)
    prompts = np.array(sorted(largest), dtype=np.int64)
    sizes = np.array([largest[p] for p in prompts.tolist()], dtype=np.int64)
    count = min(len(queries), budget // int(sizes.sum()))
    chosen = np.sort(np.random.default_rng([seed, len(queries)]).permutation(queries)[:count])
    return Pulls(np.tile(prompts, count), np.repeat(chosen, len(prompts)), np.tile(sizes, count))


def held_out(problem: Problem, outcome: Outcome, observations: Observations) -> tuple[HeldOut, ...]:
    """Estimate the utility of every context's arm from held-out completions alone, free of the winner's curse.

    Rewards are unbiased subset estimates; arms that stop early are replayed on random orders of a query's completions.
    Prices are those that the run learnt.
    """
    contexts = problem.contexts
    cells = Cells.of([observations], problem.n_prompts, contexts.n_objectives)
    rows, row, _ = distinct_rows(contexts.weights)
    value = cell_subsets(cells, problem.aggregator, rows, problem.max_n)
    prices = call_prices(problem, outcome)
    found = []
    for context, arm in enumerate(outcome.policy.arms):
        mine = value[row[context], cells.prompt == arm.prompt, arm.n - 1]
        completions, waves = np.full(len(mine), float(arm.n)), np.ones(len(mine))
        if arm.stop is not None:
            gain, completions, waves = observed_calls(problem, cells, context, arm)
            mine = mine + gain
        mine = mine - waves * prices.fixed[context, arm.prompt] - completions * prices.each[context, arm.prompt]
        mine = mine[~np.isnan(mine)]
        utility = float(mine.mean()) if len(mine) else float("nan")
        error = float(mine.std(ddof=1) / np.sqrt(len(mine))) if len(mine) > 1 else float("nan")
        found.append(
            HeldOut(utility=utility, standard_error=error, interval=_interval(utility, error), queries=len(mine))
        )
    return tuple(found)


def _interval(value: float, error: float) -> tuple[float, float]:
    return value - Z95 * error, value + Z95 * error
