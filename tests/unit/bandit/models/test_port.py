"""Predictions of rewards beyond the number drawn: exact values, monotony, and odd data."""

from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Modelled
from iapo_dspy.bandit.cells import Cells, ballots
from iapo_dspy.bandit.models.exact import best_of_n_rewards, majority_vote_rewards
from iapo_dspy.bandit.models.port import CellPredictions, Predictions
from iapo_dspy.bandit.models.votes import VotePredictor
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_categorical
from iapo_dspy.types import FloatArray, IntArray, Pulls
from tests.support.draws import observe

NAN = float("nan")
MV, BEST = MajorityVoteAggregator(), BestOfNAggregator()


def grid(p: int, v: int) -> tuple[IntArray, IntArray]:
    """Prompt and query of each cell, every prompt on every query."""
    return np.tile(np.arange(p), v), np.repeat(np.arange(v), p)


def every_cell(p: int, v: int, m: int) -> list[tuple[int, int, int]]:
    prompt, query = grid(p, v)
    return [(int(a), int(b), m) for a, b in zip(prompt, query, strict=True)]


def predict(cells: Cells, aggregator: Modelled, max_n: int, weights: FloatArray | None = None) -> Predictions:
    rows = np.ones((1, cells.score.shape[1])) if weights is None else weights
    found = aggregator.model(rows, cells.n_prompts, max_n).predict(cells)
    assert isinstance(found, CellPredictions)
    return found.dense(cells)


def holey() -> tuple[Cells, FloatArray]:
    """Cells with 1 to 3 completions, and cells without any."""
    rng = np.random.default_rng(0)
    pulls = [(p, x, int(rng.integers(1, 4))) for p in range(4) for x in range(9) if rng.random() < 0.7]
    total = sum(m for _, _, m in pulls)
    return Cells.of([observe(pulls, rng.random(total) < 0.6)], 5, 1), rng.random((25, 3))


# --- predictions beyond the number drawn ---


def test_votes_are_foretold_at_scales_above_the_number_drawn() -> None:
    recording = synthetic_bernoulli(4, n_prompts=8, n_queries=300)
    pulls = Pulls(*np.array(every_cell(8, 300, 3)).T)
    cells = Cells.of([recording.environment(1).pull(pulls)], 8, 1)
    exact = recording.exact(16).reward[0]
    found = predict(cells, MV, 16)
    assert found.given_all.shape == found.given_others.shape == (1, 8, 300, 16)
    # Prompts are near their truth on average, at 3 and at 16; sampling alone is off by .02 per prompt.
    kinds = np.abs(found.given_all[0].mean(axis=1) - exact.mean(axis=1))  # [P, N]
    assert kinds[:, 2].max() < 0.06 and np.median(kinds[:, 15]) < 0.07
    # Query by query: far better than saying the prompt's mean, and than what was drawn.
    share = np.add.reduceat(cells.score[:, 0], cells.start).reshape(300, 8).T / 3
    error = np.mean((found.given_all[0, :, :, 15] - exact[:, :, 15]) ** 2)
    assert error < 0.75 * np.mean((share - exact[:, :, 15]) ** 2)
    assert error < 0.75 * np.mean((exact[:, :, 15] - exact[:, :, 15].mean(axis=1, keepdims=True)) ** 2)


def test_rivals_shares_matter_for_votes() -> None:
    """.4 against .6 on one wrong answer loses the vote; against .6 spread over many it wins."""
    rng = np.random.default_rng(2)
    v, m = 300, 8
    for spread, law in ((1, [0.4, 0.6]), (6, [0.4] + [0.1] * 6)):
        label = rng.choice(len(law), size=v * m * 2, p=law)
        cells = Cells.of([observe(every_cell(2, v, m), label == 0, label)], 2, 1)
        at32 = predict(cells, MV, 32).given_all[0].mean(axis=1)[:, 31]
        credit = np.eye(len(law))[:1]
        exact = majority_vote_rewards(np.array([law]), credit, 32)[0, 31]
        np.testing.assert_allclose(at32, exact, atol=0.12)
        assert (at32 < 0.3).all() if spread == 1 else (at32 > 0.8).all()


