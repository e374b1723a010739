"""What draws tell of traits: a naive sum, what single completions cannot tell, and errors that are as large as said."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.information import PRIOR_VARIANCE, Knowledge, error
from iapo_dspy.bandit.models.traits import THETA, TraitModel, difficulties, laws
from iapo_dspy.types import FloatArray, IntArray
from tests.support.draws import observe

_ALL = np.arange(6)


def right(prompts: IntArray, scales: IntArray) -> FloatArray:
    """Worth of theta to arms: theta itself at scale 1, and whether most completions are right at others."""
    worth = np.where(scales[:, None] == 1, THETA, (THETA > 0.5) + 0.5 * (THETA == 0.5))
    return worth[None]


def drawn(theta: FloatArray, sizes: IntArray, rng: np.random.Generator) -> tuple[Cells, IntArray]:
    """Draw so many completions of every cell [P, V]; returns the cells, and how many of each are right."""
    n_prompts, n_queries = theta.shape
    prompt, query = np.tile(np.arange(n_prompts), n_queries), np.repeat(np.arange(n_queries), n_prompts)
    size = sizes[prompt]
    label = np.concatenate(
        [rng.random(m) >= theta[p, x] for p, x, m in zip(prompt.tolist(), query.tolist(), size.tolist(), strict=True)]
    )
    seen = observe(
        [(p, x, m) for p, x, m in zip(prompt.tolist(), query.tolist(), size.tolist(), strict=True)],
        label.astype(np.int64),
    )
    cells = Cells.of([seen], n_prompts, 1)
    return cells, np.add.reduceat(~label, cells.start, dtype=np.int64)


def known(theta: FloatArray, sizes: IntArray, seed: int) -> Knowledge:
    cells, count = drawn(theta, sizes, np.random.default_rng(seed))
    traits = TraitModel(1, len(theta)).fit(cells.prompt, cells.query, cells.n_visited, count[None], cells.size)
    return Knowledge(traits=traits, cells=cells, worth=right)


def world(seed: int, n_queries: int = 40) -> FloatArray:
    """Chances of six prompts, the last two of which have a mind of their own."""
    rng = np.random.default_rng(seed)
    sd = np.array([0.3, 0.3, 0.3, 0.3, 2.5, 2.5])[:, None]
    logit = np.linspace(-0.5, 1.0, 6)[:, None] + 1.5 * rng.normal(size=n_queries) + sd * rng.normal(size=(6, n_queries))
    return np.asarray(1 / (1 + np.exp(-logit)))


def test_the_information_of_all_cells_is_a_sum_over_cells_and_outcomes() -> None:
    knowledge = known(world(1, 5), np.array([1, 2, 3, 1, 2, 3]), 2)
    traits, cells, step = knowledge.traits, knowledge.cells, 0.05
    posterior = difficulties(traits)[0]
    expected = np.stack([np.diag(1 / PRIOR_VARIANCE)] * 6)
    for p, x, m in zip(cells.prompt.tolist(), cells.query.tolist(), cells.size.tolist(), strict=True):
        for k in range(m + 1):
            chance = comb(m, k) * THETA**k * (1 - THETA) ** (m - k)

            def probability(eta: FloatArray, p=p, x=x, chance=chance) -> float:
                return float(posterior[x] @ laws(eta)[0, p] @ chance)

            slope = np.empty(3)
            for i, unit in enumerate(np.eye(3)):
                moved = probability(traits.eta + step * unit) - probability(traits.eta - step * unit)
                slope[i] = moved / (2 * step)
            expected[p] += np.outer(slope, slope) / probability(traits.eta)
    np.testing.assert_allclose(knowledge.precision[0], expected, rtol=1e-9)
    np.testing.assert_allclose(knowledge.covariance @ knowledge.precision, np.tile(np.eye(3), (1, 6, 1, 1)), atol=1e-9)


def test_what_relatives_say_counts_as_known_before_any_cell() -> None:
    knowledge = known(world(1, 5), np.array([1, 2, 3, 1, 2, 3]), 2)
    told = knowledge.precision - np.diag(1 / PRIOR_VARIANCE)
    left = np.linspace(0.1, 1.0, 18).reshape(1, 6, 3)
    related = replace(knowledge, traits=replace(knowledge.traits, unexplained=left))
    for p in range(6):
        expected = told[0, p] + np.diag(1 / (left[0, p] * PRIOR_VARIANCE))
        np.testing.assert_allclose(related.precision[0, p], expected, rtol=1e-9)


def test_only_several_completions_of_a_query_tell_how_cells_spread() -> None:
    knowledge = known(world(3), np.full(6, 2), 4)
    level_known = knowledge.after(_ALL, 1, 4_000.0)[0]
    spread_known = knowledge.after(_ALL, 8, 500.0)[0]  # as many completions
    assert (spread_known[:, 2, 2] < level_known[:, 2, 2] / 3).all()
    assert (level_known[:, 0, 0] < knowledge.covariance[0, :, 0, 0] / 3).all()
    gradient = knowledge.gradient(_ALL, np.ones(6, dtype=int))
    before = error(gradient, knowledge.covariance)
    single, many = (error(gradient, knowledge.after(_ALL, m, 48.0 / m)) for m in (1, 8))
    assert (single < many).all() and (many < before).all()  # the value of one completion is a matter of the level


def test_prompts_that_answered_more_are_known_better() -> None:
    knowledge = known(np.tile(world(5)[:1], (6, 1)), np.array([1, 1, 1, 4, 4, 4]), 6)
    for scale in (1, 9):
        found = error(knowledge.gradient(_ALL, np.full(6, scale)), knowledge.covariance)
        assert found[:3].min() > found[3:].max()


@pytest.mark.parametrize("scale", [1, 9])
def test_errors_are_about_as_large_as_said(scale: int) -> None:
    """Over fresh draws of the same queries, estimates spread by not more than what is said, and not by much less."""
    theta = world(7, 60)
    said, values = [], []
    for seed in range(40):
        knowledge = known(theta, np.full(6, 2), seed)
        traits = knowledge.traits
        law = np.einsum("bvd,bpdt->pvt", difficulties(traits), traits.law).mean(axis=1)
        values.append((law * right(_ALL, np.full(6, scale))[0]).sum(axis=1))
        said.append(error(knowledge.gradient(_ALL, np.full(6, scale)), knowledge.covariance))
    ratio = np.std(values, axis=0) / np.mean(said, axis=0)
    assert (ratio > 0.2).all() and (ratio < 1.3).all()
