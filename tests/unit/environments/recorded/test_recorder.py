"""Environments are recorded: answers, failures and costs."""

from typing import Any

import numpy as np
import pytest

from iapo_dspy.environments.recorded.recorder import record
from iapo_dspy.environments.recorded.recording import BestOfRecording, VotingRecording
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.types import Contexts, Observations
from tests.support.recordings import Dry, best_of, voting

RNG = np.random.default_rng(0)


@pytest.mark.slow
@pytest.mark.parametrize("total", [1.0, 0.75])
def test_recording_a_voting_environment(total):
    truth = voting(total)
    steps = []
    found = record(
        truth.environment(0),
        truth.contexts,
        kind="vote",
        samples=4_000,
        cost_scale=1.0,
        progress=lambda done, all_: steps.append((done, all_)),
    )
    assert steps == [(40_000, 120_000), (80_000, 120_000), (120_000, 120_000)]
    assert isinstance(found, VotingRecording)
    np.testing.assert_array_equal(found.answers, truth.answers)
    assert found.credit is None
    np.testing.assert_allclose(found.probs, truth.probs, atol=0.04)
    np.testing.assert_allclose(found.exact(5).q(), truth.exact(5).q(), atol=0.02)


def test_recording_a_best_of_environment_keeps_failures():
    truth = best_of(0.75)
    found = record(truth.environment(0), truth.contexts, kind="best-of", samples=400, cost_scale=1.0)
    assert isinstance(found, BestOfRecording)
    assert found.outcomes.shape == (3, 10, 400, 2)
    assert found.probs.sum(axis=2).mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(found.exact(5).q(), truth.exact(5).q(), atol=0.04)


def test_recorded_failures_are_not_votes_whatever_their_label():
    class HalfFails:
        n_prompts, n_queries = 1, 2

        def pull(self, pulls):
            score = np.tile([1.0, np.nan], pulls.completions // 2)
            label = np.tile([3, 7], pulls.completions // 2)
            return Observations(pulls=pulls, label=label, score=score[:, None], cost=np.ones(len(score)))

    found = record(HalfFails(), Contexts(np.ones((1, 1)), np.zeros(1)), kind="vote", samples=10)
    np.testing.assert_array_equal(found.probs, np.full((1, 2, 1), 0.5))
    assert isinstance(found, VotingRecording)
    assert found.answers.tolist() == [0, 0]


def test_recording_graded_answers_and_raw_costs():
    truth = voting(credit=RNG.random((10, 4)), cost=np.array([20.0, 40.0, 60.0]))
    found = record(truth.environment(0), truth.contexts, kind="vote", samples=50)
    np.testing.assert_allclose(found.cost, [0.005, 0.01, 0.015])  # 0.01 for an average completion
    assert isinstance(found, VotingRecording) and found.credit is not None
    for x, classes in enumerate(found.probs.sum(axis=0) > 0):
        for credit in found.credit[x][classes]:
            assert np.isclose(truth.scores[x], credit).any()


def test_a_recording_needs_all_of_its_completions():
    recording = voting()
    with pytest.raises(BudgetTooSmall) as error:
        record(Dry(recording.environment(0), 15), recording.contexts, kind="vote", samples=2)
    assert (error.value.given, error.value.least) == (30, 60)
    settings: dict[str, Any] = {"kind": "vote", "samples": 1}
    for changes in ({"samples": 0}, {"kind": "mixed"}):
        with pytest.raises(ConfigurationError):
            record(recording.environment(0), recording.contexts, **(settings | changes))
