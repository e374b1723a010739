"""The latent-trait model and its predictions: known parameters, a naive loop, exact values, and odd data."""

from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Modelled
from iapo_dspy.bandit.cells import Cells, ballots
from iapo_dspy.bandit.models.exact import best_of_n_rewards, majority_vote_rewards
from iapo_dspy.bandit.models.port import Predictions
from iapo_dspy.bandit.models.traits import LOGITS, THETA, TraitModel, Traits, expected
from iapo_dspy.bandit.models.votes import VotePredictor
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_categorical
from iapo_dspy.types import FloatArray, IntArray, Pulls
from tests.support.draws import observe

NAN = float("nan")
MV, BEST = MajorityVoteAggregator(), BestOfNAggregator()


def sigmoid(x: FloatArray) -> FloatArray:
    return 1.0 / (1.0 + np.exp(-x))


def grid(p: int, v: int) -> tuple[IntArray, IntArray]:
    """Prompt and query of each cell, every prompt on every query."""
    return np.tile(np.arange(p), v), np.repeat(np.arange(v), p)


def every_cell(p: int, v: int, m: int) -> list[tuple[int, int, int]]:
    prompt, query = grid(p, v)
    return [(int(a), int(b), m) for a, b in zip(prompt, query, strict=True)]


def predict(cells: Cells, aggregator: Modelled, max_n: int, weights: FloatArray | None = None) -> Predictions:
    rows = np.ones((1, cells.score.shape[1])) if weights is None else weights
    return aggregator.model(rows, cells.n_prompts, max_n).predict(cells)


# --- the model ---


@pytest.fixture(scope="module")
def world() -> tuple[TraitModel, Traits, FloatArray, dict[str, FloatArray]]:
    rng = np.random.default_rng(3)
    true = {
        "level": np.array([-1.5, -0.5, 0.0, 0.5, 1.0, 1.5]),
        "slope": np.array([0.3, 2.5, 1.0, 1.5, 2.0, 0.8]),
        "sd": np.array([0.4, 0.4, 1.5, 0.4, 0.8, 1.2]),
    }
    v, m = 800, 12
    difficulty = rng.normal(size=v)
    noise = rng.normal(size=(6, v))
    theta = sigmoid(true["level"][:, None] + true["slope"][:, None] * difficulty + true["sd"][:, None] * noise)
    prompt, query = grid(6, v)
    count = rng.binomial(m, theta[prompt, query])
    model = TraitModel(1, 6)
    for _ in range(6):
        traits = model.fit(prompt, query, v, count[None], np.full(6 * v, m))
    return model, traits, difficulty, true


def test_known_parameters_come_back(world) -> None:
    model, traits, difficulty, true = world
    nodes = np.linspace(-2.6, 2.6, traits.query.shape[2])
    centre = model.weights[0] @ nodes  # the learnt law of difficulties has a mean and a width of its own
    width = np.sqrt(model.weights[0] @ (nodes - centre) ** 2)
    np.testing.assert_allclose(model.level[0] + centre * model.slope[0], true["level"], atol=0.25)
    np.testing.assert_allclose(width * model.slope[0], true["slope"], atol=0.25)
    np.testing.assert_allclose(np.sqrt(model.variance[0]), true["sd"], atol=0.3)
    np.testing.assert_allclose(model.weights.sum(axis=1), 1.0)
    posterior = np.exp(traits.query[0] - traits.query[0].max(axis=1, keepdims=True))
    mean = posterior @ nodes / posterior.sum(axis=1)
    assert np.corrcoef(mean, difficulty)[0, 1] > 0.9


def test_the_law_of_a_cell_is_a_law_and_evidence_its_likelihood(world) -> None:
    _, traits, _, _ = world
    np.testing.assert_allclose(traits.law.sum(axis=3), 1.0)
    np.testing.assert_allclose(traits.evidence, np.einsum("bpdt,ut->bpdu", traits.law, traits.likelihood))
    # 12 kinds of cells at most, one for each number of right answers out of 12.
    assert len(traits.likelihood) <= 13 and traits.kind.max() == len(traits.likelihood) - 1


def naive(traits: Traits, event: int, cells: Cells, table: FloatArray) -> FloatArray:
    """What `expected` says, one cell and one sum at a time."""
    law = traits.law[event]
    kinds = {(int(p), int(x)): int(k) for p, x, k in zip(cells.prompt, cells.query, traits.kind[event], strict=True)}
    out = np.zeros((2, len(law), cells.n_visited, table.shape[1]))
    for p in range(len(law)):
        for x in range(cells.n_visited):
            difficulty = np.exp(traits.query[event, x] - traits.query[event, x].max())
            kind = kinds.get((p, x))
            if kind is not None:
                difficulty = difficulty / (law[p] @ traits.likelihood[kind])
            prior = sum(w * row for w, row in zip(difficulty / difficulty.sum(), law[p], strict=True))
            posterior = prior if kind is None else prior * traits.likelihood[kind]
            out[0, p, x] = posterior / posterior.sum() @ table
            out[1, p, x] = prior @ table
    return out


def holey() -> tuple[Cells, FloatArray]:
    """Cells with 1 to 3 completions, and cells without any."""
    rng = np.random.default_rng(0)
    pulls = [(p, x, int(rng.integers(1, 4))) for p in range(4) for x in range(9) if rng.random() < 0.7]
    total = sum(m for _, _, m in pulls)
    return Cells.of([observe(pulls, rng.random(total) < 0.6)], 5, 1), rng.random((25, 3))


def fit(cells: Cells, model: TraitModel | None = None) -> Traits:
    right = np.add.reduceat(cells.score[:, 0] > 0.5, cells.start, dtype=np.int64)
    model = model or TraitModel(1, cells.n_prompts)
    return model.fit(cells.prompt, cells.query, cells.n_visited, right[None], cells.size)


