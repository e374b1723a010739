"""Arms that keep a promised share of right answers, and abstain where they are not sure enough.

A preference with `min_confidence` wants at least this share of the answers to be right. Its arm answers where its
confidence reaches a level, goes on with a stronger stage where it may, and abstains at last. The level is chosen by
fixed sequence testing (Angelopoulos et al., Learn then Test, arXiv 2110.01052): levels are tested one after the other,
the most careful one first that could pass, and the last one before the first failure is taken. A level passes where a
lower bound of the share of right answers reaches the promise. The bound rests on calls that were really drawn: those of
at least half as many completions for which the model reaches the level. How much the model was too sure of them is
taken off what it says of the arm, and what it says counts like `MODEL` more calls. So a large N needs many completions
of a query before it can promise anything. Of all arms that pass, the one with the largest utility is taken, where an
abstention is worth as much as a call without a vote; so each bound is that of the best of several (Bonferroni).

Where no arm passes, a promise is kept by calls without an answer only: they withhold that of the arm with the largest
lower bound. `Promise.kept` tells.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.compound.chosen import as_called
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import Sequences
from iapo_dspy.bandit.confidence.learning import (
    MARGIN,
    RealCalls,
    curve,
    further_sequences,
    picks_best,
    real_calls,
    rightness,
)
from iapo_dspy.bandit.costs.worst_path import keeps_caps
from iapo_dspy.bandit.measurement import Bounds
from iapo_dspy.bandit.outcome import Outcome, Promise, StoppedArm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import as_drawn, call_prices
from iapo_dspy.types import NEVER_SURE, Arm, Escalation, FloatArray, Policy

MODEL = 10.0  # calls that the model counts for
FAILS = 0.05  # share of runs in which a bound may be too high, whichever arm is taken
_APART = 20  # arms beyond which further ones say much the same as others
LEVELS = (0.995, 0.99, 0.985, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.2)
_LEAST = 0.1  # share of calls that a level must let answer, to be tested at all
_PROMPTS = 3  # by reward, and as many by reward at a price of completions
_FIRST = 1, 2, 4, 8  # N of first stages
_LAST = 1, 2, 4, 8, 16, 32, 64  # N of last stages


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stage:
    """One stage on all rows [S]: its reward, whether its answer is right, how sure it is, and its price."""

    prompt: int
    n: int
    reward: FloatArray
    right: FloatArray
    sureness: FloatArray
    price: float

    def level(self, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the knots of its curve on some rows: how sure, and the probability there."""
        found = curve(self.sureness[rows], self.right[rows])
        return np.array(found.sureness), np.array(found.confidence)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """An arm, the lower bound of its share of right answers, and its utility.

    It is testable where the bound would do if real calls were as often right as the model says.
    """

    arm: Arm
    bound: float
    utility: float
    passes: bool
    testable: bool


def with_promises(
    problem: Problem,
    outcome: Outcome,
    *,
    left_out: Collection[int] = (),
    compound: bool = True,
) -> Outcome:
    """Give every context that promises a share of right answers an arm that keeps it.

    Nothing is drawn, and the same observations give the same arms. Runs without a model of their completions, and
    strategies that cannot tell how sure an answer is, keep their arms: they cannot promise anything.

    Args:
        problem: The problem of the run.
        outcome: The run, with all that comes before: stops, and compound arms.
        left_out: Prompts that no stage asks.
        compound: Whether calls may go on with a second stage.
    """
    promising = np.flatnonzero(problem.contexts.confidence > 0).tolist()
    if not promising:
        return outcome
    arms = list(outcome.policy.arms)
    calls = list(outcome.stops or (as_drawn(outcome, c, arm) for c, arm in enumerate(arms)))
    promises: list[Promise | None] = [None] * len(arms)
    for context in promising:
        calls[context], promises[context] = promised(problem, outcome, context, left_out=left_out, compound=compound)
        arms[context] = calls[context].arm
    considered = tuple(() if c in promising else offers for c, offers in enumerate(outcome.considered))
    return replace(
        outcome, policy=Policy(tuple(arms)), stops=tuple(calls), promises=tuple(promises), considered=considered
    )


