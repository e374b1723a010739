"""The correction: consistent under a wrong model, unbiased in full, with intervals that cover."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators import corrected
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.port import Estimator
from iapo_dspy.bandit.estimators.subsets import cell_subsets
from iapo_dspy.bandit.models.exact import best_of_n_rewards, majority_vote_rewards
from iapo_dspy.bandit.models.port import Predictions
from iapo_dspy.bandit.ties import choose
from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_categorical
from iapo_dspy.types import Arm, FloatArray, Observations, Pulls
from tests.support.draws import observe, problem_of

NAN = float("nan")
MV, BEST = MajorityVoteAggregator(), BestOfNAggregator()


class Constant:
    """A predictor that has made up its mind: every arm of every query is worth the same."""

    def __init__(self, value: float, n_prompts: int, max_n: int, rows: int = 1) -> None:
        self._value = value
        self._shape = rows, n_prompts, max_n

    def predict(self, cells: Cells) -> Predictions:
        rows, n_prompts, max_n = self._shape
        flat = np.full((rows, n_prompts, cells.n_visited, max_n), self._value)
        return Predictions(given_all=flat.copy(), given_others=flat.copy())


def u_shaped(p: int, v: int, seed: int) -> FloatArray:
    """Cells nearly always or nearly never right, independent of everything [P, V]."""
    rng = np.random.default_rng(seed)
    share = np.linspace(0.3, 0.7, p)[:, None]
    return np.where(rng.random((p, v)) < share, 0.95, 0.05)


def draw(theta: FloatArray, m: int, seed: int) -> Observations:
    p, v = theta.shape
    prompt, query = np.repeat(np.arange(p), v), np.tile(np.arange(v), p)
    right = np.random.default_rng(seed).random((p * v, m)) < theta[prompt, query][:, None]
    pulls = [(int(a), int(b), m) for a, b in zip(prompt, query, strict=True)]
    return observe(pulls, right.ravel(), 1 - right.ravel())


def votes(theta: FloatArray, max_n: int) -> FloatArray:
    """Exact rewards [P, V, N]."""
    flat = theta.reshape(-1, 1)
    law = np.hstack([flat, 1 - flat])
    return majority_vote_rewards(law, np.tile([1.0, 0.0], (len(law), 1)), max_n).reshape(*theta.shape, max_n)


def estimator_of(
    aggregator: Aggregator, p: int, max_n: int, *, wrong: float | None = None, use: bool = True
) -> CorrectedEstimator:
    estimator = CorrectedEstimator(problem_of(aggregator, n_prompts=p, max_n=max_n), corrected=use)
    if wrong is not None:
        estimator._model = Constant(wrong, p, max_n)
    return estimator


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0.0, 0.9, -3.0])
def test_the_estimate_converges_to_the_truth_whatever_the_model_says(wrong: float) -> None:
    p, m = 5, 4
    errors = []
    for v in (30, 300, 3_000):
        theta = u_shaped(p, v, seed=1)
        truth = votes(theta, m).mean(axis=1)
        observations = draw(theta, m, seed=2)
        found = {}
        for use in (False, True):
            estimator = estimator_of(MV, p, m, wrong=wrong, use=use)
            estimator.update(observations)
            found[use] = np.abs(estimator.estimates().reward[0] - truth).max()
        assert found[False] == pytest.approx(np.abs(wrong - truth).max())  # the model alone never learns
        errors.append(found[True])
    assert errors[0] < 0.25 and errors[2] < 0.02 and errors[2] < errors[1] < errors[0] + 0.02


def test_only_the_drawn_queries_correct_and_the_correction_reaches_all_of_them() -> None:
    """Half of the queries carry pulls of 4, the others of 1: scale 4 is estimated for all of them."""
    v, p, m = 2_000, 4, 4
    theta = u_shaped(p, v, seed=3)
    big, small = draw(theta[:, ::2], m, 4), draw(theta[:, 1::2], 1, 5)
    shift = [
        Observations(
            pulls=Pulls(o.pulls.prompt, 2 * o.pulls.query + k, o.pulls.size), label=o.label, score=o.score, cost=o.cost
        )
        for k, o in enumerate((big, small))
    ]
    estimator = estimator_of(MV, p, m, wrong=0.3)
    for observations in shift:
        estimator.update(observations)
    found = estimator.estimates()
    assert found.count.tolist() == [[v, v // 2, v // 2, v // 2]] * p
    np.testing.assert_allclose(found.reward[0], votes(theta, m).mean(axis=1), atol=0.04)


def test_the_full_doubly_robust_form_is_the_subset_mean_under_a_constant_model() -> None:
    """With enough prompts that disagree with the model, residuals are trusted nearly in full: what is left of a
    constant prediction is the mean of the unbiased estimates on the queries that have them."""
    theta = u_shaped(6, 400, seed=6)
    observations = draw(theta, 3, seed=7)
    estimator = estimator_of(MV, 6, 3, wrong=0.0)
    estimator.update(observations)
    right = observations.score.reshape(6, 400, 3).sum(axis=2).astype(int)
    pairs = np.array([0.0, 1 / 3, 2 / 3, 1.0])[right]  # of two out of three: ties count a half
    triples = (right >= 2).astype(float)
    subset = np.stack([right / 3, pairs, triples], axis=2).mean(axis=1)
    np.testing.assert_allclose(estimator.estimates().reward[0], subset, rtol=0.01)


def test_trusted_in_full_the_estimate_is_the_doubly_robust_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """mean over V of g + mean over k of (u - g): the draws' own predictions f play no part, whatever they say."""
    rng = np.random.default_rng(9)
    theta = u_shaped(2, 20, seed=9)
    observations = [draw(theta[:, :12], 3, seed=1)]
    late = draw(theta[:, 12:], 1, seed=2)
    observations.append(
        Observations(
            pulls=Pulls(late.pulls.prompt, late.pulls.query + 12, late.pulls.size),
            label=late.label,
            score=late.score,
            cost=late.cost,
        )
    )
    f, g = rng.normal(size=(2, 1, 2, 20, 3))
    unbiased = cell_subsets(Cells.of(observations, 2, 1), MV, np.ones((1, 1)), 3)[0]
    cells = Cells.of(observations, 2, 1)
    monkeypatch.setattr(corrected, "LEAST_BIAS", 1e6)
    estimator = estimator_of(MV, 2, 3, wrong=0.0)
    predictions = Predictions(given_all=f.copy(), given_others=g.copy())
    monkeypatch.setattr(estimator._model, "predict", lambda _: predictions)
    for o in observations:
        estimator.update(o)
    found = estimator.estimates().reward[0]
    for p in range(2):
        for n in range(3):
            mine = (cells.prompt == p) & ~np.isnan(unbiased[:, n])
            expected = g[0, p, :, n].mean() + (unbiased[mine, n] - g[0, p, cells.query[mine], n]).mean()
            assert found[p, n] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0.2, 0.6])
