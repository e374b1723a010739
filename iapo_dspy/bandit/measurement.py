"""Measures the chosen arms once more, with completions that had no part in the choice.

The best of many estimates is too high, whatever estimator they come from. So a part of the budget is kept until the
arms are chosen, and what is reported rests on that part alone. It is spent in two phases (two-phase sampling with a
regression estimator, Cochran 1977, ch. 12): k random queries get as many completions as the arm aggregates, and K more
get a single one. With y the reward of an arm's whole call on a query, z that of single completions there, and beta the
slope between the two that the run has learnt,

    mean over k of (y - beta z)  +  beta * mean over K of z

is unbiased whatever beta is, because beta comes from other completions. Where queries differ it varies much less than
the mean of y, for what differs from query to query shows in single completions already.

Intervals are Wilson's (1927) with Student's t, for an effective number of queries that gives the same variance. The
variance of few queries is unreliable, and 0 where all of them agree: it is moderated by a prior of a few degrees of
freedom (Smyth 2004), and never smaller than that of as many queries with yes-or-no rewards of the same mean, as far as
the rewards are of that kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator, ClosedForm, distinct_rows
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import drawn_sequences, needed
from iapo_dspy.bandit.estimators.subsets import cell_subsets
from iapo_dspy.bandit.outcome import HeldOut, Outcome, Round
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import call_prices, observed_calls
from iapo_dspy.types import Arm, FloatArray, IntArray, Observations, Pulls

SHARE = 5  # one in so many completions measures the chosen arms
_PRIOR_WEIGHT = 2.0  # degrees of freedom of the prior variance
_UNEXPLAINED = 0.25  # share of the variance that single completions leave, before it is measured
_T = np.array([12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.179, 2.131, 2.086, 2.042, 2.0])
_T_AT = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 60])


def reserved(budget: int, problem: Problem, least: int, n_queries: int, *, known: int = 0) -> int:
    """Return how many completions of a budget are kept to measure the chosen arms.

    Args:
        budget: T.
        problem: The problem.
        least: Smallest budget of the algorithm, which comes first.
        n_queries: Queries to measure on.
        known: Completions on queries of a validation set that earlier runs have paid for. They are kept, and a share
            of what is not known yet.
    """
    if problem.n_prompts == problem.max_n == 1:  # nothing is chosen
        return 0
    share = known + max(budget - problem.n_known - known, 0) // SHARE
    useful = problem.n_contexts * n_queries * problem.max_n
    return max(min(share, useful, budget - least), 0)


def measuring_pulls(
    problem: Problem, outcome: Outcome, queries: IntArray, budget: int, seed: int, *, phases: int = 2
) -> Pulls:
    """Return pulls that measure the chosen arms, each prompt at its largest scale.

    Args:
        problem: The problem.
        outcome: The run.
        queries: Indices of the queries to measure on.
        budget: Completions at most; where it does not reach for all queries, a random part of them is used.
        seed: Seed of that part.
        phases: 1 leaves out the single completions, and measures all prompts on the same queries.
    """
    alone, together = dict[int, int](), dict[int, int]()  # prompts of compound arms are needed on the same queries
    for arm in outcome.policy.arms:
        largest, sizes = (together, needed(arm)) if arm.compound else (alone, {arm.prompt: _needed(problem, arm)})
        for prompt, n in sizes.items():
            largest[prompt] = max(largest.get(prompt, 0), n)
    total = sum(alone.values()) + sum(together.values())
    parts = {(prompt, n): _two_phases(budget * n // total, n, len(queries)) for prompt, n in alone.items()}
    if phases == 1:
        parts = {part: (min(len(queries), budget // total), 0) for part in parts}
    parts |= {part: (min(len(queries), budget // total), 0) for part in together.items()}
    order = np.random.default_rng([seed, len(queries)]).permutation(queries).tolist()
    asked: dict[tuple[int, int], int] = {}
    for (prompt, n), (whole, single) in parts.items():
        for at, query in enumerate(order[: whole + single]):
            asked[query, prompt] = max(n if at < whole else 1, asked.get((query, prompt), 0))
    query, prompt, size = np.array([(*at, asked[at]) for at in sorted(asked)], dtype=np.int64).reshape(-1, 3).T
    return Pulls(prompt, query, size)


def _needed(problem: Problem, arm: Arm) -> int:
    """Return how many completions of a query tell an arm's reward: N, or fewer where the aggregator needs fewer."""
    reach = problem.aggregator.reach if isinstance(problem.aggregator, ClosedForm) else None
    return arm.n if reach is None or arm.stop is not None else min(arm.n, reach)


