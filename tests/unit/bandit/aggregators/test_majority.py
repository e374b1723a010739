"""Rewards of blocks, against values worked out by hand."""

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator, block_layout
from iapo_dspy.errors import ConfigurationError

NAN = float("nan")


def vote(labels, scores, **options):
    """Reward of one block of all completions under weight 1."""
    score = np.array(scores, dtype=float)[None, :, None]
    return MajorityVoteAggregator(**options).reward(np.array([labels]), score, np.ones((1, 1)))[0, 0]


def exact(labels, gold, **options):
    return vote(labels, [float(s == gold) for s in labels], **options)


def by_scale(aggregator, label, score, weights, max_n):
    """Scale -> rewards of its blocks [C, blocks, G]."""
    layout = block_layout(label.shape[1], max_n)
    parts = np.split(aggregator.blocks(label, score, weights, layout), layout.first[1:], axis=1)
    return dict(enumerate(parts, start=1))


def test_clear_majority_is_worth_its_credit():
    assert exact([7, 7, 3], gold=7) == 1.0
    assert exact([7, 7, 3], gold=3) == 0.0


@pytest.mark.parametrize(
    ("labels", "paper", "half"),
    [
        ([0, 1], 1 / 2, 1 / 2),
        ([0, 1, 2], 1 / 3, 1 / 2),
        ([0, 1, 2, 3], 1 / 4, 1 / 2),
        ([0, 0, 1, 1, 2], 1 / 2, 1 / 2),
        ([1, 2], 0.0, 0.0),
        ([0, 0, 1], 1.0, 1.0),
    ],
)
def test_ties_count_one_over_t_and_half_only_on_request(labels, paper, half):
    assert exact(labels, gold=0) == pytest.approx(paper)
    assert exact(labels, gold=0, ties="half") == pytest.approx(half)


def test_a_winner_is_worth_the_mean_score_of_its_own_completions():
    assert vote([4, 4, 9], [0.2, 0.8, 1.0]) == pytest.approx(0.5)
    assert vote([4, 9], [0.2, 1.0]) == pytest.approx(0.6)
    assert vote([4, 9], [0.2, 1.0], ties="half") == pytest.approx(0.5)


def test_failed_and_unlabelled_completions_cast_no_vote():
    assert vote([5, 5, 2], [NAN, NAN, 1.0]) == 1.0
    assert vote([-1, -1, 2], [0.0, 0.0, 1.0]) == 1.0
    assert vote([5, 2, 2], [1.0, NAN, 0.0]) == 0.5


def test_the_floor_stands_where_there_are_no_votes():
    assert vote([-1, 3], [1.0, NAN]) == 0.0
    assert vote([-1, 3], [1.0, NAN], floor=-0.5) == -0.5


def test_the_first_weight_scales_the_vote():
    reward = MajorityVoteAggregator().reward(
        np.array([[1]]), np.array([[[1.0, 0.3]]]), np.array([[0.5, 9.0], [2.0, 0.0]])
    )
    assert reward[:, 0].tolist() == [0.5, 2.0]


def test_open_answer_sets_vote_like_closed_ones():
    rng = np.random.default_rng(0)
    small = rng.integers(-1, 4, size=(50, 9))
    names = np.array([10**15, 12, 999_999, 77, -1])  # arbitrary integers within a query
    score = (small == 0).astype(float)[:, :, None]
    aggregator = MajorityVoteAggregator()
    closed = aggregator.reward(small, score, np.ones((1, 1)))
    open_set = aggregator.reward(names[small], score, np.ones((1, 1)))
    np.testing.assert_array_equal(closed, open_set)
    assert len(np.unique(closed)) > 2