def promised(
    problem: Problem,
    outcome: Outcome,
    context: int,
    *,
    left_out: Collection[int] = (),
    compound: bool = True,
) -> tuple[StoppedArm, Promise]:
    """Return the arm of a context that promises a share of right answers, with its expected calls.

    Args:
        problem: The problem of the run.
        outcome: The run.
        context: Which context; its `Contexts.confidence` is the promise.
        left_out: Prompts that no stage asks.
        compound: Whether calls may go on with a second stage.
    """
    promise, own = float(problem.contexts.confidence[context]), outcome.policy[context]
    call = outcome.stops[context] if outcome.stops is not None else as_drawn(outcome, context, own)
    prompts = _prompts(outcome, context, own, left_out)
    found = list(_Search(problem, outcome, context, promise, prompts, own).candidates(compound)) if prompts else []
    allowed = [c for c in found if _keeps_caps(outcome, context, c.arm)]
    if not allowed:
        return call, Promise(share=promise, bound=math.nan)
    kept = [c for c in allowed if c.passes]
    best = max(kept, key=lambda c: c.utility) if kept else max(allowed, key=lambda c: c.bound)
    sure = Promise(share=promise, bound=best.bound)
    if not kept:
        surest = best.arm.stages[-1]
        never = Arm(surest.prompt, surest.n, then=Escalation(below=NEVER_SURE))
        return as_called(problem, outcome, context, never), sure
    if not best.arm.compound and not own.compound and (best.arm.prompt, best.arm.n) == (own.prompt, own.n):
        return call, sure  # it answers in any case, and may stop early
    return as_called(problem, outcome, context, best.arm), sure


def _prompts(outcome: Outcome, context: int, own: Arm, left_out: Collection[int]) -> list[int]:
    """Return the prompts that stages may ask: the best ones by reward, and at a price of completions."""
    reward, cost = outcome.reward[context], outcome.estimates.cost
    known = np.isfinite(reward) & np.isfinite(cost)
    known[list(left_out)] = False
    if outcome.detail is None or not known.any():
        return []
    each = float(np.nanmedian(cost[:, 0][known[:, 0]])) if known[:, 0].any() else 0.0
    spread = float(np.ptp(reward[known]))
    ranked = dict.fromkeys(p for p in own.prompts if known[p].any())
    for rate in (0.0, 0.1 * spread / each if each > 0 else 0.0):
        best = np.where(known, reward - rate * cost, -np.inf).max(axis=1)
        ranked |= dict.fromkeys(p for p in np.argsort(-best, kind="stable")[:_PROMPTS].tolist() if np.isfinite(best[p]))
    return sorted(ranked)


def _keeps_caps(outcome: Outcome, context: int, arm: Arm) -> bool:
    return outcome.charges is None or keeps_caps(outcome.charges, context, arm)