def test_over_many_runs_the_corrected_estimate_is_nearly_unbiased(wrong: float) -> None:
    """The model's constant is off by up to .5; on average over runs less than a tenth of that is left."""
    theta = u_shaped(4, 60, seed=8)
    truth = votes(theta, 3).mean(axis=1)
    total = np.zeros_like(truth)
    runs = 60
    for seed in range(runs):
        estimator = estimator_of(MV, 4, 3, wrong=wrong)
        estimator.update(draw(theta, 3, seed=100 + seed))
        total += estimator.estimates().reward[0]
    bias = total / runs - truth
    assert np.abs(bias).max() < 0.05 and np.abs(bias).mean() < 0.025


def coverage(
    recording, aggregator: Aggregator, *, runs: int, v: int, schedule: list[tuple[float, int]], scales: list[int]
) -> tuple[FloatArray, FloatArray]:
    """Which intervals hold the mean over all queries, and z-scores [runs, W, P, scales]."""
    exact = recording.exact(max(scales))
    rows = np.unique(recording.contexts.weights, axis=0)[::4]
    problem = problem_of(aggregator, n_prompts=recording.n_prompts, max_n=max(scales), weights=rows)
    truth = exact.reward.mean(axis=2)[::4, :, np.array(scales) - 1]
    z = []
    for seed in range(runs):
        environment = recording.environment(seed)
        estimator = CorrectedEstimator(problem)
        order = np.random.default_rng(seed).permutation(recording.n_queries)[:v]
        at = 0
        for share, m in schedule:
            part = order[at : at + round(share * v)]
            at += len(part)
            prompt, query = np.repeat(np.arange(recording.n_prompts), len(part)), np.tile(part, recording.n_prompts)
            estimator.update(environment.pull(Pulls(prompt, query, np.full(len(prompt), m))))
            if at < v:
                estimator.evidence()  # the model is fitted along the way, as in a run
        found = estimator.estimates()
        assert found.standard_error is not None
        at_scales = np.array(scales) - 1
        z.append((found.reward[:, :, at_scales] - truth) / found.standard_error[:, :, at_scales])
    scores = np.array(z)
    return np.abs(scores) <= 1.96, scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "schedule"), [("votes", [(0.5, 2), (0.5, 4)]), ("votes", [(1.0, 4)]), ("best", [(0.5, 2), (0.5, 4)])]
)
def test_intervals_cover_at_scales_with_evidence(name: str, schedule: list[tuple[float, int]]) -> None:
    recording: Recording
    if name == "votes":
        recording = synthetic_bernoulli(3, n_prompts=12, n_queries=4_000)
        hits, z = coverage(recording, MV, runs=12, v=80, schedule=schedule, scales=[1, 2, 3, 4])
    else:
        recording = synthetic_categorical(3, n_prompts=12, n_queries=2_000)
        hits, z = coverage(recording, BEST, runs=20, v=80, schedule=schedule, scales=[1, 2, 3, 4])
    by_scale = hits.mean(axis=(0, 1, 2))
    print(f"{name} {schedule}: coverage by scale {by_scale.round(3)}, sd of z {z.std(axis=(0, 1, 2)).round(2)}")
    assert (by_scale > 0.88).all() and (by_scale < 0.995).all()