def test_the_strongest_rivals_share_comes_from_how_often_wrong_answers_agree() -> None:
    """Wrong answers 1/2, 1/4, 1/8, ..: two of them agree with probability 1/3, and the strongest has a half."""
    label = np.repeat(np.arange(1, 11), 2 ** np.arange(9, -1, -1))
    label = np.concatenate([label, [0] * 77])
    cells = Cells.of([observe([(0, 0, len(label))], label == 0, label)], 1, 1)
    found = VotePredictor(1, 1)._top_share(cells, ballots(cells), np.array([0]))
    assert found[0] == pytest.approx(0.5, abs=0.01)


def test_whether_wrong_answers_agree_is_known_from_the_prompts_relatives() -> None:
    """Prompts 0 to 5 have decoding 0, whose mistakes are always the same; 6 to 11 have decoding 1, with many mistakes.

    Prompts 5 and 11 gave one completion for each query, which says nothing of how their mistakes agree.
    """
    rng = np.random.default_rng(4)
    pulls = [(p, x, 1 if p % 6 == 5 else 4) for x in range(30) for p in range(12)]
    prompt = np.repeat([p for p, _, _ in pulls], [m for _, _, m in pulls])
    label = np.where(rng.random(len(prompt)) < 0.3, 0, np.where(prompt < 6, 1, rng.integers(1, 11, len(prompt))))
    cells = Cells.of([observe(pulls, label == 0, label)], 12, 1)
    parts = np.stack([np.arange(12) % 6, np.arange(12) // 6], axis=1)
    shares = [
        VotePredictor(12, 8, parts=labels)._top_share(cells, ballots(cells), np.zeros(30, dtype=int)).mean(axis=1)
        for labels in (None, parts)
    ]
    assert shares[0][5] == pytest.approx(shares[0][11])
    assert shares[1][5] > 1.5 * shares[1][11]


def test_parts_reach_the_model_of_scores() -> None:
    """Of 4 x 3 prompts whose levels add, the last was never drawn: it is as good as its parts."""
    rng = np.random.default_rng(6)
    parts = np.indices((4, 3)).reshape(2, -1).T
    theta = np.array([0.1, 0.3, 0.5, 0.7])[parts[:, 0]] + np.array([-0.08, 0.0, 0.15])[parts[:, 1]]
    pulls = [(p, x, 3) for x in range(80) for p in range(11)]
    score = rng.random(3 * len(pulls)) < np.repeat(theta[[p for p, _, _ in pulls]], 3)
    cells = Cells.of([observe(pulls, score)], 12, 1)
    values = []
    for labels in (None, parts):
        found = BEST.model(np.ones((1, 1)), 12, 4, labels).predict(cells)
        values.append(found.elsewhere[0].block(np.array([11]))[0, :, 0].mean())
    assert theta[11] == pytest.approx(0.85)
    assert values[0] < 0.6
    assert values[1] == pytest.approx(0.85, abs=0.1)


def test_few_values_are_foretold_under_every_row_of_weights() -> None:
    recording = synthetic_categorical(2, n_prompts=6, n_queries=200)
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    cells = Cells.of([recording.environment(1).pull(Pulls(*np.array(every_cell(6, 200, 4)).T))], 6, 2)
    found = predict(cells, BEST, 16, rows)
    for row, weights in enumerate(rows):
        exact = np.stack([best_of_n_rewards(recording.outcomes[p] @ weights, recording.probs[p], 16) for p in range(6)])
        off = found.given_all[row].mean(axis=1) - exact.mean(axis=1)
        assert np.abs(off[:, :4]).max() < 0.25  # of 4
        assert np.abs(off[:, 15]).max() < 0.5


def test_many_values_are_cut_at_quantiles() -> None:
    rng = np.random.default_rng(3)
    level = np.array([0.0, 0.5, 1.0])
    v, m = 200, 6
    prompt = np.repeat(grid(3, v)[0], m)
    cells = Cells.of([observe(every_cell(3, v, m), level[prompt] + rng.normal(size=3 * v * m))], 3, 1)
    found = predict(cells, BEST, 8).given_all[0].mean(axis=1)
    best_of = np.array([rng.normal(size=(20_000, n)).max(axis=1).mean() for n in range(1, 9)])
    np.testing.assert_allclose(found, level[:, None] + best_of, atol=0.25)
    np.testing.assert_allclose(found[:, 0], level, atol=0.12)


def test_predictions_grow_with_the_number_of_tries() -> None:
    cells, _ = holey()
    found = predict(cells, BEST, 6)
    assert (np.diff(found.given_all, axis=3) >= -1e-12).all() and (np.diff(found.given_others, axis=3) >= -1e-12).all()


# --- odd data ---


def test_new_values_are_taken_in_after_a_first_batch_without_any() -> None:
    """Success is rare: the first batch had none. The second one must not be blind to it."""
    rng = np.random.default_rng(5)
    model = BEST.model(np.ones((1, 1)), 2, 8)
    first = observe(every_cell(2, 4, 2), np.zeros(16))
    np.testing.assert_allclose(model.predict(Cells.of([first], 2, 1)).given_all, 0.0)
    later = [(p, x, 8) for p in range(2) for x in range(4, 104)]
    score = rng.random(1_600) < np.repeat([0.3, 0.1], 800)
    cells = Cells.of([first, observe(later, score)], 2, 1)
    found = model.predict(cells).dense(cells).given_all[0].mean(axis=1)
    np.testing.assert_allclose(found[:, 0], [0.3, 0.1], atol=0.06)
    np.testing.assert_allclose(found[:, 7], 1 - np.array([0.7, 0.9]) ** 8, atol=0.12)


@pytest.mark.parametrize(
    "aggregator", [MV, BEST, MajorityVoteAggregator(floor=-1.0), BestOfNAggregator(floors=(-1.0,))]
)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 4), (3, 1, 2), (1, 6, 1), (2, 5, 3)])
@pytest.mark.parametrize(
    "kind", ["all failed", "constant", "nobody right", "always right", "mixed", "graded", "some failed"]
)
def test_odd_data_has_finite_predictions_within_range(aggregator: Modelled, shape, kind: str) -> None:
    p, v, m = shape
    rng = np.random.default_rng(0)
    total = p * v * m
    right = rng.integers(0, 2, total)
    score, label = {
        "all failed": (np.full(total, NAN), np.full(total, -1)),
        "constant": (np.full(total, 0.5), np.zeros(total)),
        "nobody right": (np.zeros(total), rng.integers(1, 4, total)),
        "always right": (np.ones(total), np.zeros(total)),
        "mixed": (right, 1 - right),
        "graded": (np.array([1.0, 0.6, 0.2])[right], right),
        "some failed": (np.where(rng.random(total) < 0.4, NAN, right), 1 - right),
    }[kind]
    cells = Cells.of([observe(every_cell(p, v, m), score, label)], p + 1, 1)  # one prompt was never drawn
    with np.errstate(all="raise", under="ignore"):
        found = predict(cells, aggregator, 5)
    floor = -1.0 if aggregator not in (MV, BEST) else 0.0
    for reading in (found.given_all, found.given_others):
        assert reading.shape == (1, p + 1, v, 5) and np.isfinite(reading).all()
        assert reading.min() >= min(floor, 0.0) - 1e-9 and reading.max() <= 1 + 1e-9
    if kind == "all failed" and aggregator not in (MV, BEST):
        if isinstance(aggregator, BestOfNAggregator):
            np.testing.assert_allclose(found.given_all, floor)
        else:
            assert found.given_all[:, :p].mean() < 0


