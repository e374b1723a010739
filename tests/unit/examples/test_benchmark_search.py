"""The scripted writer of the search benchmark, and the halving that it compares with."""

from __future__ import annotations

import numpy as np
from benchmark_search import Growing, Writer, halving

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.algorithms.auto import Ranking
from iapo_dspy.bandit.outcome import Wish
from iapo_dspy.environments.port import drive
from tests.support.draws import Coins, problem_of

MV = MajorityVoteAggregator()


def test_the_writer_brings_the_nearest_prompts_to_its_parents_quality() -> None:
    quality = np.array([0.1, 0.5, 0.2, 0.9, 0.45])
    whole = problem_of(MV, n_prompts=5)
    writer = Writer(whole, quality, 2, lambda parent: parent + 0.2, np.random.default_rng(0))
    outcome = Ranking(writer.problem).outcome(complete=True)
    wish = Wish(outcome=outcome, front=np.zeros((1, 1)), n=2, generation=0, gain=0.1)
    assert writer.more(wish).n_prompts == 3
    assert writer.order == [2, 4, 1] and writer.parent == [-1, 0, 0]  # .4 is wanted: .45 comes, then .5
    grown = Wish(outcome=outcome, front=np.array([[0.0, 0.0, 3.0]]), n=9, generation=1, gain=0.1)
    problem = writer.more(grown)
    assert writer.order == [2, 4, 1, 3, 0] and problem.parent is not None  # .7 is wanted, and then all are there
    assert problem.parent.tolist() == [-1, 0, 0, 2, 2]


def test_halving_drops_the_worse_half_after_every_round() -> None:
    theta = np.repeat([[0.05], [0.9], [0.5], [0.1], [0.0], [0.0]], 50, axis=1)
    env = Coins(theta)
    outcome = drive(halving(problem_of(MV, n_prompts=5), 600, 0), Growing(env, [4, 0, 1, 2, 3]))
    assert [np.unique(pulls.prompt).tolist() for pulls in env.asked] == [[0, 1, 2, 3, 4], [1, 2, 3], [1, 2]]
    assert outcome.policy.arms[0].prompt == 2 and 580 <= outcome.spent <= 600
