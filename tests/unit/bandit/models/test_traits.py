"""The latent-trait model: known parameters come back, and expectations are those of a naive loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.traits import LOGITS, THETA, TraitModel, Traits, difficulties, drawn_cells, of_drawn
from iapo_dspy.types import FloatArray, IntArray
from tests.support.draws import observe


def sigmoid(x: FloatArray) -> FloatArray:
    return 1.0 / (1.0 + np.exp(-x))


def grid(p: int, v: int) -> tuple[IntArray, IntArray]:
    """Prompt and query of each cell, every prompt on every query."""
    return np.tile(np.arange(p), v), np.repeat(np.arange(v), p)


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


def test_a_fit_to_little_goes_on_until_it_is_at_rest() -> None:
    """Single completions say little of how steep prompts are, and plain steps then hardly move."""
    rng = np.random.default_rng(0)
    prompt, query = grid(20, 20)
    level = np.linspace(-1.0, 1.0, 20)  # queries are all alike, so slopes are 0
    count = (rng.random(400) < sigmoid(level)[prompt]).astype(np.int64)[None]
    model = TraitModel(1, 20)
    model.fit(prompt, query, 20, count, np.ones(400, dtype=np.int64))
    assert model.slope.mean() < 0.7  # from 1.5
    before = model.slope.mean()
    for _ in range(5):
        model.fit(prompt, query, 20, count, np.ones(400, dtype=np.int64))
    assert model.slope.mean() == pytest.approx(before, abs=0.15)


def test_the_law_of_a_cell_is_a_law_and_evidence_its_likelihood(world) -> None:
    _, traits, _, _ = world
    np.testing.assert_allclose(traits.law.sum(axis=3), 1.0)
    np.testing.assert_allclose(traits.evidence, np.einsum("bpdt,ut->bpud", traits.law, traits.likelihood))
    # 12 kinds of cells at most, one for each number of right answers out of 12.
    assert len(traits.likelihood) <= 13 and traits.kind.max() == len(traits.likelihood) - 1


def expected(traits: Traits, cells: Cells, table: FloatArray) -> FloatArray:
    """Expectations of a function of theta given all draws, and given all but the cell's own [2, P, V, N]."""
    out = np.empty((2, cells.n_prompts, cells.n_visited, table.shape[1]))
    out[:] = difficulties(traits)[0] @ (traits.law[0] @ table)
    for mine in drawn_cells(traits, cells):
        at = cells.prompt[mine], cells.query[mine]
        posterior, prior, undrawn = of_drawn(traits, cells, mine)
        np.testing.assert_allclose(undrawn[0] @ table, out[0][at])
        out[0][at], out[1][at] = posterior[0] @ table, prior[0] @ table
    return out


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
    np.testing.assert_allclose(expected(traits, cells, table), slow, rtol=1e-9)
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
            query[:, x] += np.log(evidence[:, p, traits.kind[0, g]])
        return replace(traits, law=law, evidence=evidence, query=query)


def test_what_others_say_does_not_know_the_cells_own_draws() -> None:
    """With the parameters frozen, changing one cell's draws changes every reading but its own `given_others`."""
    readings = []
    for right in (0, 4):
        score = np.tile([1.0, 1.0, 1.0, 0.0], 12)
        score[:4] = np.arange(4) < right  # the cell of prompt 0 on query 0
        cells = Cells.of([observe([(p, x, 4) for x in range(4) for p in range(3)], score)], 3, 1)
        traits = fit(cells, Frozen(1, 3))
        readings.append(expected(traits, cells, THETA[:, None]))
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


def test_the_grid_is_symmetric_and_reaches_certainty() -> None:
    np.testing.assert_allclose(THETA + THETA[::-1], 1.0)
    assert THETA[0] < 0.003 and len(LOGITS) == len(THETA)


def additive(q: int, m: int, seed: int) -> tuple[FloatArray, IntArray, tuple[IntArray, IntArray, IntArray, IntArray]]:
    """Levels of 4 x 3 prompts whose parts add, the parts, and draws of all prompts but the last."""
    rng = np.random.default_rng(seed)
    parts = np.indices((4, 3)).reshape(2, -1).T
    level = np.array([-1.2, -0.4, 0.4, 1.2])[parts[:, 0]] + np.array([-0.7, 0.0, 0.7])[parts[:, 1]]
    prompt, query = np.tile(np.arange(11), q), np.repeat(np.arange(q), 11)
    theta = sigmoid(level[prompt] + rng.normal(size=q)[query] + 0.4 * rng.normal(size=11 * q))
    return level, parts, (prompt, query, rng.binomial(m, theta), np.full(11 * q, m))


def test_a_prompt_that_was_never_drawn_is_the_sum_of_its_parts() -> None:
    level, parts, (prompt, query, count, size) = additive(120, 3, 5)
    found = {}
    for name, labels in (("parts", parts), ("none", None)):
        model = TraitModel(1, 12, labels)
        traits = model.fit(prompt, query, 120, count[None], size)
        found[name] = model.level[0] - model.level[0, :11].mean() + level[:11].mean()
        left = traits.unexplained[0, :, 0]
        assert (left == 1.0).all() if labels is None else 0.05 < left[11] < 0.5
    assert level[11] == pytest.approx(1.9)
    assert found["parts"][11] == pytest.approx(1.9, abs=0.35)
    assert abs(found["none"][11]) < 0.3  # a typical prompt


def test_parts_make_the_levels_of_little_known_prompts_better() -> None:
    errors = np.zeros(3)
    for seed in range(6):
        level, parts, (prompt, query, count, size) = additive(24, 2, seed)
        nothing = np.random.default_rng(seed).permuted(parts, axis=0)
        for i, labels in enumerate((None, nothing, parts)):
            model = TraitModel(1, 12, labels)
            model.fit(prompt, query, 24, count[None], size)
            off = (model.level[0] - level)[:11]
            errors[i] += ((off - off.mean()) ** 2).mean()
    assert errors[2] < 0.75 * errors[0]
    assert errors[1] < 1.2 * errors[0]  # parts that say nothing


def test_names_of_labels_change_nothing() -> None:
    _, parts, (prompt, query, count, size) = additive(12, 2, 0)
    renamed = 9 - parts[:, ::-1]
    eta = [TraitModel(1, 12, labels).fit(prompt, query, 12, count[None], size).eta for labels in (parts, renamed)]
    np.testing.assert_allclose(eta[0], eta[1], atol=1e-3)