def test_vote_blocks_are_consecutive_and_disjoint():
    label = np.array([[0, 0, 1, 1, 1, 0, 0]])
    score = (label == 0).astype(float)[:, :, None]
    found = by_scale(MajorityVoteAggregator(), label, score, np.ones((1, 1)), 7)
    blocks = {n: r[0, :, 0].tolist() for n, r in found.items()}
    assert blocks[1] == [1, 1, 0, 0, 0, 1, 1]
    assert blocks[2] == [1, 0, 0.5]  # 00 | 11 | 10 | and one left over
    assert blocks[3] == [1, 0]  # 001 | 110
    assert blocks[4] == [0.5]
    assert blocks[6] == [0.5]
    assert blocks[7] == [1]
    assert list(blocks) == [1, 2, 3, 4, 5, 6, 7]


def test_best_of_n_takes_the_best_weighted_completion():
    score = np.array([[[1.0, 0.0], [0.0, 0.8], [0.6, 0.6]]])
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    reward = BestOfNAggregator().reward(np.zeros((1, 3), dtype=int), score, weights)
    np.testing.assert_allclose(reward[:, 0], [1.0, 0.8, 0.6])


def test_best_of_n_never_picks_a_failure_and_falls_to_the_weighted_floors():
    weights = np.array([[0.25, 0.75]])
    label = np.zeros((2, 2), dtype=int)
    score = np.array([[[NAN, NAN], [-3.0, -1.0]], [[NAN, NAN], [NAN, NAN]]])
    reward = BestOfNAggregator(floors=(-4.0, -8.0)).reward(label, score, weights)
    np.testing.assert_allclose(reward[0], [-1.5, -7.0])
    np.testing.assert_allclose(BestOfNAggregator().reward(label, score, weights)[0], [-1.5, 0.0])


def test_best_of_n_blocks():
    score = np.array([3.0, 1.0, 2.0, 5.0, 4.0])[None, :, None]
    blocks = by_scale(BestOfNAggregator(), np.zeros((1, 5), dtype=int), score, np.array([[1.0], [2.0]]), 3)
    assert blocks[1][0, :, 0].tolist() == [3, 1, 2, 5, 4]
    assert blocks[2][0, :, 0].tolist() == [3, 5]
    assert blocks[3][:, :, 0].tolist() == [[3], [6]]
    assert 4 not in blocks


@pytest.mark.parametrize(
    "aggregator", [MajorityVoteAggregator(), MajorityVoteAggregator(ties="half"), BestOfNAggregator()]
)
def test_blocks_agree_with_reward_at_every_scale(aggregator):
    assert isinstance(aggregator, Aggregator)
    rng = np.random.default_rng(1)
    label = rng.integers(-1, 3, size=(20, 24))
    score = rng.random((20, 24, 2))
    score[rng.random((20, 24)) < 0.2] = NAN
    weights = rng.random((3, 2))
    found = by_scale(aggregator, label, score, weights, 24)
    assert list(found) == list(range(1, 25))
    for n, rewards in found.items():
        assert rewards.shape == (3, 24 // n, 20)
        for b in range(24 // n):
            part = slice(b * n, (b + 1) * n)
            np.testing.assert_allclose(rewards[:, b], aggregator.reward(label[:, part], score[:, part], weights))


def test_layout_cuts_every_scale_into_consecutive_disjoint_blocks():
    layout = block_layout(7, 4)
    pairs = list(zip(layout.start.tolist(), layout.end.tolist(), strict=True))
    assert pairs == [(i, i + 1) for i in range(7)] + [(0, 2), (2, 4), (4, 6), (0, 3), (3, 6), (0, 4)]
    assert layout.first.tolist() == [0, 7, 10, 12]


def test_bad_settings_are_refused():
    with pytest.raises(ConfigurationError, match="floor"):
        MajorityVoteAggregator(floor=NAN)
    with pytest.raises(ConfigurationError, match="ties"):
        MajorityVoteAggregator(ties="thirds")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="floors"):
        BestOfNAggregator(floors=())
    with pytest.raises(ConfigurationError, match="2 floors"):
        BestOfNAggregator(floors=(0.0, 0.0)).check(3)
