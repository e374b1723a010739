"""Recordings sample and value what they hold, and bad ones are refused."""

from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.environments.port import Environment
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Contexts
from tests.support.recordings import best_of, everywhere, voting


@pytest.mark.parametrize("make", [voting, best_of])
@pytest.mark.parametrize("total", [1.0, 0.8])
def test_sampling_follows_the_exact_law(make, total):
    recording = make(total)
    environment = recording.environment(5)
    assert isinstance(environment, Environment)
    seen = environment.pull(everywhere(recording, 6_000))
    problem = recording.problem(6)
    exact = recording.exact(6).q()
    assert seen.failed.mean() == pytest.approx(1 - total, abs=0.01)
    assert (seen.label[seen.failed] == (-1 if make is voting else 0)).all()
    label, score = seen.label.reshape(30, -1), seen.score.reshape(30, 6_000, -1)
    for n in (1, 2, 6):
        reward = problem.aggregator.reward(
            label.reshape(-1, n), score.reshape(-1, n, score.shape[2]), problem.contexts.weights
        )
        by_prompt = reward.reshape(len(exact), 3, -1).mean(axis=2)
        q = by_prompt - recording.contexts.cost[:, None] * n * recording.cost
        np.testing.assert_allclose(q, exact[:, :, n - 1], atol=0.015)
    np.testing.assert_array_equal(seen.cost, np.repeat(recording.cost, 60_000))


def test_outcomes_without_probability_are_never_drawn():
    probs = np.zeros((1, 2, 4))
    probs[0, 0] = [0.0, 0.5, 0.0, 0.5]
    probs[0, 1] = [0.0, 0.0, 1.0, 0.0]
    recording = voting(probs=probs, answers=np.array([1, 2]), cost=np.array([0.0]))
    label = recording.environment(0).pull(everywhere(recording, 5_000)).label.reshape(2, -1)
    assert set(label[0]) == {1, 3} and set(label[1]) == {2}


def test_environments_of_one_seed_are_alike():
    recording = voting()
    pulls = everywhere(recording, 3)
    a, b, c = (recording.environment(*seed).pull(pulls) for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(a.label, b.label)
    assert (a.label != c.label).any()


@pytest.mark.parametrize("make", [voting, best_of])
def test_splits_and_subsets(make):
    recording = make()
    train, test = recording.split(0, 1)
    assert len(train) == 8 and sorted([*train, *test]) == list(range(10))
    assert (recording.split(0, 1)[0] == train).all() and (recording.split(0, 2)[0] != train).any()
    values = recording.exact(5)
    np.testing.assert_allclose(recording.subset(test).exact(5).q(), values.q(test), atol=1e-12)
    np.testing.assert_allclose(values.q(), 0.8 * values.q(train) + 0.2 * values.q(test), atol=1e-12)
    assert recording.of_prompts(np.array([2, 0])).parts is None
    some = replace(recording, overhead=np.array([0.1, 0.2, 0.3]), parts=np.arange(6).reshape(3, 2))
    some = some.of_prompts(np.array([2, 0]))
    assert (some.n_prompts, some.overhead.tolist(), some.parts.tolist()) == (2, [0.3, 0.1], [[4, 5], [0, 1]])
    plain = replace(some, overhead=np.zeros(2))
    np.testing.assert_allclose(plain.exact(5).q(), values.q()[:, [2, 0]], atol=1e-12)
    with pytest.raises(ConfigurationError, match="split"):
        recording.split(0, train=1.0)
    with pytest.raises(ConfigurationError, match="split"):
        recording.subset(train[:1]).split(0)


def test_graded_credit_is_sampled_and_valued():
    credit = np.random.default_rng(8).random((10, 4))
    recording = voting(credit=credit)
    seen = recording.environment(0).pull(everywhere(recording, 50))
    query = np.tile(np.repeat(np.arange(10), 50), 3)
    np.testing.assert_array_equal(seen.score[:, 0], credit[query, seen.label])
    expected = (recording.probs * credit).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(recording.exact(1).q()[0, :, 0], expected)
    np.testing.assert_array_equal(recording.subset(np.array([3])).scores, credit[[3]])


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (voting, {"probs": np.ones((3, 10, 4))}),
        (voting, {"probs": -np.ones((3, 10, 4))}),
        (voting, {"probs": np.ones((3, 10))}),
        (voting, {"answers": np.full(10, 4)}),
        (voting, {"answers": np.zeros(9, dtype=int)}),
        (voting, {"cost": np.array([0.1])}),
        (voting, {"cost": -np.ones(3)}),
        (voting, {"cost_weights": np.array([-1.0])}),
        (voting, {"credit": np.ones((10, 3))}),
        (best_of, {"outcomes": np.ones((3, 10, 5))}),
        (best_of, {"outcomes": np.ones((3, 9, 5, 2))}),
        (best_of, {"outcomes": np.full((3, 10, 5, 2), np.nan)}),
        (best_of, {"weights": np.ones((2, 2))}),
    ],
)
def test_bad_recordings_are_refused(make, changes):
    with pytest.raises(ConfigurationError):
        make(**changes)


def test_contexts_of_recordings():
    assert voting().contexts.weights.tolist() == [[1.0], [1.0]]
    found = best_of().contexts
    assert isinstance(found, Contexts) and found.cost.tolist() == [0.0, 1.0, 0.2]
