"""The variants of the default algorithm that an ablation compares."""

import numpy as np
import pytest
from auto_variants import VARIANTS, PairedEstimator, PairedEvidence, UninformedEstimator, without_parts
from benchmark_auto import Found, ablation, budgets_for

from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.port import ArmEvidence, ComparingEstimator
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.factorial import synthetic_factorial
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_categorical
from iapo_dspy.simulation.entrants import Entrant
from iapo_dspy.simulation.runner import SimulatedRun, Trial
from iapo_dspy.simulation.sources import source
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
    estimator = VARIANTS[name].estimator(problem)
    assert isinstance(estimator, ComparingEstimator)
    estimator.update(observations)
    evidence = estimator.evidence()
    assert isinstance(evidence, ArmEvidence)
    known = ~np.isnan(evidence.reward())
    assert known.shape == problem.shape and np.isfinite(evidence.standard_error()).all()
    assert known.all() or name == "subsets alone"
    np.testing.assert_array_equal(evidence.estimates().reward, evidence.reward())
    arms = np.arange(4), np.full(4, 2)
    error = evidence.against(0, *arms, 1, 2)
    assert error[1] == pytest.approx(0.0, abs=1e-7) and (error >= 0).all() and np.isfinite(error).all()


@pytest.mark.parametrize("make", MAKES)
def test_means_are_those_of_the_estimator(make):
    """Every cell has one pull, so that means over cells and over subsets are the same."""
    problem, observations = some(make)
    ours, theirs = PairedEstimator(problem), SubsetEstimator(problem)
    for estimator in (ours, theirs):
        estimator.update(observations)
    np.testing.assert_allclose(ours.evidence().reward(), theirs.estimates().reward)


def test_standard_errors_of_differences_by_hand():
    values = np.array([[0.0, 1.0, 1.0, np.nan], [1.0, 1.0, np.nan, 0.0], [np.nan, np.nan, np.nan, 1.0]])
    evidence = PairedEvidence(values=values[None, :, :, None], row=np.array([0]), cost=np.ones((3, 1)))
    np.testing.assert_allclose(evidence.reward()[0, :, 0], [2 / 3, 2 / 3, 1.0])
    single = 1 / 3 / 3  # sample variance 1/3 of three values
    # On the common queries (0, 1) and (1, 1): covariance 0, so the variances add up.
    found = evidence.against(0, np.array([0, 1]), np.array([1, 1]), 0, 1)
    np.testing.assert_allclose(found, [0.0, np.sqrt(2 * single)], atol=1e-7)
    assert evidence.standard_error()[0, 2, 0] == 1.0  # one value only: as far as values reach


def sizes(name, make=synthetic_bernoulli, budget=1_600, **size):
    """Pull sizes of each round of a variant, and the queries of each prompt in the first one."""
    recording = make(0, n_queries=60, **size)
    outcome = drive(VARIANTS[name].start(recording.problem(16), budget=budget, seed=3), recording.environment(2))
    first = outcome.observations[0].pulls
    asked = {tuple(first.query[first.prompt == p].tolist()) for p in np.unique(first.prompt)}
    return [np.unique(o.pulls.size).tolist() for o in outcome.observations], asked


def test_variants_draw_as_they_say():
    by_schedule, asked = sizes("pulls by a schedule", n_prompts=6)
    assert by_schedule == [[2], [2], [4], [4], [8], [8], [16], [16]] and len(asked) == 1
    ones, _ = sizes("pulls of one", n_prompts=6, budget=640)
    assert ones == [[1]] * len(ones) and len(ones) > 2
    _, asked = sizes("independent queries", n_prompts=6, budget=200)
    assert len(asked) == 6 and all(len(set(a)) == len(a) for a in asked)  # without replacement


def test_estimators_leave_out_what_they_say():
    problem, observations = some(synthetic_bernoulli)
    bare, default = UninformedEstimator(problem), CorrectedEstimator(problem)
    for estimator in (bare, default):
        estimator.update(observations)
    assert bare.evidence().model is None and default.evidence().model is not None
    np.testing.assert_array_equal(bare.evidence().reward(), default.evidence().reward())


def test_parts_are_left_out():
    recording = synthetic_factorial(0, n_prompts=9, n_queries=30)
    prompt, query = np.divmod(np.arange(5 * 30), 30)  # the other four are known by their parts alone
    observations = recording.environment(1).pull(Pulls(prompt, query, np.full(150, 4)))
    related, alone = CorrectedEstimator(recording.problem(8)), without_parts(recording.problem(8))
    for estimator in (related, alone):
        estimator.update(observations)
    spread = [estimator.evidence().reward()[0, 5:, 3].std() for estimator in (related, alone)]
    assert spread[0] > 0.01 and spread[1] == pytest.approx(0.0, abs=1e-9)


def test_budgets_per_prompt():
    where = source("synthetic-bernoulli", prompts=3, queries=20)
    assert budgets_for(["40x", "90", "120"], where, 0) == [90, 120]


def test_the_table_has_paired_differences(capsys):
    def trial(acr, spent):
        return Trial(acr=acr, regret=0.0, best=0.0, spent=spent, completions=1.0, waves=1.0)

    acrs = {"default": (0.8, 0.6), "no parts": (0.7, 0.4)}  # worse by .1 and .2
    runs = [
        SimulatedRun(run=i, trials={(n, 50): trial(a[i], 40 + i) for n, a in acrs.items()}, train_best=0.9, oracle=1.0)
        for i in range(2)
    ]
    ablation(Found("somewhere", runs))
    lines = capsys.readouterr().out.splitlines()
    assert "| default | 0.2000 | +0.0000 (0.0000) | 1 | 40 |" in lines  # 40.5, rounded to even
    assert "| no parts | 0.3500 | +0.1500 (0.0500) | 0.5 | 40 |" in lines
    assert "| subsets alone | - | - | - | - |" in lines


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_find_good_arms_within_the_budget(name):
    recording = synthetic_bernoulli(1, n_prompts=6, n_queries=60)
    entrant = Entrant(name, VARIANTS[name])
    outcome = drive(entrant.algorithm.start(recording.problem(16), budget=6_000, seed=0), recording.environment(2))
    q = recording.exact(16).q()
    assert outcome.spent <= 6_000
    assert (q.max(axis=(1, 2)) - entrant.value(outcome.policy, q)).mean() < 0.08
