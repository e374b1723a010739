"""Learns how confident calls may be, from the draws of a run.

The chosen arm is played on sequences of completions as the run knows them (`compound.known`): each row tells how sure a
call was and whether its answer was right. A curve that never falls is fitted to the rows, stage by stage (pool adjacent
violators). The model behind the sequences may be too sure, and the arm was chosen because it looked good. So the log
odds are corrected, in level and slope, by calls that were drawn after the choice, to measure the arm: each of them is
compared with the curve of calls that draw as many completions.

"Right" means the expected score of the answer, in units of the largest one. With Best-of-N it means that the best score
is within a margin of the best one of `FURTHER` times as many completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.aggregators.port import Stoppable, Sure
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.compound.known import known_sequences
from iapo_dspy.bandit.compound.played import Played, play
from iapo_dspy.bandit.compound.sequences import Part, Sequences, needed
from iapo_dspy.bandit.confidence.confidence_map import ConfidenceMap, Curve, Logprobs
from iapo_dspy.bandit.confidence.correction import Correction, by_logprobs, corrected, log_odds, logistic
from iapo_dspy.bandit.measurement import Bounds
from iapo_dspy.bandit.outcome import Outcome, Reliability
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import Arm, FloatArray, Observations

MARGIN = 0.05  # of the range of the rewards, within which a best score counts as the best that there is
FURTHER = 4  # completions that "more draws" have, for each one of a call
BINS = 10
_KNOTS = 40
_DIGITS = 6
_FOLDS = 5
_LEAST_CALLS = 10  # below which nothing is said of reliability
_ROWS, _COPIES = 6144, (4, 32)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The confidence of one arm's calls.

    Attributes:
        map: By how sure a call is.
        reliability: How well it agreed with calls that were really drawn; None where too few were.
    """

    map: ConfidenceMap
    reliability: Reliability | None


@dataclass(frozen=True, kw_only=True, eq=False)
class RealCalls:
    """Calls that were really drawn, R of them.

    Attributes:
        expected: The probability that each is right by the curve of calls of its size [R].
        right: Whether it was right, or by how much, in [0, 1] [R].
        size: Its completions [R].
        query: Its query [R].
        logprob: Mean logprob of a token, over the completions that gave the answer [R]; NaN where not known.
        after: Whether they were drawn after the choice [R].
    """

    expected: FloatArray
    right: FloatArray
    size: FloatArray
    query: FloatArray
    logprob: FloatArray
    after: FloatArray

    def of(self, kept: NDArray[np.bool_]) -> RealCalls:
        """Return some of them."""
        return RealCalls(**{name: values[kept] for name, values in vars(self).items()})

    @classmethod
    def joined(cls, parts: Sequence[RealCalls]) -> RealCalls:
        """Return all calls of several parts."""
        none = np.empty(0)
        names = [f.name for f in fields(cls)]
        return cls(**{n: np.concatenate([none, *(getattr(part, n) for part in parts)]) for n in names})


def calibrated(problem: Problem, outcome: Outcome) -> tuple[Calibrated | None, ...]:
    """Learn the confidence of every context's calls [C], without drawing anything.

    None where the run has no model of its completions, or the aggregator cannot tell how sure an answer is.

    Args:
        problem: The problem of the run.
        outcome: The run, with its policy; with what was drawn to measure it, if anything was.
    """
    found: list[Calibrated | None] = []
    for context, arm in enumerate(outcome.policy.arms):
        sequences = further_sequences(problem, outcome, context, arm)
        found.append(None if sequences is None else _Learner(problem, outcome, context, arm, sequences).learnt())
    return tuple(found)


