"""What relatives say of a prompt: layouts worked by hand, the dense formulas of a normal law, and known variances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.models.relatives import Relatives
from iapo_dspy.types import FloatArray, IntArray

SQUARE = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])


def relatives(parts: IntArray, own: float, *effects: float) -> Relatives:
    """One number of one event, with these variances."""
    found = started(parts)
    found.own, found.effects = np.array([[own]]), np.array([[effects]])
    return found


def started(parts: IntArray) -> Relatives:
    return Relatives(1, parts, own=np.array([0.25]), effects=np.array([0.25]))


def column(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)[None, :, None]


def test_a_layout_of_two_by_two_is_that_worked_by_hand() -> None:
    """Means of rows are 1.5 and 6.5, of columns 3 and 5; each effect is shrunk by 2 / (2 + 1)."""
    found = relatives(SQUARE, 1.0, 1.0, 1.0).blup(column(0, 0, 0, 0))(column(1, 2, 5, 8))
    rows, columns = 2.5 * 2 / 3, 1.0 * 2 / 3
    by_hand = [4 - rows - columns, 4 - rows + columns, 4 + rows - columns, 4 + rows + columns]
    np.testing.assert_allclose(found[0, :, 0], by_hand, rtol=1e-6)


def test_a_prompt_that_was_never_drawn_is_the_sum_of_its_parts() -> None:
    """Effects add exactly and are hardly shrunk: 1, 2 and 5 say 5 + 2 - 1 of the fourth."""
    found = relatives(SQUARE, 1e-6, 1e4, 1e4).blup(column(0, 0, 0, np.inf))(column(1, 2, 5, -77))
    assert found[0, 3, 0] == pytest.approx(6.0, abs=1e-3)


def test_expectations_and_shares_are_those_of_the_joint_normal_law() -> None:
    rng = np.random.default_rng(1)
    parts, own, effects = rng.integers(0, 3, (12, 2)), 0.3, (0.7, 0.2)
    values, noise = rng.normal(size=12), rng.uniform(0.1, 2.0, 12)
    noise[4] = np.inf
    model = relatives(parts, own, *effects)
    between = sum(v * (parts[:, f, None] == parts[:, f]) for f, v in enumerate(effects))
    drawn = np.isfinite(noise)
    total = (between + np.diag(own + np.where(drawn, noise, 0.0)))[drawn][:, drawn]
    inverse = np.linalg.inv(total)
    typical = inverse.sum(axis=0) @ values[drawn] / inverse.sum()
    mean = typical + between[:, drawn] @ inverse @ (values[drawn] - typical)
    np.testing.assert_allclose(model.blup(column(*noise))(column(*values))[0, :, 0], mean, atol=1e-6)
    whole = own + sum(effects)
    left = []
    for p in range(12):
        others = drawn & (np.arange(12) != p)
        seen = np.linalg.inv((between + np.diag(own + np.where(drawn, noise, 0.0)))[others][:, others])
        left.append((whole - between[p, others] @ seen @ between[p, others]) / whole)
    np.testing.assert_allclose(model.unexplained(column(*noise))[0, :, 0], left, rtol=1e-6)


def test_nothing_is_known_of_prompts_where_none_was_drawn() -> None:
    model, noise = relatives(SQUARE, 1.0, 1.0, 1.0), column(np.inf, np.inf, np.inf, np.inf)
    np.testing.assert_allclose(model.unexplained(noise), 1.0)
    before = model.own.copy()
    model.learn(column(1, 2, 3, 4), noise)
    np.testing.assert_allclose(model.own, before)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_known_variances_come_back(noise: float) -> None:
    """The first part has effects of variance 1, the second has none, and own deviations have .25."""
    rng = np.random.default_rng(2)
    parts = np.stack([np.repeat(np.arange(30), 10), np.tile(np.arange(10), 30)], axis=1)
    values = 3.0 + rng.normal(size=30)[parts[:, 0]] + 0.5 * rng.normal(size=300) + np.sqrt(noise) * rng.normal(size=300)
    model = started(parts)
    for _ in range(20):
        model.learn(column(*values), np.full((1, 300, 1), noise))
    assert model.effects[0, 0, 0] == pytest.approx(1.0, rel=0.3)
    assert model.effects[0, 0, 1] < 0.06
    assert model.own[0, 0] == pytest.approx(0.25, rel=0.25)


@pytest.mark.parametrize(("n_prompts", "most"), [(12, 0.15), (120, 0.02)])
def test_parts_that_say_nothing_hardly_move_prompts(n_prompts: int, most: float) -> None:
    """With labels at random, what parts make of prompts varies by a small share of what the prompts vary by."""
    moved = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        model = started(rng.integers(0, 3, (n_prompts, 2)))
        values, noise = rng.normal(size=(1, n_prompts, 1)), np.full((1, n_prompts, 1), 0.5)
        for _ in range(10):
            model.learn(values, noise)
        moved.append(model.blup(noise)(values).var() / values.var())
    assert np.mean(moved) < most


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_names_of_labels_and_the_order_of_parts_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts, values, noise = rng.integers(0, 3, (9, 2)), rng.normal(size=(1, 9, 1)), rng.uniform(0.1, 1.0, (1, 9, 1))
    renamed = 7 * rng.permutation(3)[parts[:, ::-1]] + 2
    found = []
    for labels in (parts, renamed):
        model = started(labels)
        model.learn(values, noise)
        found.append(np.stack([model.blup(noise)(values), model.unexplained(noise)]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-9)