def test_differences_on_shared_queries_are_known_better_than_either_arm() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=150)
    theta = 1 / (1 + np.exp(-(np.array([0.4, 0.0, -0.3])[:, None] + 3 * difficulty)))
    estimator = estimator_of(MV, 3, 4)
    estimator.update(draw(theta, 4, seed=1))
    evidence = estimator.evidence()
    se = evidence.standard_error()[0]
    prompts = np.array([0, 1, 2, 0, 0])
    scales = np.array([1, 1, 1, 2, 4])
    against = evidence.against(0, prompts, scales, 0, 1)
    independent = np.hypot(se[prompts, scales - 1], se[0, 0])
    assert against[0] == 0.0
    assert (against[1:] < 0.75 * independent[1:]).all()
    # It is a distance: the same from either side.
    assert evidence.against(0, np.array([0]), np.array([1]), 2, 3)[0] == pytest.approx(
        evidence.against(0, np.array([2]), np.array([3]), 0, 1)[0]
    )


@pytest.mark.slow
def test_errors_of_differences_are_those_that_runs_show() -> None:
    """z-scores of differences between prompts at a scale with evidence have a standard deviation of about one."""
    theta = 1 / (1 + np.exp(-(np.linspace(-1, 1, 5)[:, None] + 2 * np.random.default_rng(0).normal(size=3_000))))
    truth = votes(theta, 3).mean(axis=1)[:, 2]
    z = []
    for seed in range(30):
        queries = np.random.default_rng(seed).permutation(3_000)[:80]
        estimator = estimator_of(MV, 5, 3)
        estimator.update(draw(theta[:, queries], 3, seed=seed))
        evidence = estimator.evidence()
        reward = evidence.reward()[0, :, 2]
        se = evidence.against(0, np.arange(1, 5), np.full(4, 3), 0, 3)
        z.append((reward[1:] - reward[0] - (truth[1:] - truth[0])) / se)
    print("sd of z of differences", np.std(z).round(2))
    assert 0.75 < np.std(z) < 1.3


def test_prompts_that_were_never_drawn_have_no_estimate() -> None:
    estimator = CorrectedEstimator(problem_of(BEST, n_prompts=3, max_n=2))
    assert isinstance(estimator, Estimator)
    with pytest.raises(ValueError, match="before the first observation"):
        estimator.evidence()
    estimator.update(observe([], np.empty((0, 1))))
    with pytest.raises(ValueError, match="before the first observation"):
        estimator.estimates()
    estimator.update(observe([(0, 0, 1), (2, 3, 2)], [1, 0, 1]))
    found = estimator.estimates()
    assert found.standard_error is not None
    for array in (found.reward[0], found.standard_error[0], found.cost):
        assert np.isnan(array).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert found.count.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_the_overhead_flips_the_best_arm() -> None:
    """.6 and .6: the prompt with the cheap completions wins one by one, the one without overhead on short calls."""
    theta = np.full((2, 40), 0.6)
    for overhead, best in ((0.0, 0), (10.0, 1)):
        problem = problem_of(BEST, n_prompts=2, max_n=1, price=[1.0], cost_scale=0.01)
        estimator = CorrectedEstimator(problem)
        whole = draw(theta, 2, seed=0)
        # The same draws for both prompts, so that only prices differ.
        score = np.tile(whole.score[:80, 0], 2)
        pulls = [(p, x, 2) for p in range(2) for x in range(40)]
        cost, fixed = np.repeat([1.0, 2.0], 80), np.repeat([overhead, 0.0], 40).tolist()
        estimator.update(observe(pulls, score, cost=cost, overhead=fixed))
        evidence = estimator.evidence()
        np.testing.assert_allclose(evidence.cost[:, 0], [1.0 + overhead, 2.0])
        q = evidence.reward() - 0.01 * evidence.cost
        assert choose(q, evidence).arms == (Arm(best, 1),)


