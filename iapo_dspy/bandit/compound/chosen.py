"""Gives contexts a compound arm where it is surely better than the best arm of one prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.compound.cascades import Allowed, ArmPrices, Cascades, Offer
from iapo_dspy.bandit.compound.known import known_sequences
from iapo_dspy.bandit.compound.mixtures import Mixture, Mixtures
from iapo_dspy.bandit.compound.played import Played, play
from iapo_dspy.bandit.compound.sequences import Part, Sequences, needed
from iapo_dspy.bandit.costs.worst_path import keeps_caps
from iapo_dspy.bandit.outcome import Considered, Outcome, StoppedArm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import CallPrices, as_drawn, call_prices, thrifty_prices
from iapo_dspy.types import Arm, FloatArray, Policy

PROMPTS = 8  # that compound arms are made of, at most
SURE = 1.0  # standard errors that a gain must be above 0
SURE_OF_MIXTURE = 1.5  # the same of a mixture
LEAST_GAIN = 0.005  # of the rewards' range: less is not worth that calls ask several prompts
_TRUST = 0.5  # in corrections: the queries that a stage answers are not like all queries
_DOUBT = 0.25  # share of the doubt about prompts that counts: the same model has extrapolated both arms
_SEEN = 0.5  # share of the visited queries that a prompt of a compound arm was drawn on
_LEAST = 40  # queries on which it was drawn, at least
_ROWS = 8192  # rows of sequences, over all queries
_COPIES = 4, 32
_RATES = np.concatenate(
    [[0.0], np.geomspace(1e-3, 1.0, 10)]
)  # prices of the cheapest completion, by the rewards' range


def with_compounds(problem: Problem, outcome: Outcome, *, left_out: Collection[int] = ()) -> Outcome:
    """Offer every context cascades and mixtures, beside the arm of one prompt that it has.

    Nothing is drawn, and the same observations give the same arms. A context gets the same arm whichever others there
    are. Runs without a model of their completions (`psst`) keep their arms.

    Args:
        problem: The problem of the run.
        outcome: The run, with stops where calls may stop early.
        left_out: Prompts that no compound arm is made of.

    Returns:
        The outcome with compound arms in its policy, its `stops` and `considered`.
    """
    if outcome.detail is None or problem.n_prompts == 1:
        return outcome
    return _Offers(problem, outcome, left_out).made()


def mixture_of(problem: Problem, outcome: Outcome, context: int, n: int) -> Considered | None:
    """Return the best mixture of n completions, beside the best prompt with as many, whatever completions cost.

    Args:
        problem: The problem of the run.
        outcome: The run.
        context: Whose rewards count.
        n: Completions of a call, from 2 to `max_n`.

    Returns:
        The mixture; `chosen` says whether it is surely better. None where nothing is known of mixtures, and where none
        is better than its best prompt even on the queries that it is tuned on.
    """
    reward = outcome.reward[context][:, n - 1]
    known = np.isfinite(reward) & _seen(outcome)
    prompts = np.sort(np.argsort(np.where(known, -reward, np.inf), kind="stable")[: min(PROMPTS, int(known.sum()))])
    if outcome.detail is None or len(prompts) < 2:
        return None
    sequences = _sequences(problem, outcome, context, tuple(prompts.tolist()), n)
    if sequences is None:
        return None
    free = ArmPrices(fixed=np.zeros(problem.n_prompts), each=np.zeros(problem.n_prompts))
    found = Mixtures(sequences, outcome.reward[context]).best(n, free, free)
    return None if found is None else _of_mixture(outcome, context, found, sequences)


def as_called(problem: Problem, outcome: Outcome, context: int, arm: Arm) -> StoppedArm:
    """Return any arm with its expected calls: a compound one as it is played, another one where it draws all N at once.

    Args:
        problem: The problem of the run.
        outcome: The run.
        context: Which context.
        arm: The arm.
    """
    plain = as_drawn(outcome, context, replace(arm, beside=(), then=None, stop=None))
    if not arm.compound:
        return replace(plain, arm=arm)
    sequences = _sequences(problem, outcome, context, tuple(sorted(arm.prompts)), max(needed(arm).values()))
    if sequences is None:  # nothing is known of one of its prompts
        nothing = float("nan")
        return replace(plain, arm=arm, reward=nothing, utility=nothing, cost=nothing, completions=float(arm.most))
    prices = call_prices(problem, outcome)
    paid = ArmPrices(fixed=prices.fixed[context], each=prices.each[context])
    played = play(arm, sequences)
    utility = float(played.reward.mean() - paid.of(sequences.prompts, played).mean())
    return _described(arm, played, utility, sequences, paid, prices)


def _sequences(problem: Problem, outcome: Outcome, context: int, prompts: tuple[int, ...], n: int) -> Sequences | None:
    assert outcome.detail is not None
    copies = int(np.clip(_ROWS // outcome.detail.n_visited, *_COPIES))
    return known_sequences(problem, outcome, context, np.array(prompts), n, copies=copies)


class _Known(NamedTuple):
    """The compound arms of some prompts under one row of weights, and the completions that they are played on."""

    sequences: Sequences
    cascades: Cascades
    mixtures: Mixtures


class _Offers:
    """The compound arms of one run."""

    def __init__(self, problem: Problem, outcome: Outcome, left_out: Collection[int]) -> None:
        self._problem = problem
        self._outcome = outcome
        self._left_out = list(left_out)
        self._prices = call_prices(problem, outcome)
        self._known: dict[tuple[bytes, tuple[int, ...]], _Known | None] = {}

    def made(self) -> Outcome:
        """Return the outcome."""
        outcome = self._outcome
        found = [self._offered(context) for context in range(self._problem.n_contexts)]
        arms = tuple(call.arm for call, _ in found)
        considered = tuple(offers for _, offers in found)
        if arms == outcome.policy.arms:
            return replace(outcome, considered=considered)
        return replace(outcome, policy=Policy(arms), stops=tuple(call for call, _ in found), considered=considered)

    def _offered(self, context: int) -> tuple[StoppedArm, tuple[Considered, ...]]:
        outcome = self._outcome
        single = outcome.policy[context]
        call = outcome.stops[context] if outcome.stops is not None else as_drawn(outcome, context, single)
        known = self._compounds(context, single) if np.isfinite(call.utility) else None
        if known is None:
            return call, ()
        fixed, each = thrifty_prices(outcome, self._prices, context)
        tuned = ArmPrices(fixed=fixed, each=each)
        paid = ArmPrices(fixed=self._prices.fixed[context], each=self._prices.each[context])
        allowed, offers = self._allowed(context), list[tuple[Considered, Offer, float]]()
        cascade = known.cascades.best(tuned, paid, single, allowed)
        if cascade is not None:
            offers.append(self._considered(context, cascade, known.sequences, single))
        mixture = known.mixtures.best(single.n, tuned, paid, single, allowed) if single.n > 1 else None
        if mixture is not None:
            offers.append(self._considered(context, mixture, known.sequences, single))
        best = max((gain for offer, _, gain in offers if offer.chosen), default=np.nan)
        offered = tuple(replace(offer, chosen=offer.chosen and gain == best) for offer, _, gain in offers)
        for considered, (_, found, gain) in zip(offered, offers, strict=True):
            if considered.chosen:
                utility = call.utility + gain
                return _described(found.arm, found.played, utility, known.sequences, paid, self._prices), offered
        return call, offered

    def _considered(
        self, context: int, found: Offer, sequences: Sequences, single: Arm
    ) -> tuple[Considered, Offer, float]:
        """Return what is to be said of an offer, the offer, and its gain in utility over the context's arm."""
        outcome = self._outcome
        error = _error(outcome, context, found, sequences, single)
        if isinstance(found, Mixture):
            said = _of_mixture(outcome, context, found, sequences)
            return replace(said, chosen=self._worth(context, found.gain, SURE_OF_MIXTURE * error)), found, found.gain
        gain = found.gain + _TRUST * _correction(outcome, context, found, sequences, single)
        offer = Considered(
            kind="cascade",
            arm=found.arm,
            beside=single,
            gain=gain,
            standard_error=error,
            chosen=self._worth(context, gain, SURE * error),
        )
        return offer, found, gain

    def _worth(self, context: int, gain: float, uncertain: float) -> bool:
        """Tell whether a gain is larger than its uncertainty, and large enough for calls of several prompts."""
        evidence = self._outcome.detail
        assert evidence is not None
        spread = float(evidence.factor[context] * evidence.spread[evidence.row[context]])
        return gain > max(uncertain, LEAST_GAIN * spread)

    def _compounds(self, context: int, single: Arm) -> _Known | None:
        """Return the compound arms of the context's prompts, made once for contexts of the same weights."""
        prompts = tuple(sorted({*self._promising(context), single.prompt}))
        key = self._problem.contexts.weights[context].tobytes(), prompts
        if key not in self._known:
            sequences = _sequences(self._problem, self._outcome, context, prompts, self._problem.max_n)
            if sequences is None:
                self._known[key] = None
            else:
                mixtures = Mixtures(sequences, self._outcome.reward[context])
                self._known[key] = _Known(sequences, Cascades(sequences), mixtures)
        return self._known[key]

    def _promising(self, context: int) -> list[int]:
        """Return prompts that are best at some price of completions, whatever the context's own price is."""
        reward, cost = self._outcome.reward[context], self._outcome.estimates.cost
        known = np.isfinite(reward) & np.isfinite(cost)
        known[self._left_out] = False
        known &= _seen(self._outcome)[:, None]
        if not known.any():
            return []
        cheapest = float(np.min(cost, where=known, initial=np.inf))
        spread = float(np.ptp(reward[known])) or 1.0
        ranks: dict[int, int] = {}
        for rate in _RATES * (spread / cheapest if cheapest > 0 else 0.0):
            best = np.where(known, reward - rate * cost, -np.inf).max(axis=1)
            for rank, prompt in enumerate(np.argsort(-best, kind="stable")[: PROMPTS // 2].tolist()):
                if np.isfinite(best[prompt]):
                    ranks[prompt] = min(rank, ranks.get(prompt, rank))
        return sorted(ranks, key=lambda p: (ranks[p], p))[:PROMPTS]

    def _allowed(self, context: int) -> Allowed | None:
        charges = self._outcome.charges
        if charges is None or np.isinf(self._problem.contexts.caps[context]).all():
            return None
        return lambda arm: keeps_caps(charges, context, arm)


def _of_mixture(outcome: Outcome, context: int, found: Mixture, sequences: Sequences) -> Considered:
    """Return what is to be said of a mixture: its gain over the best prompt with as many completions."""
    alike = replace(found, difference=found.reward)
    error = _error(outcome, context, alike, sequences, found.beside)
    return Considered(
        kind="mixture",
        arm=found.arm,
        beside=found.beside,
        gain=alike.gain,
        standard_error=error,
        chosen=alike.gain > SURE_OF_MIXTURE * error,
    )


def _seen(outcome: Outcome) -> NDArray[np.bool_]:
    """Return which prompts were drawn on enough queries to be part of a compound arm [P]."""
    return np.asarray(outcome.count[:, 0] >= max(_SEEN * outcome.count.max(), _LEAST))


def _described(
    arm: Arm, played: Played, utility: float, sequences: Sequences, paid: ArmPrices, prices: CallPrices
) -> StoppedArm:
    """Describe a compound arm by its expected calls."""
    prompts = sequences.prompts
    completions, waves = played.completions.mean(axis=0), played.waves.mean(axis=0)
    price = float(paid.of(prompts, played).mean())
    reward = float(np.clip(utility + price, played.reward.min(), played.reward.max()))
    return StoppedArm(
        arm=arm,
        reward=reward,
        gain=0.0,
        completions=float(completions.sum()),
        waves=float(waves.sum()),
        cost=float(waves @ prices.raw_fixed[prompts] + completions @ prices.raw_each[prompts]),
        utility=reward - price,
        by_query=_centred(sequences.by_query(played.reward), reward),
        by_prompt=tuple(
            (int(p), float(c), float(w)) for p, c, w in zip(prompts, completions, waves, strict=True) if w > 0
        ),
        abstains=float(1.0 - played.answered.mean()),
        answered_by=_answered_by(arm, played, sequences),
    )


def _answered_by(arm: Arm, played: Played, sequences: Sequences) -> tuple[tuple[int, int, FloatArray], ...]:
    """Return `StoppedArm.answered_by`: a stage's answer is of each of its parts as far as they draw for it."""
    shares: dict[int, FloatArray] = {}
    scales: dict[int, int] = {}
    for number, stage in enumerate(arm.stages):
        answers = sequences.by_query(((played.stage == number) & played.answered).astype(float))
        for share in stage.shares:
            scales.setdefault(share.prompt, stage.size)
            shares[share.prompt] = shares.get(share.prompt, 0.0) + answers * (share.n / stage.size)
    return tuple((prompt, scales[prompt], share) for prompt, share in shares.items())


def _correction(outcome: Outcome, context: int, found: Offer, sequences: Sequences, single: Arm) -> float:
    """Return what the corrected estimates of arms of one prompt add to a gain, as far as each stage answers."""

    def of(prompt: int, n: int) -> float:
        known = float(outcome.reward[context, prompt, n - 1])
        return known - float(sequences.reward([Part(prompt, 0, n)]).mean())

    total = -of(single.prompt, single.n)
    for number, stage in enumerate(found.arm.stages):
        answers = float((found.played.stage == number).mean())
        total += answers * sum(share.n / stage.size * of(share.prompt, stage.size) for share in stage.shares)
    return total


def _error(outcome: Outcome, context: int, found: Offer, sequences: Sequences, single: Arm) -> float:
    """Return the standard error of a gain.

    Sequences are drawn from what is expected of each query, so that their spread is too small. What is left open of a
    stage on a query counts as far as the stage answers there; the residuals of the other arm count in full.
    """
    evidence = outcome.detail
    assert evidence is not None
    row, factor = evidence.row[context], evidence.factor[context]
    nothing = np.zeros(len(found.difference))
    answering = _answered_by(found.arm, found.played, sequences)
    left = {prompt: share for prompt, _, share in answering}  # how much of a prompt's residual counts on each query
    left[single.prompt] = left.get(single.prompt, nothing) - 1.0  # the same draws decide both
    scales = {prompt: min(n, outcome.q.shape[2]) for prompt, n, _ in answering} | {single.prompt: single.n}
    prompts = np.array(list(left))
    scale = np.array([scales[p] for p in left])
    residual = evidence.influence[row].at(prompts, scale) - evidence.values[row].at(prompts, scale)
    residual -= residual.mean(axis=1, keepdims=True)
    weight = np.stack(list(left.values()))
    noisy = found.difference + factor * (weight * residual).sum(axis=0)
    doubt = factor**2 * float(weight.mean(axis=1) ** 2 @ evidence.doubt[row, prompts, scale - 1])
    return float(np.sqrt(noisy.var() / max(len(noisy) - 1, 1) + _DOUBT * doubt))


def _centred(values: FloatArray, mean: float) -> FloatArray:
    return np.asarray(values + (mean - values.mean()))
