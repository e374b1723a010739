"""Classes of answers are led by the first drawn."""

from __future__ import annotations

from typing import Any

import dspy
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy import MajorityVote
from iapo_dspy.scoring.answers.classes import Classes, grouped
from iapo_dspy.scoring.answers.equality import Pairs
from iapo_dspy.scoring.scores import Scored
from tests.support.selecting import select


def chosen(vote: MajorityVote, *answers: Any) -> Any:
    return select(vote, {}, [dspy.Prediction(answer=a) for a in answers], np.ones(1))


def test_equality_that_is_not_transitive_is_clustered_by_leaders_in_order_of_drawing() -> None:
    vote = MajorityVote("answer", tolerance=1.0)
    assert chosen(vote, 0, 1, 2).votes == {"0": 2, "2": 1}  # 1 joins 0, and 2 is too far from 0
    assert chosen(vote, 1, 0, 2).votes == {"1": 3}
    assert chosen(vote, 2, 1, 0).votes == {"2": 2, "0": 1}
    assert chosen(vote, 0, 2, 1).votes == {"0": 2, "2": 1}  # the first leader it equals, not the nearest


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=9), st.integers(0, 4))
def test_leader_clustering_against_its_definition(values: list[int], limit: int) -> None:
    pairs = Pairs(lambda a, b: abs(a - b) <= limit)
    labels, failures = grouped([Scored(answer=str(v), value=v) for v in values], Classes(pairs))
    leaders: list[int] = []
    for value, label in zip(values, labels, strict=True):
        equal = [i for i, leader in enumerate(leaders) if abs(leader - value) <= limit]
        assert label == (equal[0] if equal else len(leaders))
        if not equal:
            leaders.append(value)
    assert not failures


def test_a_tolerant_vote_is_settled_by_classes_and_not_by_keys() -> None:
    vote = MajorityVote("answer", tolerance=0.1)
    read = [vote.read({}, dspy.Prediction(answer=a)) for a in (1.0, 1.05, 0.95)]
    assert vote.settled(read, np.ones(1), 2) and not MajorityVote("answer").settled(read, np.ones(1), 2)
