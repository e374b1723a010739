"""Calls of any arm, cascades and mixtures included, played on sequences of completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.aggregators.port import Stoppable, Sure
from iapo_dspy.bandit.compound.deciding import least_sure
from iapo_dspy.bandit.compound.sequences import Part, Sequences
from iapo_dspy.bandit.stopping.replays import VoteTally, numbered_answers
from iapo_dspy.bandit.stopping.rules import votes_needed
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """How calls of an arm went, row by row.

    Attributes:
        reward: Expected task reward of the answer [S]; that of a call without a vote where the call abstains.
        answered: Whether there is an answer [S].
        stage: The stage in which the call ended, 0-based [S].
        sureness: How sure the last stage was [S]; see `Escalation`. NaN where the aggregator cannot tell.
        completions: Completions drawn of each prompt of the sequences [S, Q].
        waves: Waves drawn of each prompt [S, Q].
    """

    reward: FloatArray
    answered: NDArray[np.bool_]
    stage: IntArray
    sureness: FloatArray
    completions: FloatArray
    waves: FloatArray


def play(arm: Arm, sequences: Sequences) -> Played:
    """Play one call of an arm on every row, as `program.call` draws it.

    Args:
        arm: The arm. Its completions of a prompt are the row's first ones, and those of a later stage the next ones.
        sequences: They hold the arm's prompts, with as many completions as its worst path draws.

    Raises:
        ConfigurationError: The arm escalates by a sureness that the aggregator cannot tell.
    """
    size, n_prompts = len(sequences), len(sequences.prompts)
    if arm.then is not None and not isinstance(sequences.aggregator, Sure):
        raise ConfigurationError(f"{type(sequences.aggregator).__name__} cannot tell how sure an answer is.")
    reward, sureness = np.zeros(size), np.full(size, np.nan)
    answered, stage_of = np.ones(size, dtype=bool), np.zeros(size, dtype=np.int64)
    completions, waves = np.zeros((2, size, n_prompts))
    going, pool, drawn, weight = np.arange(size), list[Part](), dict[int, int](), 0
    for number, stage in enumerate(arm.stages):
        own = []
        for share in stage.shares:
            begin = drawn.get(share.prompt, 0)
            drawn[share.prompt] = begin + share.n
            own.append(Part(share.prompt, begin, begin + share.n, max(weight, 1)))
        pool = [*pool, *own] if weight else own
        ended = _played(stage, pool, sequences, going)
        for share in stage.shares:
            at = int(np.searchsorted(sequences.prompts, share.prompt))
            completions[going, at] += ended.completions if stage.stop is not None else share.n
            waves[going, at] += ended.waves
        reward[going], sureness[going], stage_of[going] = ended.reward, ended.sureness, number
        if stage.then is None:
            break
        weight, going = stage.then.weight, going[ended.goes_on]
        if stage.then.arm is None:
            answered[going] = False
            nobody = sequences.aggregator.reward(
                np.full((1, 1), -1), np.full((1, 1, sequences.score.shape[3]), np.nan), sequences.weights[None]
            )
            reward[going] = float(nobody[0, 0])
    return Played(
        reward=reward, answered=answered, stage=stage_of, sureness=sureness, completions=completions, waves=waves
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ended:
    """How one stage ended in the rows that reached it [S']."""

    reward: FloatArray
    sureness: FloatArray
    goes_on: NDArray[np.bool_]
    completions: FloatArray
    waves: FloatArray


def _played(stage: Arm, pool: list[Part], sequences: Sequences, rows: IntArray) -> _Ended:
    """Play one stage; with waves, its own completions alone count."""
    aggregator, size = sequences.aggregator, len(rows)
    label, score = sequences.pool(pool, rows)
    below = least_sure(stage.then) if stage.then is not None else -np.inf
    reward = aggregator.reward(label, score, sequences.weights[None])[0]
    sureness = _sureness(sequences, label, score)
    goes_on = sureness < below
    completions, waves = np.full(size, float(stage.size)), np.ones(size)
    if stage.stop is None:
        return _Ended(reward=reward, sureness=sureness, goes_on=goes_on, completions=completions, waves=waves)
    ends = stage.stop.waves
    waves[:] = len(ends)
    decide = _deciding(stage, sequences, label, score)
    open_ = np.arange(size)
    for wave, k in enumerate(ends[:-1], 1):
        sure, unsure = decide(k)
        for found, further in ((sure, False), (unsure, True)):
            mine = open_[found[open_]]
            drawn = label[mine, :k], score[mine, :k]
            if len(mine):
                reward[mine] = aggregator.reward(*drawn, sequences.weights[None])[0]
                sureness[mine] = _sureness(sequences, *drawn)
            goes_on[mine], completions[mine], waves[mine] = further, k, wave
        open_ = open_[~(sure | unsure)[open_]]
    return _Ended(reward=reward, sureness=sureness, goes_on=goes_on, completions=completions, waves=waves)


def _sureness(sequences: Sequences, label: IntArray, score: FloatArray) -> FloatArray:
    if isinstance(sequences.aggregator, Sure):
        return sequences.aggregator.sureness(label, score, sequences.weights)
    return np.full(len(label), np.nan)


def _deciding(
    stage: Arm, sequences: Sequences, label: IntArray, score: FloatArray
) -> Callable[[int], tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Return a function: completions drawn -> which rows end with an answer, and which go on to the next stage."""
    aggregator, stop, n = sequences.aggregator, stage.stop, stage.n
    assert stop is not None
    never = np.zeros(len(label), dtype=bool)
    if not (isinstance(aggregator, Stoppable) and aggregator.settling(2) is not None):  # the best completion counts
        value = np.where(np.isnan(score).any(axis=2), -np.inf, score @ sequences.weights)
        best = np.maximum.accumulate(value, axis=1)
        enough = least_sure(stage.then) if stage.then is not None else stop.threshold
        return lambda k: (never if enough is None else best[:, k - 1] >= enough, never)
    voted = np.where(np.isnan(score).any(axis=2), -1, label)
    dense, credit = numbered_answers(voted, np.nan_to_num(score[:, :, 0]))
    tally = VoteTally(dense, credit.shape[1])

    def decide(k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        _, votes, second, _ = tally.at(k)
        settled = tally.settled(k, n)
        if stage.then is not None:  # as `deciding.decided`
            below = least_sure(stage.then)
            sure = settled & (votes / n >= below)
            return sure, never if stage.then.weight else ~sure & ((votes + n - k) / n < below)
        if stop.confidence is not None:
            settled = settled | (votes >= votes_needed(n, stop.confidence)[second])
        return settled, never

    return decide
