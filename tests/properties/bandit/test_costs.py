"""Affine costs: nothing depends on how observations were cut into batches, and nothing is lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.types import Observations, Pulls

PULL = st.tuples(st.integers(0, 3), st.integers(1, 9), st.floats(0, 1e6), st.floats(0, 1e6))


def observations(pulls: list[tuple[int, int, float, float]]) -> Observations:
    """Pulls of (prompt, size, overhead, cost of the first completion); the k-th one costs k times as much."""
    size = np.array([m for _, m, *_ in pulls])
    return Observations(
        pulls=Pulls(np.array([p for p, *_ in pulls]), np.zeros(len(pulls), int), size),
        label=np.zeros(size.sum()),
        score=np.ones((size.sum(), 1)),
        cost=np.concatenate([c * np.arange(1, m + 1) for _, m, _, c in pulls]),
        overhead=np.array([o for *_, o, _ in pulls]),
    )


@given(st.lists(PULL, min_size=1, max_size=20), st.integers(1, 20))
def test_batches_do_not_matter_and_totals_are_kept(pulls: list[tuple[int, int, float, float]], step: int) -> None:
    whole, parts = AffineCosts(4), AffineCosts(4)
    whole.update(observations(pulls))
    for i in range(0, len(pulls), step):
        parts.update(observations(pulls[i : i + step]))
    np.testing.assert_allclose(whole.arms(5), parts.arms(5), rtol=1e-9, atol=1e-6)
    for prompt in range(4):
        mine = [pull for pull in pulls if pull[0] == prompt]
        if not mine:
            assert np.isnan(whole.arms(5)[prompt]).all()
            continue
        drawn = sum(m for _, m, *_ in mine)
        total = sum(o for *_, o, _ in mine) + sum(c * m * (m + 1) / 2 for _, m, _, c in mine)
        kept = len(mine) * whole.fixed[prompt] + drawn * whole.per_completion[prompt]
        np.testing.assert_allclose(kept, total, rtol=1e-9, atol=1e-6)


@given(st.lists(PULL, min_size=1, max_size=20))
def test_arms_are_affine_increasing_and_never_below_the_overhead(pulls: list[tuple[int, int, float, float]]) -> None:
    costs = AffineCosts(4)
    costs.update(observations(pulls))
    seen = ~np.isnan(costs.fixed)
    arms = costs.arms(6)[seen]
    np.testing.assert_allclose(np.diff(arms, axis=1), costs.per_completion[seen, None] * np.ones(5), atol=1e-6)
    assert (arms >= costs.fixed[seen, None] - 1e-6).all()
