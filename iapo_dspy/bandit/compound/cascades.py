"""Cascades: a cheap stage answers where it is sure, and a better one decides the rest.

Every prompt answers the same queries, so the draws that choose one prompt also say what a cascade of several is worth.
Its stages, their N and their thresholds are tuned together, per context, on sequences of completions that are drawn
from what the run knows (`known`). A threshold that is tuned and valued on the same queries looks better than it is, so
the gain over the best arm of one prompt is cross-fitted: each fold of queries is valued by the cascade that is best on
the others. Routers that act as constants are a known disease; a cascade is offered only where this gain is larger than
its own uncertainty.

LLM cascades that ask the larger model where answers of the smaller one disagree: arXiv 2310.03094; FrugalGPT: arXiv
2305.05176.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.aggregators.port import Stoppable, Sure
from iapo_dspy.bandit.compound.played import Played, play
from iapo_dspy.bandit.compound.sequences import Part, Sequences
from iapo_dspy.bandit.stopping.rules import doubling_waves
from iapo_dspy.types import Arm, Escalation, FloatArray, IntArray, Stop

SCALES = 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64
FOLDS = 5
_THRESHOLDS = 12  # of Best-of-N, where any number may be one
_LONGER = 4  # first stages, of a prompt each, behind which two others are tried
_CONFIDENCES = 0.95, 0.9, 0.8  # by which a vote of the last stage may stop
_WEIGHTS = 1, 2, 3  # how often later completions count beside earlier ones
_NEARLY = 0.03  # of the range of rewards: a cascade that is worse by less is looked at with votes of all its stages
_TRIED = 500  # cascades whose caps are looked at

Allowed = Callable[[Arm], bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmPrices:
    """ArmPrices of one context, in utility.

    Attributes:
        fixed: Of a wave of each prompt [P].
        each: Of a completion of each prompt [P].
    """

    fixed: FloatArray
    each: FloatArray

    def of(self, prompts: IntArray, played: Played) -> FloatArray:
        """Return the price of played calls, row by row [S]."""
        return np.asarray(played.waves @ self.fixed[prompts] + played.completions @ self.each[prompts])


@dataclass(frozen=True, kw_only=True, eq=False)
class Offer:
    """The best compound arm, beside the best arm of one prompt.

    Attributes:
        arm: The compound arm, tuned on all queries.
        difference: Its utility minus that of the other arm on each query [V], cross-fitted.
        played: Its calls on the sequences.
    """

    arm: Arm
    difference: FloatArray
    played: Played

    @property
    def gain(self) -> float:
        """The mean difference."""
        return float(self.difference.mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Firsts:
    """Stages that go on where they are not sure, O of them.

    Attributes:
        stage: Which stage each of them is [O], among the L of any prompt and N.
        below: Their thresholds [O].
        goes_on: The rows in which they go on [O, S], as numbers.
    """

    stage: IntArray
    below: FloatArray
    goes_on: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """Cascades that begin in the same way.

    Attributes:
        head: Stages before the last two: positions among the O of `_Firsts`.
        utility: Utility by fold, by the last first stage and by the last stage [F, O, L].
        valid: Which of them are cascades: a prompt comes once [O, L].
    """

    head: tuple[int, ...]
    utility: FloatArray
    valid: NDArray[np.bool_]


class Cascades:
    """All cascades of some prompts under one row of objective weights.

    Args:
        sequences: Completions of the prompts.
        seed: Seed of the folds.
    """

    def __init__(self, sequences: Sequences, seed: int = 0) -> None:
        self.sequences = sequences
        most = sequences.label.shape[2]
        stages = [(p, n) for p in sequences.prompts.tolist() for n in SCALES if n <= most]
        self._prompt, self._n = np.array(stages, dtype=np.int64).T
        parts = [[Part(p, 0, n)] for p, n in stages]
        self._reward = np.stack([sequences.reward(part) for part in parts])  # [L, S]
        aggregator, weights = sequences.aggregator, sequences.weights
        assert isinstance(aggregator, Sure)
        self._sure = np.stack([aggregator.sureness(*sequences.pool(part), weights) for part in parts])
        order = np.random.default_rng([seed, sequences.n_queries]).permutation(sequences.n_queries)
        self._folds = [order[sequences.query] % FOLDS == f for f in range(min(FOLDS, sequences.n_queries))]
        self._known_longer: dict[int, tuple[FloatArray, FloatArray, FloatArray]] = {}

    @cached_property
    def _firsts(self) -> _Firsts:
        stage: list[int] = []
        below: list[float] = []
        for i, sure in enumerate(self._sure):
            values = np.unique(np.round(sure, 9))
            if len(values) > _THRESHOLDS:
                values = np.unique(np.quantile(sure, np.linspace(0.0, 0.95, _THRESHOLDS)))
            stage += [i] * (len(values) - 1)  # below the smallest one nothing goes on
            below += np.round((values[1:] + values[:-1]) / 2, 6).tolist()
        at, least = np.array(stage, dtype=np.int64), np.array(below)
        return _Firsts(stage=at, below=least, goes_on=(self._sure[at] < least[:, None]).astype(float))

    def _sums(self, values: FloatArray) -> FloatArray:
        """Return the sums of values [..., S] over the rows of each fold, by S [F, ...]."""
        return np.stack([values[..., fold].sum(axis=-1) for fold in self._folds]) / len(self.sequences)

    def _products(self, rows: FloatArray) -> FloatArray:
        """Return the sums of rows [O, S] times the reward of each stage [F, O, L], likewise."""
        found = [rows[:, fold] @ self._reward[:, fold].T for fold in self._folds]
        return np.stack(found) / len(self.sequences)

    @cached_property
    def _shares(self) -> FloatArray:
        """Share of the rows in each fold [F]."""
        return self._sums(np.ones(len(self.sequences)))

    @cached_property
    def _two(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Rewards of first stages that answer [F, O], of last ones that decide [F, O, L]; share that goes on [F, O]."""
        firsts = self._firsts
        accepted = self._sums((1.0 - firsts.goes_on) * self._reward[firsts.stage])
        return accepted, self._products(firsts.goes_on), self._sums(firsts.goes_on)

    def _longer(self, first: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the same of cascades behind a first stage, where it goes on."""
        if first not in self._known_longer:
            firsts = self._firsts
            mine = firsts.goes_on[first]
            accepted = self._sums(mine * (1.0 - firsts.goes_on) * self._reward[firsts.stage])
            both = mine * firsts.goes_on
            self._known_longer[first] = accepted, self._products(both), self._sums(both)
        return self._known_longer[first]

    def best(self, tuned: ArmPrices, paid: ArmPrices, single: Arm, allowed: Allowed | None = None) -> Offer | None:
        """Return the best cascade of a context; None where there is none.

        Args:
            tuned: ArmPrices by which cascades are compared.
            paid: ArmPrices by which they are valued.
            single: The best arm of one prompt, which is among those of the sequences.
            allowed: Whether an arm keeps the caps of the context; None: there are none.
        """
        firsts = self._firsts
        if not len(firsts.stage) or len(self.sequences.prompts) < 2:
            return None
        price = tuned.fixed[self._prompt] + self._n * tuned.each[self._prompt]
        own = self._prompt[firsts.stage]
        accepted, decided, needed = self._two
        utility = accepted[:, :, None] + decided - needed[:, :, None] * price
        utility -= (self._shares[:, None] * price[firsts.stage])[:, :, None]
        same = own[:, None] == self._prompt
        groups = [_Group(head=(), utility=utility, valid=~same)]
        if len(self.sequences.prompts) > 2:
            reach = np.where(same, -np.inf, utility.sum(axis=0)).max(axis=1)
            ranked = np.argsort(-reach, kind="stable")
            _, leading = np.unique(own[ranked], return_index=True)  # the best first stage of each prompt
            for first in ranked[np.sort(leading)[:_LONGER]].tolist():
                accepted, decided, needed = self._longer(first)
                longer = accepted[:, :, None] + decided - needed[:, :, None] * price
                longer -= (self._two[2][:, first, None] * price[firsts.stage])[:, :, None]
                longer += (self._two[0][:, first] - self._shares * price[firsts.stage[first]])[:, None, None]
                other = (own != own[first])[:, None] & (self._prompt != own[first])
                groups.append(_Group(head=(first,), utility=longer, valid=other & ~same))
        return self._crossfitted(groups, tuned, paid, single, allowed)

    def _crossfitted(
        self,
        groups: list[_Group],
        tuned: ArmPrices,
        paid: ArmPrices,
        single: Arm,
        allowed: Allowed | None,
    ) -> Offer | None:
        """Choose by all queries, and value each fold by the choice of the others."""
        lasts = len(self._n)
        valid = np.flatnonzero(np.concatenate([g.valid.reshape(-1) for g in groups]))
        flat = np.concatenate([g.utility.reshape(len(self._folds), -1) for g in groups], axis=1)[:, valid]
        total = flat.sum(axis=0)

        def option(values: FloatArray) -> tuple[int, ...] | None:
            """Return the best option: positions of its first stages among all O, and of its last one among all L."""
            ranked = [int(values.argmax())] if allowed is None else np.argsort(-values, kind="stable")[:_TRIED].tolist()
            for at in ranked:
                group, rest = divmod(int(valid[at]), groups[0].valid.size)
                chosen = (*groups[group].head, *divmod(rest, lasts))
                if allowed is None or allowed(self._arm(chosen)):
                    return chosen
            return None

        chosen = option(total)
        if chosen is None:
            return None
        value = np.empty(len(self.sequences))
        for f, fold in enumerate(self._folds):
            others = option(total - flat[f]) or chosen
            value[fold] = self._value(others, paid, fold)
        alone = play(single, self.sequences)
        worth = self._worth(alone, paid)
        difference = self.sequences.by_query(value - worth)
        arm = self._arm(chosen)
        played = play(arm, self.sequences)
        if difference.mean() > -_NEARLY * np.ptp(self._reward):
            better, at = self._refined(arm, played, tuned, allowed)
            difference += self.sequences.by_query(self._worth(at, paid) - self._worth(played, paid))
            arm, played = better, at
        return Offer(arm=arm, difference=difference, played=played)

    def _worth(self, played: Played, prices: ArmPrices) -> FloatArray:
        return np.asarray(played.reward - prices.of(self.sequences.prompts, played))

    def _value(self, chosen: tuple[int, ...], prices: ArmPrices, rows: NDArray[np.bool_]) -> FloatArray:
        """Return the utility of an option in some rows."""
        *heads, last = chosen
        going, value = np.ones(int(rows.sum())), np.zeros(int(rows.sum()))
        for stage, goes_on in [*((self._firsts.stage[h], self._firsts.goes_on[h][rows]) for h in heads), (last, None)]:
            prompt, n = self._prompt[stage], self._n[stage]
            answers = going if goes_on is None else going * (1.0 - goes_on)
            value += answers * self._reward[stage][rows] - going * (prices.fixed[prompt] + n * prices.each[prompt])
            going = going - answers
        return value

    def _arm(self, chosen: tuple[int, ...]) -> Arm:
        *heads, last = chosen
        arm = Arm(int(self._prompt[last]), int(self._n[last]))
        for head in reversed(heads):
            stage = self._firsts.stage[head]
            then = Escalation(below=float(self._firsts.below[head]), arm=arm)
            arm = Arm(int(self._prompt[stage]), int(self._n[stage]), then=then)
        return arm

    def _refined(self, arm: Arm, played: Played, prices: ArmPrices, allowed: Allowed | None) -> tuple[Arm, Played]:
        """Count earlier completions in the last stage where that is better, and draw in waves where that is cheaper."""
        worth = self._worth(played, prices)
        for variant in (*_weighted(arm), *self._in_waves(arm)):
            other = _grafted(arm, variant)
            if other is None or (allowed is not None and not allowed(other)):
                continue
            tried = play(other, self.sequences)
            better = self._worth(tried, prices)
            by_query = self.sequences.by_query(better - worth)
            changes = variant.weight is not None or (variant.stop is not None and variant.stop.confidence is not None)
            doubt = float(by_query.std() / np.sqrt(len(by_query))) if changes else 0.0
            if by_query.mean() > doubt:
                arm, played, worth = other, tried, better
        return arm, played

    def _in_waves(self, arm: Arm) -> list[_Variant]:
        """Return waves that end a stage where its answer, or its going on, is settled."""
        aggregator = self.sequences.aggregator
        if not isinstance(aggregator, Stoppable):
            return []
        found = []
        for number, stage in enumerate(arm.stages):
            settling = aggregator.settling(stage.n)
            if stage.then is None:
                ends = settling.waves[:-1] if settling is not None else ()
            elif settling is None:  # the best completion counts: one that is good enough ends the stage
                ends = doubling_waves(1, stage.n)[:-1]
            else:  # so many can be sure enough; and two that differ may show that they are not
                ends = (max(math.ceil(stage.then.below * stage.n), stage.n // 2 + 1), 2)
            options = [ends] if settling is None else [(end,) for end in ends]
            found += [_Variant(stage=number, stop=Stop(waves=(*e, stage.n))) for e in options if e and e[-1] < stage.n]
            if stage.then is None and settling is not None and stage.n > 2:
                waves = doubling_waves(2, stage.n)
                found += [_Variant(stage=number, stop=Stop(waves=waves, confidence=c)) for c in _CONFIDENCES]
        return found


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """A change of one stage: its waves, or how often its completions count.

    Attributes:
        stage: Which stage.
        stop: Its waves, and in the last stage the rule by which it stops; None: as it is.
        weight: How often its completions count; None: as it is.
    """

    stage: int
    stop: Stop | None = None
    weight: int | None = None


def _weighted(arm: Arm) -> list[_Variant]:
    return [_Variant(stage=len(arm.stages) - 1, weight=weight) for weight in _WEIGHTS]


def _grafted(arm: Arm, variant: _Variant) -> Arm | None:
    """Return an arm with one stage changed; None where the change does not fit it."""
    stages = list(arm.stages)
    at = variant.stage
    earlier = stages[at - 1].then if at else None
    if variant.stop is not None:
        if earlier is not None and earlier.weight:
            return None  # its own completions do not count alone
        stages[at] = replace(stages[at], stop=variant.stop)
    if variant.weight is not None and earlier is not None:
        stages[at - 1] = replace(stages[at - 1], then=replace(earlier, weight=variant.weight))
    found = stages[-1]
    for stage in reversed(stages[:-1]):
        assert stage.then is not None
        found = replace(stage, then=replace(stage.then, arm=found))
    return found
