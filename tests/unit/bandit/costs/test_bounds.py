"""Upper bounds of what new completions and calls take."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.bandit.costs.bounds import affine_seconds, upper_amounts, upper_seconds
from iapo_dspy.types import FloatArray, IntArray

NAN = float("nan")


def bounds(prompt: Any, size: Any, used: Any, once: Any, n_prompts: int, max_n: int) -> Any:
    """Upper bounds of calls of one request [P, N]."""
    request, completion = upper_amounts(prompt, size, used, once, n_prompts)
    return request[:, None] + completion[:, None] * np.arange(1, max_n + 1)


def test_seconds_that_grow_with_n_are_priced_as_they_grow() -> None:
    """Two prompts, 1 + 0.5 n and 2 + 1.0 n seconds: the growth relative to the mean is the same."""
    prompt, size = np.array([0, 0, 1, 1, 1]), np.array([1, 3, 1, 2, 3])
    seconds = (1 + 0.5 * size) * np.array([1, 1, 2, 2, 2])
    fixed, each = affine_seconds(prompt, size, seconds, 3)
    np.testing.assert_allclose(fixed, [1, 2, NAN])
    np.testing.assert_allclose(each, [0.5, 1.0, NAN])
    fixed, each = affine_seconds(prompt, size, seconds[::-1].copy(), 2)  # never less for more
    assert (each >= 0).all() and (fixed >= 0).all()
    fixed, each = affine_seconds(prompt, size, size * 1.0, 2)  # never less than nothing for a request
    assert (fixed >= -1e-12).all()


def test_the_bound_of_two_pulls_by_hand() -> None:
    """Completions of 8 and 12 tokens: mean 10, variance 8 with one degree of freedom, relative 0.08."""
    upper = bounds(np.zeros(2, int), np.ones(2, int), np.array([8.0, 12.0]), np.zeros(2), 1, 2)
    one = 10 * (1 + 2.326348 * np.sqrt(0.08 * 1.5))  # a new one, and half as much for the mean of two
    np.testing.assert_allclose(upper, [[one, 2 * one]])


def test_one_pull_a_prompt_says_nothing_of_the_spread() -> None:
    upper = bounds(np.arange(2), np.ones(2, int), np.array([10.0, 20.0]), np.zeros(2), 3, 1)
    assert upper[0, 0] > 20 and upper[1, 0] == pytest.approx(2 * upper[0, 0]) and np.isnan(upper[2, 0])


def simulate(
    rng: np.random.Generator, sizes: list[int], queries: int, between: float, within: float, means: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Pulls whose completions take mean * (1 + query effect + own effect): sd `between` and `within` of the mean."""
    prompt = np.repeat(np.arange(len(means)), queries)
    size = np.tile(rng.choice(sizes, queries), len(means))
    relative = 1 + between * rng.normal(size=len(size)) + within / np.sqrt(size) * rng.normal(size=len(size))
    return prompt, size, means[prompt] * size * relative


@pytest.mark.parametrize(
    ("sizes", "between", "within"),
    [([1, 2, 4, 8], 0.2, 0.1), ([1, 2, 4, 8], 0.05, 0.3), ([1], 0.2, 0.2), ([2, 16], 0.0, 0.25), ([1, 8], 0.25, 0.0)],
)
def test_99_of_100_new_completions_lie_below_their_bound(sizes: list[int], between: float, within: float) -> None:
    means, covered = np.array([20.0, 100.0, 400.0]), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        prompt, size, used = simulate(rng, sizes, 40, between, within, means)
        bound = bounds(prompt, size, used, np.zeros(len(used)), len(means), 1)[:, 0]
        new = means * (1 + np.sqrt(between**2 + within**2) * rng.normal(size=(4000, 3)))
        covered.append((new <= bound).mean())
    assert 0.98 <= np.mean(covered) <= 0.997


def test_pulls_of_one_large_size_do_not_hide_how_completions_vary() -> None:
    """Sums of 16 vary little; half of what is seen may be the queries', the rest is 16 times as much in one."""
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        prompt, size, used = simulate(rng, [16], 40, 0.1, 0.1, np.array([50.0, 80.0]))
        bound = bounds(prompt, size, used, np.zeros(len(used)), 2, 1)[:, 0]
        covered.append((np.array([50.0, 80.0]) * (1 + np.sqrt(0.02) * rng.normal(size=(2000, 2))) <= bound).mean())
    assert np.mean(covered) > 0.95


