"""The third part of an arm: when a deployed call stops, chosen per context like the prompt and N.

A policy (prompt, N, stop) is worth

    reward(p, N) + gain(p, N, stop) - fixed_price(p) E[waves] - each_price(p) E[completions],

with the gain, the waves and the completions of `stopping.estimates`. A rule that pays a prompt's tokens again with
every wave may cost more than it saves; then all N are drawn at once. Everything here is a function of the observations:
nothing is drawn, and the same observations give the same stops.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from iapo_dspy.bandit.aggregators.port import Stoppable
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.outcome import Outcome, StoppedArm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stopping.estimates import StopEstimates
from iapo_dspy.bandit.ties import cheapest_of_best
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, FloatArray, IntArray, Policy, Stop

StopMode = Literal["exact", "confidence"]
"""How far stopping goes: "exact" keeps prompt and N and ends votes that are settled; "confidence" chooses prompt, N and
a tuned rule together."""

THRIFT = 0.002
"""Completions are never quite free: a call of `max_n` of them weighs at least this share of the rewards' range when
arms are compared, whatever the cost weight. So a preference that pays nothing for completions gives up at most so much
reward for all that stopping early saves, and in practice a fraction of it."""

WAVE = 2.0  # completions that a wave weighs in the same way: waiting is never quite free either

_SURE = 30  # completions that must all have reached a threshold before it is said that they always do

CANDIDATES = 4  # prompts per context that rules are tuned for: the best by utility, and half as many by reward


@dataclass(frozen=True, kw_only=True)
class CallPrices:
    """Prices of a call in utility, by its waves and its completions.

    Attributes:
        fixed: Price of a wave [C, P], >= 0, whatever its size; NaN without evidence.
        each: Price of a completion beside it [C, P], >= 0; NaN without evidence.
        most_waves: Waves that the arm may take at most [C, P, N]; 0 where it is not allowed at all.
        raw_fixed: Raw cost of a wave [P]; NaN without evidence.
        raw_each: Raw cost of a completion beside it [P]; NaN without evidence.
    """

    fixed: FloatArray
    each: FloatArray
    most_waves: IntArray
    raw_fixed: FloatArray
    raw_each: FloatArray


def call_prices(problem: Problem, outcome: Outcome) -> CallPrices:
    """Return the prices and caps that a run learnt: by its charges, or without them by the affine costs of its arms."""
    cost = outcome.estimates.cost
    single = cost[:, 0]
    each = cost[:, 1] - single if problem.max_n > 1 else single
    fixed = np.where(np.abs(single - each) < 1e-9 * np.abs(single), 0.0, np.maximum(single - each, 0.0))
    if outcome.charges is not None:
        per_wave, per_completion = outcome.charges.prices(outcome.cost_scale)
        most_waves = outcome.charges.most_waves()
    else:
        rate = problem.contexts.cost[:, None] * outcome.cost_scale
        per_wave, per_completion = rate * fixed, rate * each
        most_waves = np.full(problem.shape, np.iinfo(np.int64).max)
    return CallPrices(
        fixed=per_wave,
        each=per_completion,
        most_waves=most_waves,
        raw_fixed=fixed,
        raw_each=each,
    )


def with_stops(
    problem: Problem,
    outcome: Outcome,
    *,
    mode: StopMode = "confidence",
    prices: CallPrices | None = None,
    apart: bool = False,
) -> Outcome:
    """Choose for every context when its calls stop.

    Rules are tuned where the run has a model (`auto`). Other runs (`psst`) keep their prompt and N, and their votes get
    waves that end when they are settled. Best-of-N in "exact" mode and other aggregators draw all N at once.

    Args:
        problem: The problem of the run.
        outcome: The run.
        mode: See `StopMode`.
        prices: Prices of calls, and how many waves they may take; by default as the run learnt them.
        apart: Whether each context gets the arm that it would get alone. Otherwise contexts of the same weights share
            the prompts that rules are tuned for.

    Returns:
        The outcome with the stops in its policy and `Outcome.stops`. `q` stays that of arms that draw all N.

    Raises:
        ConfigurationError: Another mode.
    """
    if mode not in ("exact", "confidence"):
        raise ConfigurationError(f'mode is {mode!r}; give "exact" or "confidence".')
    prices = prices or call_prices(problem, outcome)
    chooser = _Chooser(problem, outcome, prices, mode, apart)
    found = tuple(map(chooser.as_drawn, range(problem.n_contexts), chooser.choose()))
    return replace(outcome, policy=Policy(tuple(s.arm for s in found)), stops=found)


def as_drawn(outcome: Outcome, context: int, arm: Arm) -> StoppedArm:
    """Return an arm with its expected calls where these draw all N completions at once."""
    at = arm.prompt, arm.n - 1
    return StoppedArm(
        arm=arm,
        reward=float(outcome.reward[context][at]),
        gain=0.0,
        completions=float(arm.n),
        waves=1.0,
        cost=float(outcome.estimates.cost[at]),
        utility=float(outcome.q[context][at]),
    )


class _Chooser:
    """Chooses the stops of one run."""

    def __init__(
        self, problem: Problem, outcome: Outcome, prices: CallPrices, mode: StopMode, apart: bool = False
    ) -> None:
        self._problem = problem
        self._outcome = outcome
        self._prices = prices
        self._exact = mode == "exact"
        self._apart = apart
        self._known_rules: dict[tuple[int, tuple[int, ...]], StopEstimates | None] = {}
        self._evidence = outcome.detail if outcome.detail is not None and outcome.detail.model is not None else None

    def choose(self) -> Iterator[StoppedArm]:
        """Yield the arm of every context."""
        if self._evidence is None:
            yield from (self._settling(c, self._plain_arm(c)) for c in range(self._problem.n_contexts))
            return
        evidence, rows = self._evidence, range(len(self._evidence.values))
        shared = None if self._apart else [self._rules(evidence, r, np.flatnonzero(evidence.row == r)) for r in rows]
        for context, row in enumerate(evidence.row.tolist()):
            rules = shared[row] if shared is not None else self._rules(evidence, row, np.array([context]))
            if self._exact:
                yield self._settling(context, self._plain_arm(context), rules)
            else:
                yield self._tuned(context, evidence, rules)

    def as_drawn(self, context: int, found: StoppedArm) -> StoppedArm:
        """Return an arm whose calls always end after their first completion as the arm of one completion, which it is.

        A vote of two is settled by its first vote, and a threshold that every completion of the prompt has reached ends
        every call. A vote of two whose prompt fails now and then is another matter: it asks again where one failed.
        """
        arm, stop = found.arm, found.arm.stop
        if stop is None or stop.waves[0] > 1:
            return found
        mine = self._cells.only(self._cells.prompt == arm.prompt)
        if stop.threshold is not None:
            value = np.where(mine.failed, -np.inf, mine.score @ self._problem.contexts.weights[context])
            always = len(value) >= _SURE and bool((value >= stop.threshold).all())
        else:
            always = arm.n == 2 and stop.confidence is None and not (mine.failed | (mine.label < 0)).any()
        return self._described(context, Arm(arm.prompt, 1)) if always else found

    @cached_property
    def _largest_errors(self) -> FloatArray:
        """Largest standard error of an arm in each context [C]."""
        assert self._evidence is not None
        return np.asarray(self._evidence.standard_error().max(axis=(1, 2)))

    @cached_property
    def _cells(self) -> Cells:
        return Cells.of(self._outcome.observations, self._problem.n_prompts, self._problem.contexts.n_objectives)

    def _rules(self, evidence: Evidence, row: int, contexts: IntArray) -> StopEstimates | None:
        """Estimate the rules of one row of weights for the prompts that these contexts may choose, once."""
        assert evidence.model is not None
        outcome, chosen = self._outcome, set[int]()
        for c in contexts.tolist():
            chosen.add(outcome.policy[c].prompt)
            if not self._exact:
                chosen |= _candidates(outcome.q[c], CANDIDATES) | _candidates(outcome.reward[c], CANDIDATES // 2)
        key = row, tuple(sorted(chosen))
        if key not in self._known_rules:
            prompts = np.array(key[1], dtype=np.int64)
            self._known_rules[key] = evidence.model.stops(row, prompts, self._problem.max_n, exact=self._exact)
        return self._known_rules[key]

    def _plain_arm(self, context: int) -> Arm:
        """Return the arm of the policy, without a stop."""
        return replace(self._outcome.policy[context], stop=None)

    def _described(
        self, context: int, arm: Arm, gain: float = 0.0, completions: float | None = None, waves: float = 1.0
    ) -> StoppedArm:
        """Describe an arm by its expected calls; by default all N are drawn at once."""
        completions = float(arm.n) if completions is None else completions
        prices, at = self._prices, (context, arm.prompt)
        reward = float(self._outcome.reward[context, arm.prompt, arm.n - 1]) + gain
        return StoppedArm(
            arm=arm,
            reward=reward,
            gain=gain,
            completions=completions,
            waves=waves,
            cost=float(waves * prices.raw_fixed[arm.prompt] + completions * prices.raw_each[arm.prompt]),
            utility=float(reward - waves * prices.fixed[at] - completions * prices.each[at]),
        )

    def _settling(self, context: int, arm: Arm, rules: StopEstimates | None = None) -> StoppedArm:
        """Give an arm waves that end where its result is settled, where they are allowed and cost no more."""
        aggregator, plain = self._problem.aggregator, self._described(context, arm)
        stop = aggregator.settling(arm.n) if isinstance(aggregator, Stoppable) else None
        if stop is None or len(stop.waves) > self._prices.most_waves[context, arm.prompt, arm.n - 1]:
            return plain
        arm = replace(arm, stop=stop)
        calls = self._observed(context, arm) if self._evidence is None else _estimated(arm, stop, rules)
        stopped = plain if calls is None else self._described(context, arm, 0.0, *calls)
        return stopped if stopped.utility >= plain.utility and stopped.cost <= plain.cost else plain

    def _observed(self, context: int, arm: Arm) -> tuple[float, float] | None:
        """Return completions and waves of a call by observation alone; None where no cell has N completions."""
        calls = observed_calls(self._problem, self._cells, context, arm)
        known = ~np.isnan(calls[0])
        if not known.any():
            return None
        _, completions, waves = calls[:, known].mean(axis=1).tolist()
        return completions, waves

    def _tuned(self, context: int, evidence: Evidence, rules: StopEstimates | None) -> StoppedArm:
        """Choose prompt, N and rule together; arms that are as good up to a near-tie give way to the cheapest."""
        outcome, problem = self._outcome, self._problem
        reward, allowed = outcome.reward[context], self._prices.most_waves[context]
        if not np.isfinite(outcome.q[context]).any():
            return self._described(context, self._plain_arm(context))
        fixed, each = thrifty_prices(outcome, self._prices, context)
        prompts, scales = (a.reshape(-1) for a in np.indices((problem.n_prompts, problem.max_n)))
        scales = scales + 1
        option = np.full(len(prompts), -1)
        gain, waves, completions = np.zeros(len(prompts)), np.ones(len(prompts)), scales.astype(float)
        most = np.ones(len(prompts), dtype=np.int64)
        stops: tuple[Stop, ...] = rules.stops if rules is not None else ()
        if rules is not None and stops:
            many = len(rules.prompts)
            prompts = np.append(prompts, np.repeat(rules.prompts, len(stops)))
            scales = np.append(scales, np.tile([s.waves[-1] for s in stops], many))
            most = np.append(most, np.tile([len(s.waves) for s in stops], many))
            option = np.append(option, np.tile(np.arange(len(stops)), many))
            gain = np.append(gain, evidence.factor[context] * rules.gain.reshape(-1))
            completions = np.append(completions, rules.completions.reshape(-1))
            waves = np.append(waves, rules.waves.reshape(-1))
        price = waves * fixed[prompts] + completions * each[prompts]
        known = ~np.isnan(outcome.q[context])[prompts, scales - 1] & (most <= allowed[prompts, scales - 1])
        values = np.where(known, reward[prompts, scales - 1] + gain - price, -np.inf)
        if not np.isfinite(values).any():  # no arm may take even one wave
            return self._described(context, self._plain_arm(context))
        largest = float(self._largest_errors[context])
        best = cheapest_of_best(values, price, prompts, scales, evidence, context, largest)
        arm = Arm(int(prompts[best]), int(scales[best]), stops[option[best]] if option[best] >= 0 else None)
        if arm.stop is None:
            return self._settling(context, arm, rules)
        return self._described(context, arm, float(gain[best]), float(completions[best]), float(waves[best]))


def thrifty_prices(outcome: Outcome, prices: CallPrices, context: int) -> tuple[FloatArray, FloatArray]:
    """Return the prices of a wave and of a completion [P] by which arms are compared: at least `THRIFT`'s.

    Args:
        outcome: The run, of an algorithm whose estimates have standard errors.
        prices: As the run learnt them.
        context: Of which context.
    """
    evidence, reward = outcome.detail, outcome.reward[context]
    assert evidence is not None
    spread = evidence.factor[context] * float(evidence.spread[evidence.row[context]])
    call = np.nanmean(np.where(np.isnan(reward[:, -1]), np.nan, outcome.estimates.cost[:, -1]))
    rate = THRIFT * spread / call if call > 0 else 0.0
    fixed = np.maximum(prices.fixed[context], rate * (prices.raw_fixed + WAVE * prices.raw_each))
    each = np.maximum(prices.each[context], rate * prices.raw_each)
    return fixed, each


def _estimated(arm: Arm, stop: Stop, rules: StopEstimates | None) -> tuple[float, float] | None:
    """Return completions and waves of a call by the model; None where it does not know the rule."""
    if rules is None or stop not in rules.stops or arm.prompt not in rules.prompts:
        return None
    at = int(np.searchsorted(rules.prompts, arm.prompt)), rules.stops.index(stop)
    return float(rules.completions[at]), float(rules.waves[at])


def _candidates(values: FloatArray, count: int) -> set[int]:
    """Return the prompts with the best arms by these values [P, N]."""
    reach = np.where(np.isnan(values), -np.inf, values).max(axis=1)
    order = np.argsort(-reach, kind="stable")[:count]
    return {int(p) for p in order if np.isfinite(reach[p])}


def observed_calls(problem: Problem, cells: Cells, context: int, arm: Arm) -> FloatArray:
    """Replay the calls of an arm that stops on random orders of each query's own completions, without a model.

    Args:
        problem: Gives the aggregator and the contexts.
        cells: Completions.
        context: Whose weights count.
        arm: An arm with a stop.

    Returns:
        Gain over all N completions, completions and waves of each cell of the prompt [3, G], in the order of the cells;
        NaN where a cell has fewer than N completions.

    Raises:
        ConfigurationError: The arm has no stop, or there are no stopping rules for the aggregator.
    """
    aggregator = problem.aggregator
    if arm.stop is None or not isinstance(aggregator, Stoppable):
        raise ConfigurationError(
            f"{arm} under {type(aggregator).__name__} has no stopping rule that could be replayed."
        )
    mine = cells.only(cells.prompt == arm.prompt)
    return aggregator.observed(mine, problem.contexts.weights[context], (arm.stop,))[:, :, 0]