class _Search:
    """Tests the levels of the arms of one context."""

    def __init__(
        self, problem: Problem, outcome: Outcome, context: int, promise: float, prompts: list[int], own: Arm
    ) -> None:
        self._problem, self._outcome, self._context = problem, outcome, context
        self._promise = promise
        self._own = own
        self._margin: float | None = None
        if picks_best(problem):
            bounds = Bounds.of(problem.aggregator, outcome.observations, problem.contexts.weights[context])
            self._margin = MARGIN * (bounds.high - bounds.low)
        self._prices = call_prices(problem, outcome)
        self._known: dict[int, RealCalls] = {}
        self._z = _standard_errors(FAILS)
        self._prompts = prompts
        # All prompts at once: rows of one query share what makes it hard.
        self._sequences = _sequences(problem, outcome, context, prompts)

    def candidates(self, compound: bool) -> Iterator[_Candidate]:
        """Yield the arms that pass, or come nearest to it: one for each prompt and N, and pair of them."""
        if self._sequences is None:
            return
        scales = [n for n in _LAST if n <= self._problem.max_n]
        lasts = [self._stage(p, n) for p in self._prompts for n in scales]
        strong = {
            max((s for s in lasts if s.prompt == p), key=lambda s: float(s.right.mean())).n for p in self._prompts
        }
        arms = [[last] for last in lasts]
        arms += [
            [first, last]
            for first in lasts
            for last in lasts
            if compound
            and first.prompt != last.prompt
            and first.n in _FIRST
            and last.n in strong
            and first.price <= last.price
        ]
        self._z = _standard_errors(FAILS / min(len(arms), _APART))  # the best of several (Bonferroni)
        for stages in arms:
            yield from self._tested(stages)

    def _stage(self, prompt: int, n: int) -> _Stage:
        assert self._sequences is not None
        arm = Arm(prompt, n)
        played = play(arm, self._sequences)
        fixed, each = self._prices.fixed[self._context, prompt], self._prices.each[self._context, prompt]
        return _Stage(
            prompt=prompt,
            n=n,
            reward=played.reward,
            right=rightness(arm, played, self._sequences, self._margin),
            sureness=played.sureness,
            price=float(fixed + n * each),
        )

    def _tested(self, stages: list[_Stage]) -> Iterator[_Candidate]:
        """Test the levels of one arm, the most careful one first; yield the last that passes, and the surest one."""
        passing: _Candidate | None = None
        surest: _Candidate | None = None
        for level in (*LEVELS, 0.0):
            tested = self._at(stages, level)
            if tested is None:
                continue
            if surest is None or tested.bound > surest.bound:
                surest = tested
            if tested.passes:
                passing = tested
            elif tested.testable or passing is not None:
                break
        found = passing or surest
        if found is not None:
            yield found

    def _at(self, stages: list[_Stage], level: float) -> _Candidate | None:
        """Return an arm whose stages answer where their confidence reaches a level; None where hardly any would."""
        size = len(stages[0].right)
        going, below, bound = np.ones(size, dtype=bool), list[float](), np.zeros(2)
        answers, p, reward, price = np.zeros(size, dtype=bool), np.zeros(size), np.full(size, self._nothing()), 0.0
        for stage in stages:
            if not going.any():
                return None
            x, y = stage.level(going)
            reaches = y >= level
            least = float(x[reaches][0]) if reaches.any() else np.inf
            if reaches.any() and not reaches[0]:  # between the two knots, where the line reaches the level
                i = int(np.argmax(reaches))
                rise = y[i] - y[i - 1]
                least = float(x[i] - (y[i] - level) / rise * (x[i] - x[i - 1])) if rise > 0 else least
            mine = going & (stage.sureness >= least - 1e-9)
            answers |= mine
            p[mine] = np.interp(stage.sureness[mine], x, y)
            reward[mine] = stage.reward[mine]
            if mine.any():
                bound += float(mine.mean()) * self._bounds(stage, p[mine], level)
            price += float(going.mean()) * stage.price
            going = going & ~mine
            if not np.isfinite(least):
                least = float(x[-1]) + 1e-6
            below.append(round(least, 6))
        share = float(answers.mean())
        if share < _LEAST:
            return None
        bound /= share
        utility = float(reward.mean()) - price
        passes = bound >= self._promise
        return _Candidate(
            arm=_arm(stages, below, always=level <= 0.0),
            bound=float(bound[0]),
            utility=utility,
            passes=bool(passes[0]),
            testable=bool(passes[1]),
        )

    def _nothing(self) -> float:
        """Return the reward of a call without an answer."""
        assert self._sequences is not None
        shape = 1, 1, self._sequences.score.shape[3]
        weights = self._sequences.weights[None]
        found = self._sequences.aggregator.reward(np.full((1, 1), -1), np.full(shape, np.nan), weights)
        return float(found[0, 0])

    def _bounds(self, stage: _Stage, p: FloatArray, level: float) -> FloatArray:
        """Return Wilson's (1927) lower bound of the share of right answers, of calls of a stage [2].

        Args:
            stage: The stage.
            p: Their probabilities by the model [S'].
            level: The least of these.

        Returns:
            By the real calls, and as if these were as often right as the model says.
        """
        assert self._sequences is not None
        calls = self._calls(stage.prompt)
        mine = (2 * calls.size >= stage.n) & (calls.expected >= level)
        count = float(mine.sum()) + MODEL
        off = np.array([float((calls.right - calls.expected)[mine].sum()) / count, 0.0])
        count = min(count, self._sequences.n_queries * len(p) / len(self._sequences))
        mean, z = np.clip(float(p.mean()) + off, 0.0, 1.0), self._z**2 / count
        half = self._z * np.sqrt(mean * (1.0 - mean) / count + z / (4.0 * count))
        return np.asarray((mean + z / 2 - half) / (1.0 + z))

    def _calls(self, prompt: int) -> RealCalls:
        assert self._sequences is not None
        if prompt not in self._known:
            arm = Arm(prompt, max(n for n in _LAST if n <= self._problem.max_n))
            self._known[prompt] = real_calls(self._problem, self._outcome, self._context, arm, self._sequences)
        return self._known[prompt]


def _standard_errors(tail: float) -> float:
    """Return how many standard errors a normal variable exceeds with this probability, in (0, 0.5)."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2.0)) / 2.0 > tail else (low, middle)
    return low


def _arm(stages: list[_Stage], below: list[float], *, always: bool) -> Arm:
    """Return the arm of these stages, which abstains after the last one, or answers always."""
    arm: Arm | None = None
    for stage, least in zip(reversed(stages), reversed(below), strict=True):
        then = None if always and arm is None else Escalation(below=least, arm=arm)
        arm = Arm(stage.prompt, stage.n, then=then)
    assert arm is not None
    return arm


def _sequences(problem: Problem, outcome: Outcome, context: int, prompts: list[int]) -> Sequences | None:
    """Return rows with as many completions of each prompt as the largest stage draws."""
    most = max(n for n in _LAST if n <= problem.max_n)
    first, *others = prompts
    then = None
    for prompt in reversed(others):
        then = Escalation(below=0.0, arm=Arm(prompt, most, then=then))
    return further_sequences(problem, outcome, context, Arm(first, most, then=then))
