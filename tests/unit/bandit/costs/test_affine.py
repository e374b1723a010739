"""Affine costs: what a query costs once, and what each completion adds, worked out by hand."""

from typing import Any

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.costs.scale import CostScale
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recorder import record
from iapo_dspy.environments.recorded.recording import BestOfRecording, VotingRecording
from iapo_dspy.environments.wrappers import Drift, Failures
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.program.evidence.columns import rounded
from iapo_dspy.types import Arm, Contexts, Observations, Pulls

NAN = float("nan")


def observe(pulls: list[tuple[int, int]], cost: Any, overhead: Any = None, score: Any = None) -> Observations:
    """Observations of pulls [(prompt, size)], single objective."""
    total = sum(m for _, m in pulls)
    settings: dict[str, Any] = {} if overhead is None else {"overhead": np.array(overhead, dtype=float)}
    return Observations(
        pulls=Pulls(np.array([p for p, _ in pulls]), np.zeros(len(pulls), int), np.array([m for _, m in pulls])),
        label=np.zeros(total, int),
        score=np.ones((total, 1)) if score is None else np.array(score, dtype=float)[:, None],
        cost=np.array(cost, dtype=float),
        **settings,
    )


def problem(n_prompts: int = 2, max_n: int = 3, cost_scale: float | None = 1.0, **changes: Any) -> Problem:
    settings: dict[str, Any] = {
        "n_queries": 1,
        "contexts": Contexts(np.ones((1, 1)), np.ones(1)),
        "aggregator": BestOfNAggregator(),
    }
    return Problem(n_prompts=n_prompts, max_n=max_n, cost_scale=cost_scale, **{**settings, **changes})


def test_fixed_and_per_completion_parts_by_hand() -> None:
    costs = AffineCosts(3)
    costs.update(observe([(0, 3), (1, 1), (0, 1)], [1, 2, 3, 5, 10], [100, 7, 50]))
    np.testing.assert_allclose(costs.fixed, [75.0, 7.0, NAN])  # a mean over pulls, whatever their size
    np.testing.assert_allclose(costs.per_completion, [4.0, 5.0, NAN])  # a mean over completions
    np.testing.assert_allclose(costs.arms(3), [[79.0, 83.0, 87.0], [12.0, 17.0, 22.0], [NAN, NAN, NAN]])
    costs.update(observe([(2, 2)], [1, 3], [10]))  # one pull takes the short way
    np.testing.assert_allclose(costs.arms(2)[2], [12.0, 14.0])


def test_constant_costs_come_back_exactly() -> None:
    costs = AffineCosts(1)
    for m in (3, 7, 32, 1):
        costs.update(observe([(0, m)] * 5, [0.1] * (5 * m), [0.3] * 5))
    assert costs.fixed.tolist() == [0.3] and costs.per_completion.tolist() == [0.1]


def test_observations_without_overhead_have_zeros_and_a_wrong_shape_is_refused() -> None:
    assert observe([(0, 2), (1, 1)], [1, 1, 1]).overhead.tolist() == [0.0, 0.0]
    with pytest.raises(ConfigurationError, match=r"2 pulls: got overhead \(3,\)"):
        observe([(0, 2), (1, 1)], [1, 1, 1], [1, 1, 1])


def test_block_estimates_price_every_arm_with_the_overhead_once() -> None:
    estimator = BlockEstimator(problem())
    estimator.update(observe([(0, 3), (1, 2)], [1, 1, 4, 2, 2], [10, 0]))
    found = estimator.estimates()
    np.testing.assert_allclose(found.cost, [[12.0, 14.0, 16.0], [2.0, 4.0, NAN]])  # NaN: no block of three of prompt 1


def test_the_scale_makes_the_average_call_for_one_completion_cost_a_hundredth() -> None:
    scale = CostScale(problem(cost_scale=None))
    scale.observe(observe([(0, 2), (0, 2), (1, 1)], [10, 20, 30, 40, 5], [100, 200, 15]))
    # Prompt 0: 150 a query and 25 a completion; prompt 1: 15 and 5.
    assert scale.value == pytest.approx(0.01 / ((175 + 20) / 2))


def test_what_failed_for_free_does_not_dilute_the_scale_but_a_paid_failure_counts() -> None:
    free = CostScale(problem(cost_scale=None))
    free.observe(observe([(0, 1), (0, 1), (1, 1)], [20, 0, 20], [10, 0, 10], [1.0, NAN, 1.0]))
    assert free.value == pytest.approx(0.01 / 30)
    # Where time is the cost, completions are free and only the pull costs: its failures are real.
    paid = CostScale(problem(cost_scale=None))
    paid.observe(observe([(0, 1), (1, 1)], [0, 0], [2, 4], [NAN, 1.0]))
    assert paid.value == pytest.approx(0.01 / 3)


def recording(overhead: Any) -> VotingRecording:
    """Two prompts that are right 7 and 8 times out of 10 on one query; the better one has the larger overhead."""
    return VotingRecording(
        probs=np.array([[[0.7, 0.3]], [[0.8, 0.2]]]),
        answers=np.array([0]),
        cost=np.array([0.02, 0.02]),
        cost_weights=np.array([0.0, 1.0]),
        overhead=None if overhead is None else np.array(overhead),  # type: ignore[arg-type]
    )


def test_the_fixed_part_flips_the_best_prompt_by_hand() -> None:
    # N = 1 is worth .7 - .02 and .8 - .02; an overhead of .15 for the better prompt turns that around.
    plain, dear = recording(None).exact(1).q(), recording([0.0, 0.15]).exact(1).q()
    np.testing.assert_allclose(plain[:, :, 0], [[0.7, 0.8], [0.68, 0.78]])
    np.testing.assert_allclose(dear[:, :, 0], [[0.7, 0.8], [0.68, 0.63]])
    assert plain[1].argmax() == 1 and dear[1].argmax() == 0


