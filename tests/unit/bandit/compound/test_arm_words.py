"""Arms in words: what is drawn, and exactly when a call goes on."""

from __future__ import annotations

import re

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.aggregators.tally import TallyAggregator
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.types import Arm, Escalation, Share, Stop

VOTE, BEST = MajorityVoteAggregator(), BestOfNAggregator()
WEIGHTED, MIXED = TallyAggregator(floors=(0.0, 0.0), weight=1), TallyAggregator(floors=(0.0, 0.0), style=(1,))


def then(below: float, arm: Arm | None = None, weight: int = 0) -> Escalation:
    return Escalation(below=below, arm=arm, weight=weight)


@pytest.mark.parametrize(
    ("arm", "aggregator", "words"),
    [
        (Arm(2, 8), VOTE, "8 of prompt 2"),
        (Arm(2, 8, Stop(waves=(4, 8), confidence=0.9)), VOTE, "up to 8 of prompt 2"),
        (Arm(1, 8, beside=(Share(prompt=4, n=8),)), VOTE, "8 of prompt 1 and 8 of prompt 4 together"),
        (
            Arm(1, 2, beside=(Share(prompt=4, n=3), Share(prompt=0, n=1))),
            BEST,
            "2 of prompt 1, 3 of prompt 4 and 1 of prompt 0 together",
        ),
        (
            Arm(2, 4, Stop(waves=(3, 4)), then=then(0.625, Arm(5, 16))),
            VOTE,
            "up to 4 of prompt 2; 16 of prompt 5 instead where fewer than 3 of 4 agree",
        ),
        (
            Arm(0, 1, then=then(0.5, Arm(1, 3, then=then(1.0, Arm(2, 8, then=then(0.6)), 1)))),
            VOTE,
            "1 of prompt 0; 3 of prompt 1 instead where it has no answer; 8 of prompt 2 besides where not all 3 agree; "
            "no answer where fewer than 7 of 11 agree",
        ),
        (
            Arm(0, 4, then=then(0.5, Arm(1, 2, then=then(0.5)), 3)),
            MIXED,
            "4 of prompt 0; 2 of prompt 1 besides, each counted 3 times, where fewer than 2 of 4 agree; "
            "no answer where fewer than 5 of 10 agree",
        ),
        (
            Arm(0, 4, then=then(0.625, Arm(1, 2))),
            WEIGHTED,
            "4 of prompt 0; 2 of prompt 1 instead where the leading answer has less than 0.625 of the weight of 4",
        ),
        (
            Arm(0, 4, then=then(0.8, Arm(1, 1, then=then(0.25)))),
            BEST,
            "4 of prompt 0; 1 of prompt 1 instead where the best one scores less than 0.8; "
            "no answer where it scores less than 0.25",
        ),
        (
            Arm(0, 4, then=then(0.8, Arm(1, 1))),
            None,
            "4 of prompt 0; 1 of prompt 1 instead where they are less sure than 0.8",
        ),
    ],
)
def test_arms_in_words(arm: Arm, aggregator: Aggregator | None, words: str) -> None:
    assert arm_in_words(arm, aggregator) == words


@pytest.mark.parametrize("n", [2, 3, 5, 7, 10])
def test_so_many_agree_exactly_where_the_vote_is_sure(n: int) -> None:
    """The number in the words is the least with which `sureness` does not go on, also where shares are not exact."""
    votes = np.tril(np.ones((n + 1, n), dtype=int), -1) - 1  # row k: k votes for answer 0, and the rest are no votes
    sure = VOTE.sureness(votes, np.ones((n + 1, n, 1)), np.ones(1))
    for below in [k / n for k in range(1, n + 1)] + [(k - 0.5) / n for k in range(1, n + 1)]:
        words = VOTE.doubt(below, n)
        least = n if words == f"not all {n} agree" else int(re.findall(r"fewer than (\d+) of", words)[0])
        assert [s < below for s in sure] == [k < least for k in range(n + 1)]
