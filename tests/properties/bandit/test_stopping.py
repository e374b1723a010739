"""Stopping early does in arrays what a deployed call does, and where it is exact it never changes an answer."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.stopping.replays import VoteTally, best_of_ends, vote_ends
from iapo_dspy.bandit.stopping.rules import reached
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import BestOfN, MajorityVote, Objective
from iapo_dspy.types import Stop

VOTE = MajorityVote("answer")
ONE = np.ones(1)
answers = st.lists(st.integers(-1, 3), min_size=1, max_size=12)


@st.composite
def waves(draw: Any, n: int) -> tuple[int, ...]:
    """Some ascending waves that end at n."""
    return (*sorted(draw(st.sets(st.integers(1, n - 1)))), n) if n > 1 else (1,)


def votes(drawn: list[int]) -> list[Scored]:
    return [Scored(failure="no answer") if a < 0 else Scored(answer=f"answer {a}") for a in drawn]


def scores(drawn: list[float | None]) -> list[Scored]:
    return [Scored(failure="failed") if v is None else Scored(scores=(v,)) for v in drawn]


def best_of(top: float) -> BestOfN:
    return BestOfN([Objective("one", lambda example, pred: 0.0, bounds=(0.0, top))])


def call(strategy: Any, read: list[Scored], stop: Stop) -> tuple[int | None, int, int]:
    """What `program.call.Call` does: the chosen position, completions and waves."""
    for wave, k in enumerate(stop.waves, 1):
        selection = strategy.choose(read[:k], ONE)
        if k < stop.waves[-1]:
            best = selection.utilities[selection.index] if selection and selection.utilities else None
            ballots = list((selection.votes or {}).values()) if selection else []
            ends = strategy.settled(read[:k], ONE, stop.waves[-1] - k)
            if not ends and (selection is None or reached(stop, ballots, best) is None):
                continue
        return (selection.index if selection else None), k, wave
    raise AssertionError


@settings(max_examples=400, deadline=None)
@given(st.data(), answers)
def test_a_settled_vote_has_the_winner_of_all_completions(data: st.DataObject, drawn: list[int]) -> None:
    read = votes(drawn)
    stop = Stop(waves=data.draw(waves(len(drawn))))
    full = VOTE.choose(read, ONE)
    assert call(VOTE, read, stop)[0] == (full.index if full else None)
    for k in range(1, len(read)):  # and it is settled only where nothing that may come changes it
        if VOTE.settled(read[:k], ONE, len(read) - k):
            for other in range(-1, 5):
                rest = votes([other] * (len(read) - k))
                assert VOTE.choose([*read[:k], *rest], ONE).index == VOTE.choose(read[:k], ONE).index  # type: ignore[union-attr]


@settings(max_examples=200, deadline=None)
@given(answers)
def test_a_vote_is_settled_as_soon_as_nothing_can_change_it(drawn: list[int]) -> None:
    """No weaker rule is exact: where it is not settled, some answer for all that is left wins instead."""
    read = votes(drawn)
    for left in range(1, 6):
        leader = VOTE.choose(read, ONE)
        if leader is None or VOTE.settled(read, ONE, left):
            continue
        others = [VOTE.choose([*read, *votes([a] * left)], ONE) for a in range(5)]
        assert any(o is not None and o.index != leader.index for o in others)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.none() | st.sampled_from([0.0, 0.3, 0.7, 1.0]), min_size=1, max_size=10))
def test_a_settled_best_of_n_has_the_winner_of_all_completions(data: st.DataObject, drawn: list[float | None]) -> None:
    strategy, read = best_of(1.0), scores(drawn)
    stop = Stop(waves=data.draw(waves(len(drawn))))
    full = strategy.choose(read, ONE)
    found, completions, _ = call(strategy, read, stop)
    assert found == (full.index if full else None)
    firsts = [k for k in stop.waves if 1.0 in drawn[:k]]
    assert completions == (firsts[0] if firsts else len(drawn))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.data(), answers, st.sampled_from([None, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]))
def test_votes_in_arrays_end_like_a_deployed_call(
    data: st.DataObject, drawn: list[int], confidence: float | None
) -> None:
    stop = Stop(waves=data.draw(waves(len(drawn))), confidence=confidence)
    extra = data.draw(answers)  # a tally may be longer than the rule's N
    credit = np.array([[1.0, 0.25, 0.0, 0.5]])
    ended = vote_ends(VoteTally(np.array([drawn + extra]), 4), credit, (stop,), floor=-1.0)
    winner, completions, count = call(VOTE, votes(drawn), stop)
    full = VOTE.choose(votes(drawn), ONE)
    worth = [-1.0 if i is None else credit[0, drawn[i]] for i in (winner, full.index if full else None)]
    assert (ended.completions[0, 0], ended.waves[0, 0]) == (completions, count)
    assert ended.gain[0, 0] == pytest.approx(worth[0] - worth[1])
    if confidence is None:
        assert ended.gain[0, 0] == 0.0


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.data(),
    st.lists(st.none() | st.sampled_from([0.0, 0.3, 0.7, 1.0]), min_size=1, max_size=10),
    st.none() | st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0]),
)
def test_best_of_n_in_arrays_ends_like_a_deployed_call(
    data: st.DataObject, drawn: list[float | None], threshold: float | None
) -> None:
    stop = Stop(waves=data.draw(waves(len(drawn))), threshold=threshold)
    value = np.array([[-np.inf if v is None else v for v in drawn]])
    ended = best_of_ends(value, (stop,), floor=-1.0)
    _, completions, count = call(best_of(9.0), scores(drawn), stop)
    best = [-1.0 if np.isneginf(v) else v for v in accumulate(value[0], max)]
    assert (ended.completions[0, 0], ended.waves[0, 0]) == (completions, count)
    assert ended.gain[0, 0] == pytest.approx(best[completions - 1] - best[-1])