def test_the_fixed_part_moves_the_best_scale_by_hand() -> None:
    """A prompt with a large overhead and cheap completions is worth asking often, or not at all.

    Prompt 0 costs .10 a query and .01 a completion, prompt 1 nothing a query and .05 a completion. Both are right 3
    times out of 4, so a vote of three is worth .75^3 + 3 * .75^2 * .25 = .84375, and a vote of two (ties 1/2) .75.
    """
    law = VotingRecording(
        probs=np.array([[[0.75, 0.25]]] * 2),
        answers=np.array([0]),
        cost=np.array([0.01, 0.05]),
        cost_weights=np.array([1.0]),
        overhead=np.array([0.10, 0.0]),
    )
    q = law.exact(3).q()[0]
    np.testing.assert_allclose(q[0], [0.75 - 0.11, 0.75 - 0.12, 0.84375 - 0.13])
    np.testing.assert_allclose(q[1], [0.75 - 0.05, 0.75 - 0.10, 0.84375 - 0.15])
    assert np.unravel_index(q.argmax(), q.shape) == (0, 2)
    # The same as one cost per completion, at any one scale, would choose prompt 1.
    alone = VotingRecording(
        probs=law.probs, answers=law.answers, cost=np.array([0.11, 0.05]), cost_weights=law.cost_weights
    )
    assert np.unravel_index(alone.exact(3).q()[0].argmax(), q.shape) == (1, 0)


def test_psst_finds_the_arm_that_the_overhead_makes_best() -> None:
    for overhead, best in (([0.0, 0.0], 1), ([0.0, 0.5], 0)):
        law = recording(overhead)
        setting = law.problem(max_n=4)
        outcome = drive(PSST().start(setting, budget=4000, seed=0), law.environment(1))
        assert outcome.policy[1].prompt == best == law.exact(4).q()[1].max(axis=1).argmax()
        assert outcome.policy[0].prompt == 1  # who does not mind the cost is not moved by it
        np.testing.assert_allclose(outcome.estimates.cost[0], 0.02 * np.arange(1, 5))
        np.testing.assert_allclose(outcome.estimates.cost[1], overhead[1] + 0.02 * np.arange(1, 5))
    assert Arm(0, 1) != Arm(1, 1)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_recordings_keep_their_overhead_on_disk_and_write_none_without(tmp_path: Any, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    best_of = BestOfRecording(
        outcomes=np.array([[[[0.0], [1.0]]]]),
        probs=np.array([[[0.5, 0.5]]]),
        cost=np.array([0.1]),
        weights=np.array([[1.0, 1.0]]),
        overhead=np.array([0.2]),
    )
    for law in (recording([0.0, 0.25]), best_of):
        save(law, tmp_path / f"law{suffix}")
        found = load(tmp_path / f"law{suffix}")
        np.testing.assert_array_equal(found.overhead, law.overhead)
        np.testing.assert_array_equal(found.exact(2).q(), law.exact(2).q())
    np.testing.assert_allclose(best_of.exact(2).q()[0, 0], [0.5 - 0.3, 0.75 - 0.4])
    save(recording(None), tmp_path / "old.npz")
    with np.load(tmp_path / "old.npz") as archive:
        assert "overhead" not in archive.files  # files without one are what earlier versions wrote and read
    assert load(tmp_path / "old.npz").overhead.tolist() == [0.0, 0.0]


def test_a_bad_overhead_is_refused() -> None:
    for bad in ([0.1], [0.1, -0.1], [0.1, NAN]):
        with pytest.raises(ConfigurationError, match="overhead must be"):
            recording(bad)


def test_recording_an_environment_keeps_its_overhead() -> None:
    law = recording([0.04, 0.14])
    again = record(law.environment(0), law.contexts, kind="vote", samples=5, cost_scale=1.0)
    np.testing.assert_allclose(again.overhead, law.overhead)
    np.testing.assert_allclose(again.cost, law.cost)
    scaled = record(law.environment(0), law.contexts, kind="vote", samples=5)
    assert float((scaled.overhead + scaled.cost).mean()) == pytest.approx(0.01)


def test_wrappers_hand_each_pull_its_own_overhead() -> None:
    cheap, dear = recording([0.0, 1.0]), recording([10.0, 11.0])
    world = Drift(Failures(cheap.environment(0), share=0.5), dear.environment(0), over=40, seed=3)
    pulls = Pulls(np.array([0, 1] * 10), np.zeros(20, int), np.arange(1, 21))
    seen = world.pull(pulls)
    assert {0.0, 10.0} == set(seen.overhead[0::2]) and {1.0, 11.0} == set(seen.overhead[1::2])


def test_saved_evidence_keeps_its_overhead() -> None:
    (kept,) = rounded([observe([(0, 2), (1, 1)], [1, 2, 3], [0.5, 1.25])])
    assert kept.overhead.tolist() == [0.5, 1.25]
    (none,) = rounded([observe([(0, 2)], [1, 2])])
    assert none.overhead.tolist() == [0.0]


def test_votes_are_not_changed_by_what_they_cost() -> None:
    setting = problem(aggregator=MajorityVoteAggregator())
    plain, dear = BlockEstimator(setting), BlockEstimator(setting)
    plain.update(observe([(0, 3), (1, 3)], range(6)))
    dear.update(observe([(0, 3), (1, 3)], range(6), [5, 6]))
    np.testing.assert_array_equal(plain.estimates().reward, dear.estimates().reward)