def further_sequences(problem: Problem, outcome: Outcome, context: int, arm: Arm) -> Sequences | None:
    """Return sequences with the completions of an arm's calls, and with more draws where these tell what is right."""
    if outcome.detail is None or not isinstance(problem.aggregator, Sure):
        return None
    copies = int(np.clip(_ROWS // outcome.detail.n_visited, *_COPIES))
    columns = max(needed(arm).values()) * (FURTHER if picks_best(problem) else 1)
    return known_sequences(problem, outcome, context, np.array(sorted(arm.prompts)), columns, copies=copies)


def picks_best(problem: Problem) -> bool:
    """Whether the best completion is the answer, and not the one with the most votes."""
    aggregator = problem.aggregator
    return isinstance(aggregator, Stoppable) and aggregator.settling(2) is None


def rightness(arm: Arm, played: Played, sequences: Sequences, margin: float | None) -> FloatArray:
    """Return whether the answer of each row is right, or by how much, in [0, 1] [S].

    Args:
        arm: The arm.
        played: Its calls.
        sequences: On which they were played, with `FURTHER` times their completions where there is a margin.
        margin: Of Best-of-N; None with votes.
    """
    if margin is None:
        return np.asarray(np.clip(played.reward / max(float(sequences.weights.sum()), 1e-12), 0.0, 1.0))
    right, parts, drawn = np.zeros(len(sequences)), list[Part](), dict[int, int]()
    for number, stage in enumerate(arm.stages):
        mine, more = np.flatnonzero(played.stage == number), []
        for share in stage.shares:
            begin = drawn.get(share.prompt, 0)
            more.append(Part(share.prompt, begin, begin + FURTHER * share.n))
            drawn[share.prompt] = begin + share.n
        if len(mine):
            best = sequences.reward([*parts, *more], mine)
            right[mine] = best - played.reward[mine] <= margin + 1e-9
        own = [Part(p.prompt, p.begin, p.begin + (p.end - p.begin) // FURTHER) for p in more]
        parts = [*parts, *own] if stage.then is not None and stage.then.weight else []
    return right


def real_calls(problem: Problem, outcome: Outcome, context: int, arm: Arm, sequences: Sequences) -> RealCalls:
    """Return the calls that an arm's prompts were really drawn for: all completions of a query are one call.

    Args:
        problem: The problem of the run.
        outcome: The run.
        context: Whose rewards count.
        arm: Calls have at most so many completions of its prompts.
        sequences: Those of `further_sequences`, of the arm or of one that draws more.
    """
    return _Learner(problem, outcome, context, arm, sequences).calls()


def curve(sureness: FloatArray, right: FloatArray) -> Curve:
    """Fit a curve that never falls to rows [S], at least one of them."""
    values, place = np.unique(np.round(sureness, _DIGITS), return_inverse=True)
    if len(values) > _KNOTS:
        cuts = np.unique(np.quantile(sureness, np.linspace(0.0, 1.0, _KNOTS + 1))[1:-1])
        _, place = np.unique(np.searchsorted(cuts, sureness, side="right"), return_inverse=True)
    count = np.bincount(place)
    x, y = np.bincount(place, sureness) / count, np.bincount(place, right) / count
    blocks: list[list[float]] = []  # mean, weight, knots
    for mean, weight in zip(y.tolist(), count.tolist(), strict=True):
        blocks.append([mean, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, v, i), (b, w, j) = blocks[-2:]
            blocks[-2:] = [[(a * v + b * w) / (v + w), v + w, i + j]]
    level = np.array([b[0] for b in blocks])
    return _curve(x, np.repeat(level, [int(b[2]) for b in blocks]))


def _curve(x: FloatArray, y: FloatArray) -> Curve:
    at, first = np.unique(np.round(x, _DIGITS), return_index=True)
    level = np.round(np.clip(y[first], 0.0, 1.0), _DIGITS)
    inner = np.ones(len(at), dtype=bool)
    inner[1:-1] = (level[1:-1] != level[:-2]) | (level[1:-1] != level[2:])  # a flat part needs its ends only
    return Curve(sureness=tuple(at[inner].tolist()), confidence=tuple(level[inner].tolist()))


def stage_curves(arm: Arm, sequences: Sequences, margin: float | None) -> tuple[Curve, ...]:
    """Return the curve of each stage of an arm, by calls on these sequences.

    Calls that abstain count with the answer that they would have given.
    """
    played = play(arm, sequences)
    right, sureness, stage = rightness(arm, played, sequences, margin), played.sureness.copy(), played.stage
    if arm.abstains and not played.answered.all():
        anyhow = answering(arm)
        all_answer = play(anyhow, sequences)
        silent = ~played.answered
        right[silent] = rightness(anyhow, all_answer, sequences, margin)[silent]
        sureness[silent] = all_answer.sureness[silent]
    found: list[Curve] = []
    for number in range(len(arm.stages)):
        mine = (stage == number) & ~np.isnan(sureness)
        if not mine.any():  # no call ends there as far as the run knows
            found.append(curve(sureness, right))
            continue
        found.append(curve(sureness[mine], right[mine]))
    return tuple(found)


def answering(arm: Arm) -> Arm:
    """Return an arm with an answer in any case, whose last stage draws all of its completions."""
    *earlier, last = arm.stages
    found = replace(last, then=None, stop=None)
    for stage in reversed(earlier):
        assert stage.then is not None
        found = replace(stage, then=replace(stage.then, arm=found))
    return found


class _Learner:
    """Learns the confidence of one context's arm."""

    def __init__(self, problem: Problem, outcome: Outcome, context: int, arm: Arm, sequences: Sequences) -> None:
        self._problem, self._outcome, self._context = problem, outcome, context
        self._arm, self._sequences = arm, sequences
        self._weights = problem.contexts.weights[context]
        self._margin: float | None = None
        if picks_best(problem):
            bounds = Bounds.of(problem.aggregator, outcome.observations, self._weights)
            self._margin = MARGIN * (bounds.high - bounds.low)
        self._curves: dict[tuple[int, int, int], Curve] = {}

    def learnt(self) -> Calibrated:
        """Return the map, and how well it agrees with real calls."""
        curves = stage_curves(self._arm, self._sequences, self._margin)
        calls = self.calls()
        correction, logprobs = _corrections(calls)
        stages = tuple(
            _curve(np.array(c.sureness), correction(np.array(c.confidence))) if correction != Correction() else c
            for c in curves
        )
        found = ConfidenceMap(stages=stages, margin=self._margin, logprobs=logprobs)
        return Calibrated(map=found, reliability=_reliability(calls, least=min(self._arm.most, 2)))

    def calls(self) -> RealCalls:
        """Return the calls that the arm's prompts were really drawn for."""
        after = self._outcome.measuring
        drawn = [(o, 0.0) for o in self._outcome.observations] + ([(after, 1.0)] if after is not None else [])
        groups: dict[float, list[Observations]] = {}
        for observations, when in drawn:
            groups.setdefault(when, []).append(observations)
        parts = [part for when, group in groups.items() for part in self._calls_of(group, when)]
        return RealCalls.joined(parts)

    def _calls_of(self, group: Sequence[Observations], after: float) -> list[RealCalls]:
        cells = Cells.of(group, self._problem.n_prompts, self._problem.contexts.n_objectives)
        logprobs = _logprobs(group, self._problem.n_prompts)
        found: list[RealCalls] = []
        for prompt, most in sorted(needed(self._arm).items()):
            mine = cells.prompt == prompt
            for size in np.unique(cells.size[mine]).tolist():
                whole = min(size, most * (FURTHER if self._margin is not None else 1))
                n = whole if self._margin is None else whole // FURTHER
                if n < 1:
                    continue
                chosen = np.flatnonzero(mine & (cells.size == size))
                at = cells.start[chosen][:, None] + np.arange(whole)
                calls = Sequences(
                    prompts=np.array([prompt]),
                    label=cells.label[at][None],
                    score=cells.score[at][None],
                    query=np.arange(len(chosen)),
                    n_queries=len(chosen),
                    aggregator=self._problem.aggregator,
                    weights=self._weights,
                )
                one = Arm(prompt, n)
                played = play(one, calls)
                expected = self._of_size(prompt, n)
                found.append(
                    RealCalls(
                        expected=np.array([expected(s) for s in played.sureness.tolist()]),
                        right=rightness(one, played, calls, self._margin),
                        size=np.full(len(chosen), float(n)),
                        query=cells.visited[cells.query[chosen]].astype(float),
                        logprob=_of_winner(calls, n, logprobs[at], self._margin is not None),
                        after=np.full(len(chosen), after),
                    )
                )
        return found

    def _of_size(self, prompt: int, n: int) -> Curve:
        key = (prompt, n, 0)
        if key not in self._curves:
            (self._curves[key],) = stage_curves(Arm(prompt, n), self._sequences, self._margin)
        return self._curves[key]


def _logprobs(group: Sequence[Observations], n_prompts: int) -> FloatArray:
    """Return the logprob of each completion in the order of `Cells` [S]."""
    prompt = np.concatenate([np.repeat(o.pulls.prompt, o.pulls.size) for o in group])
    query = np.concatenate([np.repeat(o.pulls.query, o.pulls.size) for o in group])
    values = np.concatenate([o.logprobs for o in group])
    return np.asarray(values[np.argsort(query * n_prompts + prompt, kind="stable")])


def _of_winner(calls: Sequences, n: int, logprob: FloatArray, best: bool) -> FloatArray:
    """Return the mean logprob of the completions that gave the answer [R]."""
    if np.isnan(logprob).all():
        return np.full(len(calls), np.nan)
    found = np.full(len(calls), np.nan)
    for i in range(len(calls)):
        label, score = calls.label[0, i, :n], calls.score[0, i, :n]
        usable = ~np.isnan(score).any(axis=1)
        if best:
            value = np.where(usable, score @ calls.weights, -np.inf)
            mine = usable & (np.arange(n) == int(value.argmax()))
        else:
            names, votes = np.unique(label[usable & (label >= 0)], return_counts=True)
            mine = usable & (label == names[votes.argmax()]) if len(names) else np.zeros(n, dtype=bool)
        known = mine & ~np.isnan(logprob[i, :n])
        if known.any():
            found[i] = logprob[i, :n][known].mean()
    return found


def _corrections(calls: RealCalls) -> tuple[Correction, Logprobs | None]:
    after = calls.after > 0
    correction = corrected(calls.expected[after], calls.right[after]) if after.any() else Correction()
    return correction, by_logprobs(correction(calls.expected), calls.logprob, calls.right)


def _reliability(calls: RealCalls, least: int) -> Reliability | None:
    """Compare the confidence of calls of at least so many completions with what they were, by cross-fitting."""
    shown = calls.size >= least
    if shown.sum() < _LEAST_CALLS:
        return None
    _, number = np.unique(calls.query, return_inverse=True)
    fold = np.random.default_rng(len(number)).permutation(int(number.max()) + 1)[number] % _FOLDS
    confidence = np.empty(len(calls.right))
    for f in range(_FOLDS):
        mine = fold == f
        correction, logprobs = _corrections(calls.of(~mine))
        odds = log_odds(correction(calls.expected[mine]))
        if logprobs is not None:
            odds = odds + np.array([0.0 if v != v else logprobs.adds(v) for v in calls.logprob[mine].tolist()])
        confidence[mine] = logistic(odds)
    p, right = confidence[shown], calls.right[shown]
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    kept = count > 0
    sums = [np.bincount(place, values, minlength=BINS)[kept] / count[kept] for values in (p, right)]
    return Reliability(
        confidence=tuple(sums[0].tolist()), right=tuple(sums[1].tolist()), count=tuple(count[kept].tolist())
    )
