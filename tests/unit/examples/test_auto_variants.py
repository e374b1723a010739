"""The variants of the default algorithm that an ablation compares."""

import numpy as np
import pytest
from auto_variants import VARIANTS, PairedEstimator, PairedEvidence, cell_blocks, variant

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.estimators.port import ArmEvidence, ComparingEstimator
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_categorical
from iapo_dspy.types import Pulls

MAKES = (synthetic_bernoulli, synthetic_categorical)


def some(make, sizes=(3, 5)):
    """Observations of some cells, each query once per prompt, and their problem."""
    recording = make(0, n_prompts=4, n_queries=12)
    prompt, query = np.divmod(np.arange(4 * 12), 12)
    pulls = Pulls(prompt, query, np.where(prompt % 2, sizes[0], sizes[1]))
    return recording.problem(8), recording.environment(1).pull(pulls)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_keeps_its_port(make, name):
    problem, observations = some(make)
    estimator = VARIANTS[name](problem)
    assert isinstance(estimator, ComparingEstimator)
    estimator.update(observations)
    evidence = estimator.evidence()
    assert isinstance(evidence, ArmEvidence)
    known = ~np.isnan(evidence.reward())
    assert known.shape == problem.shape and np.isfinite(evidence.standard_error()).all()
    assert known.all() or name in ("blocks", "subsets")
    np.testing.assert_array_equal(evidence.estimates().reward, evidence.reward())
    arms = np.arange(4), np.full(4, 2)
    error = evidence.against(0, *arms, 1, 2)
    assert error[1] == pytest.approx(0.0, abs=1e-7) and (error >= 0).all() and np.isfinite(error).all()


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(("values", "reference"), [(None, SubsetEstimator), (cell_blocks, BlockEstimator)])
def test_means_are_those_of_the_estimators(make, values, reference):
    """Every cell has one pull, so that means over cells and over blocks are the same."""
    problem, observations = some(make)
    ours = PairedEstimator(problem, **({} if values is None else {"values": values}))
    theirs = reference(problem)
    for estimator in (ours, theirs):
        estimator.update(observations)
    np.testing.assert_allclose(ours.evidence().reward(), theirs.estimates().reward)


def test_blocks_of_a_cell_pool_its_pulls():
    recording = synthetic_bernoulli(0, n_prompts=2, n_queries=3)
    pulls = Pulls(np.array([0, 0]), np.array([1, 1]), np.array([2, 2]))
    observations = recording.environment(0).pull(pulls)
    cells = Cells.of([observations], 2, 1)
    right = (observations.label == 0).astype(float)
    votes = np.array([right[:2].mean(), right[2:].mean()])  # of two: a tie counts a half
    found = cell_blocks(cells, MajorityVoteAggregator(), np.ones((1, 1)), 5)[0, 0]
    three = float(right[:3].sum() >= 2)
    assert found[:3] == pytest.approx([right.mean(), votes.mean(), three]) and np.isnan(found[4])


def test_standard_errors_of_differences_by_hand():
    values = np.array([[0.0, 1.0, 1.0, np.nan], [1.0, 1.0, np.nan, 0.0], [np.nan, np.nan, np.nan, 1.0]])
    evidence = PairedEvidence(values=values[None, :, :, None], row=np.array([0]), cost=np.ones((3, 1)))
    np.testing.assert_allclose(evidence.reward()[0, :, 0], [2 / 3, 2 / 3, 1.0])
    single = 1 / 3 / 3  # sample variance 1/3 of three values
    # On the common queries (0, 1) and (1, 1): covariance 0, so the variances add up.
    found = evidence.against(0, np.array([0, 1]), np.array([1, 1]), 0, 1)
    np.testing.assert_allclose(found, [0.0, np.sqrt(2 * single)], atol=1e-7)
    assert evidence.standard_error()[0, 2, 0] == 1.0  # one value only: as far as values reach


@pytest.mark.parametrize("shared", [True, False])
def test_queries_are_shared_or_not(shared):
    recording = synthetic_bernoulli(0, n_prompts=5, n_queries=40)
    run = Auto(shared_queries=shared).start(recording.problem(8), budget=400, seed=3)
    pulls = next(run)
    asked = [pulls.query[pulls.prompt == p].tolist() for p in range(5)]
    assert all(len(set(a)) == len(a) for a in asked)  # without replacement
    assert (len({tuple(a) for a in asked}) == 1) == shared


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shared", [True, False])
def test_variants_find_good_arms_within_the_budget(name, shared):
    recording = synthetic_bernoulli(1, n_prompts=6, n_queries=60)
    entrant = variant(name, shared_queries=shared, first_pull=4)
    assert entrant.name == f"{name}/{'shared' if shared else 'independent'}/4"
    outcome = drive(entrant.algorithm.start(recording.problem(16), budget=6_000, seed=0), recording.environment(2))
    q = recording.exact(16).q()
    assert outcome.spent <= 6_000
    assert (q.max(axis=(1, 2)) - entrant.value(outcome.policy, q)).mean() < 0.06