def _two_phases(budget: int, n: int, n_queries: int) -> tuple[int, int]:
    """Return how many queries get n completions and how many more a single one: half of the budget for each."""
    if n == 1 or budget < n:
        return min(budget // n, n_queries), 0
    whole = budget // (2 * n) if budget >= 4 * n else budget // n
    if whole + budget - whole * n > n_queries:  # more than one completion of every query
        whole = max((budget - n_queries) // (n - 1), 1)
    whole = min(whole, n_queries)
    return whole, max(min(budget - whole * n, n_queries - whole), 0)


def measured(problem: Problem, outcome: Outcome, observations: Observations) -> Outcome:
    """Estimate the utility of every context's arm from the completions of `measuring_pulls` alone.

    Arms that stop early are replayed on random orders of a query's completions. Prices are those that the run learnt.

    Returns:
        The outcome with `Outcome.measured`, and with one more round; its estimates stay.
    """
    contexts = problem.contexts
    cells = Cells.of([observations], problem.n_prompts, contexts.n_objectives)
    rows, row, _ = distinct_rows(contexts.weights)
    value = cell_subsets(cells, problem.aggregator, rows, problem.max_n)
    prices = call_prices(problem, outcome)
    seen = (*outcome.observations, observations)
    found: list[HeldOut | None] = []
    for context, arm in enumerate(outcome.policy.arms):
        if arm.compound:
            found.append(_of_compound(problem, outcome, cells, context, seen))
            continue
        mine = cells.prompt == arm.prompt
        reward, single, size = value[row[context], mine, arm.n - 1], value[row[context], mine, 0], cells.size[mine]
        completions, waves = np.full(len(reward), float(arm.n)), np.ones(len(reward))
        if arm.stop is not None:
            gain, completions, waves = observed_calls(problem, cells, context, arm)
            reward = reward + gain
        paid = waves * prices.fixed[context, arm.prompt] + completions * prices.each[context, arm.prompt]
        least = _needed(problem, arm)
        whole = (size >= least) & ~np.isnan(reward)
        if not whole.any():
            found.append(None)
            continue
        bounds = Bounds.of(problem.aggregator, seen, contexts.weights[context])
        others = single[~whole & (size == 1)] if least > 1 else single[:0]
        slope = _slope(outcome, context, arm, len(reward[whole]), len(others), bounds)
        found.append(_estimate(reward[whole], paid[whole], single[whole], others, slope, bounds))
    pulls, active = observations.pulls, np.zeros(problem.shape, dtype=bool)
    active[
        np.arange(problem.n_contexts), [a.prompt for a in outcome.policy.arms], [a.n - 1 for a in outcome.policy.arms]
    ] = True
    last = Round(active=active, pulls=len(pulls), completions=pulls.completions)
    return replace(
        outcome,
        measured=tuple(found),
        measuring=observations,
        rounds=(*outcome.rounds, last),
        spent=outcome.spent + pulls.completions,
    )


def _of_compound(
    problem: Problem, outcome: Outcome, cells: Cells, context: int, seen: Sequence[Observations]
) -> HeldOut | None:
    """Estimate the utility of a compound arm from whole calls, with the run's prediction of each query beside them.

    The mean of what was predicted of all queries of the run, corrected by the mean error on those that were measured,
    is unbiased whatever the predictions are (a difference estimator, Cochran 1977, ch. 7): the calls had no part in
    them. Queries of a validation set have no predictions.
    """
    assert outcome.stops is not None
    arm, weights = outcome.policy[context], problem.contexts.weights[context]
    calls = drawn_sequences(cells, arm, problem.aggregator, weights)
    if not len(calls):
        return None
    played = play(arm, calls)
    prices = call_prices(problem, outcome)
    fixed, each = prices.fixed[context, calls.prompts], prices.each[context, calls.prompts]
    paid = played.waves @ fixed + played.completions @ each
    bounds = Bounds.of(problem.aggregator, seen, weights)
    predicted = outcome.stops[context].by_query
    visited = Cells.of(outcome.observations, problem.n_prompts, problem.contexts.n_objectives).visited
    query = cells.visited[calls.query]
    if predicted is None or query.max() >= problem.n_queries:
        return _estimate(played.reward, paid, np.zeros(len(calls)), np.empty(0), 0.0, bounds)
    known = np.isin(query, visited)  # of other queries, what is expected of all is expected
    mine = np.where(known, predicted[np.searchsorted(visited, query) * known], predicted.mean())
    return replace(_estimate(played.reward, paid, mine, predicted, 1.0, bounds), queries=len(calls))


def _estimate(
    reward: FloatArray, paid: FloatArray, single: FloatArray, others: FloatArray, slope: float, bounds: Bounds
) -> HeldOut:
    """Combine the two phases: whole calls [k] with their prices and single completions, and other singles [K]."""
    queries = len(reward) + len(others)
    rest, price = reward - paid - slope * single, float(paid.mean())
    mean = float(rest.mean()) + slope * (float(others.mean()) if len(others) else 0.0)
    mean = min(max(mean, bounds.low - price), bounds.high - price)
    typical = queries * bounds.variance(mean + price, queries)
    parts = [_variance(rest, typical * (_UNEXPLAINED if len(others) else 1.0))]
    if len(others):
        variance, freedom = _variance(others, typical)
        parts.append((slope**2 * variance, freedom))
    variance = sum(v for v, _ in parts)
    freedom = variance**2 / sum(v**2 / f for v, f in parts) if variance else 1.0  # Welch (1947), Satterthwaite (1946)
    low, high = bounds.interval(mean + price, variance, freedom, queries)
    error = math.sqrt(variance) if queries > 1 else math.nan
    return HeldOut(utility=mean, standard_error=error, interval=(low - price, high - price), queries=queries)


def _variance(values: FloatArray, prior: float) -> tuple[float, float]:
    """Return the moderated variance of the mean, and its degrees of freedom."""
    freedom = len(values) - 1
    own = float(values.var(ddof=1)) * freedom if freedom else 0.0
    return (own + _PRIOR_WEIGHT * prior) / (freedom + _PRIOR_WEIGHT) / len(values), freedom + _PRIOR_WEIGHT


def _slope(outcome: Outcome, context: int, arm: Arm, whole: int, single: int, bounds: Bounds) -> float:
    """Return the weight of single completions that makes the variance smallest, by what the run knows of its queries.

    Queries that do not differ leave single completions nothing but their noise, and then the weight is 0.
    """
    if not single:
        return 0.0
    if outcome.detail is None:
        spread, own, joint = 1.0, 0.5, 0.5  # as much between queries as within
    else:
        surface = outcome.detail.values[outcome.detail.row[context]]
        values = outcome.detail.factor[context] * surface.at(np.array([arm.prompt] * 2), np.array([1, arm.n]))
        one = values[0] - values[0].mean()
        own, joint = float((one**2).mean()), float((one * values[1]).mean())
        spread = max(bounds.variance(float(values[0].mean()), 1), own)
    noise = (own + (spread - own) / arm.n) / whole + spread / single
    return max(joint / whole / noise, 0.0) if noise > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The range of a context's rewards, and how they fill it.

    Attributes:
        low: Lower bound.
        high: Upper bound.
        spread: Variance of single completions within prompts, as a share of the variance of yes-or-no rewards with the
            same means, in [0, 1]; 1 for yes-or-no rewards.
    """

    low: float
    high: float
    spread: float = 1.0

    @classmethod
    def of(cls, aggregator: Aggregator, observations: Sequence[Observations], weights: FloatArray) -> Bounds:
        """Return the bounds of rewards: 0 and 1 for single completions between, else the smallest and largest seen.

        Args:
            aggregator: Gives the rewards.
            observations: All that was seen.
            weights: Of the context [K].
        """
        label = np.concatenate([o.label for o in observations])[:, None]
        score = np.concatenate([o.score for o in observations])[:, None]
        total = aggregator.reward(label, score, weights[None])[0] if len(label) else np.zeros(1)
        least, most = float(total.min()), float(total.max())
        if least >= 0.0 and most <= 1.0:
            least, most = 0.0, 1.0
        largest = float((total.mean() - least) * (most - total.mean()))
        return cls(low=least, high=most, spread=min(float(total.var()) / largest, 1.0) if largest > 0 else 1.0)

    def variances(self, mean: FloatArray, queries: IntArray) -> FloatArray:
        """Return typical variances of mean rewards over so many queries, of one shape; > 0 also at the bounds."""
        width, count = self.high - self.low, np.maximum(queries, 1)
        share = np.clip((mean - self.low) / width, 0.0, 1.0) if width > 0 else np.zeros_like(mean)
        share = (share * count + 0.5) / (count + 1.0)
        return np.asarray(self.spread * width**2 * share * (1.0 - share) / count)

    def variance(self, mean: float, queries: int) -> float:
        """Return the typical variance of one mean reward, likewise."""
        return float(self.variances(np.array(mean), np.array(queries)))

    def interval(self, mean: float, variance: float, freedom: float, queries: int) -> tuple[float, float]:
        """Return the 95 % interval of a mean reward; NaN with fewer than two queries.

        Args:
            mean: The mean.
            variance: Variance of the mean.
            freedom: Its degrees of freedom, > 0.
            queries: How many queries it rests on.
        """
        width, typical = self.high - self.low, self.variance(mean, queries)
        if queries < 2:
            return math.nan, math.nan
        if width <= 0 or typical <= 0:
            return mean, mean
        # At a bound, where the mean may only be by chance, rewards vary as they do a standard error away from it.
        share, error = min(max((mean - self.low) / width, 0.0), 1.0), math.sqrt(max(variance, typical)) / width
        inner = min(max(share, min(error, 0.5)), 1.0 - min(error, 0.5))
        effective = min(inner * (1.0 - inner) / error**2, queries / self.spread)
        t = quantile(min(freedom, queries - 1.0))
        shrunk = 1.0 + t**2 / effective
        centre = (share + t**2 / (2.0 * effective)) / shrunk
        half = t * math.sqrt(share * (1.0 - share) / effective + (t / (2.0 * effective)) ** 2) / shrunk
        low, high = self.low + width * max(centre - half, 0.0), self.low + width * min(centre + half, 1.0)
        return min(low, mean), max(high, mean)  # rounding

    def estimated(self, utility: float, price: float, error: float, queries: int) -> HeldOut:
        """Return the utility of an arm by the estimates that arms are chosen by, kept within the bounds.

        Args:
            utility: The estimate.
            price: What is subtracted from the reward.
            error: Standard error of the estimate.
            queries: How many queries the arm's prompt was drawn on.
        """
        value = min(max(utility, self.low - price), self.high - price)
        low, high = self.interval(value + price, error**2, queries - 1.0, queries)
        return HeldOut(
            utility=value,
            standard_error=error if queries > 1 else math.nan,
            interval=(low - price, high - price),
            queries=queries,
        )


def quantile(freedom: float) -> float:
    """Return the .975 quantile of Student's t, to 1 %; `freedom` >= 1."""
    return float(np.interp(1.0 / max(freedom, 1.0), np.append(0.0, 1.0 / _T_AT[::-1]), np.append(1.96, _T[::-1])))
