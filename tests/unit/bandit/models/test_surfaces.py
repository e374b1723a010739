"""Values that are worked out where they are asked for: the same prompt by prompt, arm by arm and as one array."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator, Modelled
from iapo_dspy.bandit.aggregators.tally import TallyAggregator
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.additive import AdditivePredictor
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.subsets import cell_subsets
from iapo_dspy.bandit.models.port import CellPredictions
from iapo_dspy.bandit.models.surfaces import Dense, Patched, groups
from iapo_dspy.types import Observations, Pulls
from tests.support.draws import observe, problem_of

P, V, N = 5, 40, 6


def drawn(seed: int = 0) -> Observations:
    """One to four completions of three of five prompts on every query, some without a vote."""
    rng = np.random.default_rng(seed)
    pulls = [(int(p), x, int(rng.integers(1, 5))) for x in range(V) for p in rng.permutation(P)[:3]]
    total = sum(m for _, _, m in pulls)
    return observe(pulls, np.round(rng.random(total), 1), rng.integers(-1, 4, total))


def predictions(aggregator: Aggregator, cells: Cells) -> CellPredictions:
    rows = np.ones((1, 1))
    if not isinstance(aggregator, Modelled):
        return AdditivePredictor(P, N).predict(cells, cell_subsets(cells, aggregator, rows, N))
    found = aggregator.model(rows, P, N).predict(cells)
    assert isinstance(found, CellPredictions)
    return found


@pytest.mark.parametrize(
    "aggregator", [MajorityVoteAggregator(), BestOfNAggregator(), TallyAggregator(floors=(0.0,))], ids=str
)
def test_prompts_and_arms_have_the_same_values(aggregator: Aggregator) -> None:
    cells = Cells.of([drawn()], P, 1)
    found = predictions(aggregator, cells)
    surface = Patched(surface=found.elsewhere[0], cells=cells, drawn=found.given_all[0])
    whole = surface.block(np.arange(P))
    assert whole.shape == (P, V, N) and np.isfinite(whole).all()
    np.testing.assert_array_equal(whole, found.dense(cells).given_all[0])
    prompts, scales = (a.reshape(-1) for a in np.indices((P, N)))
    np.testing.assert_allclose(surface.at(prompts, scales + 1), whole[prompts, :, scales], atol=1e-12)
    np.testing.assert_allclose(surface.at(prompts[::-1], scales[::-1] + 1)[0], whole[-1, :, -1], atol=1e-12)
    np.testing.assert_allclose(surface.block(np.array([3, 1])), whole[[3, 1]], atol=1e-12)
    np.testing.assert_array_equal(whole[cells.prompt, cells.query], found.given_all[0])
    assert not np.allclose(found.given_all, found.given_others)  # a cell's own draws count in one reading only


def test_patches_lie_where_their_cells_are_and_nowhere_else() -> None:
    base = np.random.default_rng(1).random((3, 4, 2))
    cells = Cells.of([observe([(2, 0, 1), (0, 3, 1), (2, 3, 1)], [1, 1, 1]), observe([(1, 1, 1)], [1])], 3, 1)
    patch = np.arange(8.0).reshape(4, 2)  # in the order of queries 0, 1, 3 and prompts
    found = Patched(surface=Dense(base[:, [0, 1, 3]]), cells=cells, drawn=patch).block(np.array([2, 0, 1]))
    expected = base[[2, 0, 1]][:, [0, 1, 3]]
    expected[0, 0], expected[2, 1], expected[1, 2], expected[0, 2] = patch
    np.testing.assert_array_equal(found, expected)
    parts = list(groups(7, 10_000, 100))
    assert np.concatenate(parts).tolist() == list(range(7)) and max(map(len, parts)) == 2


@pytest.mark.slow
def test_memory_grows_with_the_drawn_cells_and_not_with_prompts_times_queries_times_scales() -> None:
    n_prompts, n_queries, max_n = 60, 4_000, 32  # an array of all three takes 61 MB
    at = np.arange(8_000)
    pulls = Pulls(at * 7 % n_prompts, at % n_queries, np.ones(len(at), dtype=np.int64))
    right = np.random.default_rng(0).random(len(at)) < 0.6
    seen = Observations(pulls=pulls, label=1 - right, score=right[:, None].astype(float), cost=np.ones(len(at)))
    problem = problem_of(MajorityVoteAggregator(), n_prompts=n_prompts, n_queries=n_queries, max_n=max_n)
    CorrectedEstimator(problem_of(MajorityVoteAggregator(), n_prompts=1, max_n=max_n))  # its tables are kept
    estimator = CorrectedEstimator(problem)
    estimator.update(seen)
    tracemalloc.start()
    try:
        evidence = estimator.evidence()
        estimates = evidence.estimates()
        evidence.against(0, np.arange(n_prompts), np.full(n_prompts, 8), 0, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert estimates.reward.shape == (1, n_prompts, max_n) and np.isfinite(estimates.reward).all()
    assert peak < 61e6