def test_contexts_share_rows_of_weights_and_scale_the_vote() -> None:
    weights = np.array([[2.0], [0.0], [1.0]])
    theta = u_shaped(2, 30, seed=1)
    observations = draw(theta, 2, seed=1)
    one = estimator_of(MV, 2, 3)
    three = CorrectedEstimator(problem_of(MV, n_prompts=2, max_n=3, weights=weights))
    for estimator in (one, three):
        estimator.update(observations)
    found, single = three.estimates(), one.estimates()
    assert found.standard_error is not None and single.standard_error is not None
    np.testing.assert_allclose(found.reward, weights[:, :, None] * single.reward)
    np.testing.assert_allclose(found.standard_error, weights[:, :, None] * single.standard_error)


@pytest.mark.parametrize(("factor", "shift"), [(50.0, 0.0), (0.01, 0.0), (1.0, 100.0), (1.0, -3.0)])
def test_best_of_does_not_depend_on_the_unit_or_the_origin_of_scores(factor: float, shift: float) -> None:
    """Scores out of 100, or negative lengths: estimates and their errors follow."""
    rng = np.random.default_rng(4)
    pulls = [(p, x, 3) for p in range(4) for x in range(40)]
    scores = rng.normal(size=480) + np.repeat([0.0, 0.2, 0.4, 0.6], 120)
    found = []
    for values in (scores, factor * scores + shift):
        estimator = estimator_of(BEST, 4, 6)
        estimator.update(observe(pulls, values))
        found.append(estimator.estimates())
    assert found[0].standard_error is not None and found[1].standard_error is not None
    np.testing.assert_allclose(found[1].reward, factor * found[0].reward + shift, rtol=1e-6, atol=1e-6 * factor)
    np.testing.assert_allclose(found[1].standard_error, factor * found[0].standard_error, rtol=1e-5)


def test_errors_grow_above_the_scales_with_evidence_and_shrink_with_draws() -> None:
    few, many = estimator_of(MV, 4, 32), estimator_of(MV, 4, 32)
    few.update(draw(u_shaped(4, 20, seed=2), 2, seed=2))
    many.update(draw(u_shaped(4, 500, seed=2), 2, seed=2))
    small, large = (e.estimates().standard_error for e in (many, few))
    assert small is not None and large is not None
    assert (small[0, :, :2] < large[0, :, :2]).all()
    doubt = many.evidence().doubt[0]
    assert (np.diff(doubt[:, 1:], axis=1) > 0).all()


@pytest.mark.parametrize("aggregator", [MV, BEST])
def test_all_failed_and_one_cell_have_finite_estimates(aggregator: Aggregator) -> None:
    for observations in (observe([(0, 0, 1)], [1.0]), observe([(0, 0, 2), (1, 0, 2)], [NAN] * 4, [-1] * 4)):
        estimator = estimator_of(aggregator, 2, 4)
        with np.errstate(all="raise", under="ignore"):
            estimator.update(observations)
            evidence = estimator.evidence()
        assert np.isfinite(evidence.reward()).all() and np.isfinite(evidence.standard_error()).all()


def test_best_of_corrected_is_near_the_truth_at_scales_without_evidence() -> None:
    """One objective, a right answer at .1: Best-of-16 from pulls of 4."""
    theta = np.full((3, 400), [[0.1], [0.2], [0.4]])
    estimator = estimator_of(BEST, 3, 16)
    estimator.update(draw(theta, 4, seed=3))
    exact = best_of_n_rewards(np.ones((3, 1)), theta[:, :1], 16)
    np.testing.assert_allclose(estimator.estimates().reward[0], exact, atol=0.12)


@pytest.mark.parametrize("aggregator", [MV, BEST])
def test_memory_grows_no_faster_than_the_data(aggregator: Aggregator) -> None:
    peaks = []
    for v in (200, 800):
        estimator = estimator_of(aggregator, 8, 16)
        estimator.update(draw(u_shaped(8, v, seed=1), 4, seed=1))
        tracemalloc.start()
        estimator.evidence()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4.4 * peaks[0]


def test_the_model_knows_the_parts_of_the_prompts() -> None:
    """Of 4 x 3 prompts the last and best has one completion, a wrong one."""
    rng = np.random.default_rng(0)
    parts = np.indices((4, 3)).reshape(2, -1).T
    pulls = [(p, x, 2) for x in range(40) for p in range(11)]
    right = rng.random(2 * len(pulls)) < np.repeat([0.1 + 0.15 * parts[p].sum() for p, _, _ in pulls], 2)
    pulls, right = [*pulls, (11, 0, 1)], np.append(right, False)
    plain = problem_of(MV, n_prompts=12, n_queries=40)
    values = []
    for problem in (plain, replace(plain, parts=parts)):
        estimator = CorrectedEstimator(problem)
        estimator.update(observe(pulls, right, np.where(right, 0, 1)))
        values.append(estimator.estimates().reward[0, 11, 0])
    assert values[1] > values[0] + 0.15, values