def test_expectations_are_those_of_a_naive_loop() -> None:
    cells, table = holey()
    traits = fit(cells)
    slow = naive(traits, 0, cells, table)
    np.testing.assert_allclose(expected(traits, 0, cells, table, np.arange(cells.n_visited)), slow, rtol=1e-9)
    some = np.array([1, 4, 7])
    np.testing.assert_allclose(expected(traits, 0, cells, table, some), slow[:, :, some], rtol=1e-9)
    nobody = slow[:, 4]  # a prompt without a draw: both readings are the same
    np.testing.assert_allclose(nobody[0], nobody[1])


class Frozen(TraitModel):
    """A model whose parameters do not learn."""

    def _maximise(self, weight: FloatArray, present: FloatArray) -> None:
        pass

    def fit(self, *args, **settings) -> Traits:
        self.weights = np.exp(-(np.linspace(-2, 2, self.weights.shape[1]) ** 2))[None]
        self.weights /= self.weights.sum()
        weights = self.weights
        traits = super().fit(*args, **settings)
        self.weights = weights
        law, evidence = self._evidence(traits.likelihood)
        query = np.log(weights)[:, None] + np.zeros_like(traits.query)
        for g, (p, x) in enumerate(zip(args[0], args[1], strict=True)):
            query[:, x] += np.log(evidence[:, p, :, traits.kind[0, g]])
        return Traits(law=law, kind=traits.kind, likelihood=traits.likelihood, evidence=evidence, query=query)


def test_what_others_say_does_not_know_the_cells_own_draws() -> None:
    """With the parameters frozen, changing one cell's draws changes every reading but its own `given_others`."""
    readings = []
    for right in (0, 4):
        score = np.tile([1.0, 1.0, 1.0, 0.0], 12)
        score[:4] = np.arange(4) < right  # the cell of prompt 0 on query 0
        cells = Cells.of([observe([(p, x, 4) for x in range(4) for p in range(3)], score)], 3, 1)
        traits = fit(cells, Frozen(1, 3))
        readings.append(expected(traits, 0, cells, THETA[:, None], np.arange(4)))
    none, every = readings[0][..., 0], readings[1][..., 0]
    assert none[1, 0, 0] == pytest.approx(every[1, 0, 0], rel=1e-9)
    assert every[0, 0, 0] > none[0, 0, 0] + 0.1  # its own posterior
    assert (every[1, 1:, 0] > none[1, 1:, 0] + 0.01).all()  # other prompts on that query
    np.testing.assert_allclose(every[:, :, 1:], none[:, :, 1:], rtol=1e-9)  # other queries


def test_a_prompt_that_shares_nothing_is_told_from_one_that_shares_everything() -> None:
    rng = np.random.default_rng(1)
    v, m = 400, 6
    difficulty = rng.normal(size=v)
    theta = sigmoid(np.stack([3 * difficulty, 3 * difficulty, 3 * difficulty, 3 * rng.normal(size=v)]))
    prompt, query = grid(4, v)
    model = TraitModel(1, 4)
    model.fit(prompt, query, v, rng.binomial(m, theta[prompt, query])[None], np.full(4 * v, m))
    assert model.slope[0, :3].min() > 5 * model.slope[0, 3]
    assert model.variance[0, 3] > 3 * model.variance[0, :3].max()


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
    found = VotePredictor._top_share(cells, ballots(cells), np.array([0]))
    assert found[0] == pytest.approx(0.5, abs=0.01)


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
    """Success is rare: nobody had any in the first batch. The second one must not be blind to it."""
    rng = np.random.default_rng(5)
    model = BEST.model(np.ones((1, 1)), 2, 8)
    first = observe(every_cell(2, 4, 2), np.zeros(16))
    np.testing.assert_allclose(model.predict(Cells.of([first], 2, 1)).given_all, 0.0)
    later = [(p, x, 8) for p in range(2) for x in range(4, 104)]
    score = rng.random(1_600) < np.repeat([0.3, 0.1], 800)
    found = model.predict(Cells.of([first, observe(later, score)], 2, 1)).given_all[0].mean(axis=1)
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


def test_nobody_right_is_taken_for_hard_and_always_right_for_easy() -> None:
    pulls = every_cell(2, 40, 4)
    wrong = Cells.of([observe(pulls, np.zeros(320), np.tile([1, 1, 2, 1], 80))], 2, 1)
    right = Cells.of([observe(pulls, np.ones(320), np.zeros(320, int))], 2, 1)
    assert predict(wrong, MV, 8).given_all.max() < 0.1 < 0.9 < predict(right, MV, 8).given_all.min()


@pytest.mark.parametrize("worth", [0.7, 3.0])
def test_predictions_of_votes_grow_with_the_worth_of_a_right_answer(worth: float) -> None:
    """A mean of equal scores is off by rounding: that is still the best answer, and not one nobody has given."""
    rng = np.random.default_rng(7)
    right = rng.random(3 * 30 * 3) < 0.6
    pulls = every_cell(3, 30, 3)
    one = predict(Cells.of([observe(pulls, right, 1 - right)], 3, 1), MV, 8)
    other = predict(Cells.of([observe(pulls, worth * right, 1 - right)], 3, 1), MV, 8)
    np.testing.assert_allclose(other.given_all, worth * one.given_all, rtol=1e-9)
    np.testing.assert_allclose(other.given_others, worth * one.given_others, rtol=1e-9)


def test_the_grid_is_symmetric_and_reaches_certainty() -> None:
    np.testing.assert_allclose(THETA + THETA[::-1], 1.0)
    assert THETA[0] < 0.003 and len(LOGITS) == len(THETA)