def test_a_prompt_that_varies_more_than_the_others_has_a_wider_bound() -> None:
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(4), 60)
    spread = np.where(prompt == 3, 0.6, 0.05)
    used = 100 * np.exp(spread * rng.normal(size=240) - spread**2 / 2)
    bound = bounds(prompt, np.ones(240, int), used, np.zeros(240), 4, 1)[:, 0]
    new = 100 * np.exp(0.6 * rng.normal(size=4000) - 0.18)
    assert (new <= bound[3]).mean() > 0.95 and bound[3] > 1.5 * bound[0]


@pytest.mark.parametrize(("growth", "sizes"), [(0.0, [1, 2, 4, 8]), (0.4, [1, 2, 4, 8]), (0.4, [2, 4]), (0.8, [1, 16])])
def test_95_of_100_new_calls_are_faster_than_their_bound(growth: float, sizes: list[int]) -> None:
    """Log-normal latencies that grow with n, at scales that were drawn and at others."""
    covered, looseness = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        prompt, size = np.repeat(np.arange(3), 30), rng.choice(sizes, 90)
        middle, spread = np.array([0.2, 1.0, 4.0]), np.array([0.2, 0.4, 0.3])
        seconds = middle[prompt] * size**growth * np.exp(spread[prompt] * rng.normal(size=90))
        bound = upper_seconds(prompt, size, seconds, 3, 16)
        for n in (1, 3, 16):
            new = middle * n**growth * np.exp(spread * rng.normal(size=(1000, 3)))
            covered.append((new <= bound[:, n - 1]).mean())
            looseness.append(bound[:, n - 1] / (middle * n**growth * np.exp(2.326 * spread)))
    by_scale = np.mean(np.reshape(covered, (-1, 3)), axis=0)
    assert (by_scale >= 0.95).all(), by_scale
    assert np.median(looseness) < 1.6  # and they are not safe for being useless


@pytest.mark.parametrize("share", [0.03, 0.15])
def test_stalls_are_covered_where_they_are_frequent_and_ignored_where_they_are_rare(share: float) -> None:
    """Some calls take ten times as long, whatever is asked; or the first ones did, while the process imported."""
    covered, bounds = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def draw(count: int, rng: np.random.Generator = rng) -> FloatArray:
            return np.asarray(np.exp(0.2 * rng.normal(size=count)) * np.where(rng.random(count) < share, 10.0, 1.0))

        prompt, size = np.repeat(np.arange(2), 100), np.tile([1, 2], 100)
        bound = upper_seconds(prompt, size, draw(200), 2, 2)
        covered.append((draw(2000)[:, None] <= bound[:, 0]).mean())
        bounds.append(bound[0, 0])
    assert np.mean(covered) >= 0.95
    assert np.median(bounds) < 2.5 if share == 0.03 else np.median(bounds) > 8


def test_one_size_of_pulls_leaves_doubt_about_larger_ones_only() -> None:
    rng = np.random.default_rng(0)
    seconds = np.exp(0.1 * rng.normal(size=50))
    bound = upper_seconds(np.zeros(50, int), np.full(50, 4), seconds, 2, 16)
    assert bound[0, 3] < 1.4 and bound[0, 15] > 2.0  # 16 might take four times as long as 4
    assert (bound[0, :4] <= bound[0, 3]).all() and np.isnan(bound[1]).all()


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 30))
def test_bounds_never_fall_with_n(seed: int, n_prompts: int, pulls: int) -> None:
    rng = np.random.default_rng(seed)
    prompt, size = rng.integers(n_prompts, size=pulls), rng.integers(1, 9, size=pulls)
    used = size * rng.exponential(10, size=pulls)
    for bound in (
        bounds(prompt, size, used, 0.1 * used, n_prompts, 8),
        upper_seconds(prompt, size, used, n_prompts, 8),
    ):
        drawn = np.isin(np.arange(n_prompts), prompt)
        assert (np.isnan(bound).all(axis=1) == ~drawn).all() and np.isfinite(bound[drawn]).all()
        assert (np.diff(bound[drawn], axis=1) >= -1e-9).all()