def test_queries_without_a_right_answer_are_taken_for_hard_and_always_right_ones_for_easy() -> None:
    pulls = every_cell(2, 40, 4)
    wrong = Cells.of([observe(pulls, np.zeros(320), np.tile([1, 1, 2, 1], 80))], 2, 1)
    right = Cells.of([observe(pulls, np.ones(320), np.zeros(320, int))], 2, 1)
    assert predict(wrong, MV, 8).given_all.max() < 0.1 < 0.9 < predict(right, MV, 8).given_all.min()


@pytest.mark.parametrize("worth", [0.7, 3.0])
def test_predictions_of_votes_grow_with_the_worth_of_a_right_answer(worth: float) -> None:
    """A mean of equal scores is off by rounding: that is still the best answer, and not one that was never given."""
    rng = np.random.default_rng(7)
    right = rng.random(3 * 30 * 3) < 0.6
    pulls = every_cell(3, 30, 3)
    one = predict(Cells.of([observe(pulls, right, 1 - right)], 3, 1), MV, 8)
    other = predict(Cells.of([observe(pulls, worth * right, 1 - right)], 3, 1), MV, 8)
    np.testing.assert_allclose(other.given_all, worth * one.given_all, rtol=1e-9)
    np.testing.assert_allclose(other.given_others, worth * one.given_others, rtol=1e-9)
