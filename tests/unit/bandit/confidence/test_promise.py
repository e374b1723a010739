from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.confidence.promise import with_promises
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.types import Policy

LOGGER = "iapo_dspy.bandit.confidence.promise"


def world(easy: float, hard: float) -> VotingRecording:
    """Return two prompts, the second one a bit worse; a right answer has these probabilities, query after query."""
    theta = np.tile([easy, hard], 100)
    right = np.stack([theta, theta - 0.05])
    wrong = (1.0 - right) / 2
    return VotingRecording(
        probs=np.stack([right, wrong, wrong], axis=2),
        cost=np.full(2, 0.01),
        answers=np.zeros(200, dtype=np.int64),
        cost_weights=np.array([0.0, 0.2]),
    )


def run(recording: VotingRecording, promise: float, budget: int = 2_000) -> tuple[Problem, Outcome]:
    """Return a run whose first context promises a share of right answers."""
    problem = recording.problem(max_n=8)
    problem = replace(problem, contexts=replace(problem.contexts, confidence=np.array([promise, 0.0])))
    outcome = drive(Auto().start(problem, budget=budget, seed=1), recording.environment(1))
    return problem, with_stops(problem, outcome)


@pytest.mark.slow
def test_calls_abstain_where_questions_are_hard(caplog: pytest.LogCaptureFixture) -> None:
    recording = world(0.9, 0.36)  # hard questions: three answers are about as likely
    problem, plain = run(recording, 0.85)
    found = with_promises(problem, plain)
    assert not caplog.records
    assert found.stops is not None and plain.stops is not None
    call, arm = found.stops[0], found.policy[0]
    assert arm.abstains and found.policy[1] == plain.policy[1] and found.stops[1] == plain.stops[1]
    truth = StoppedValues(recording=recording, sequences=100).calls(Policy((arm, plain.policy[1])))
    assert call.abstains == pytest.approx(float(truth.abstains[0]), abs=0.1) and 0.1 < call.abstains < 0.6
    values = StoppedValues(recording=recording, sequences=100)
    answered = 1.0 - float(truth.abstains[0])
    assert float(values.on_queries(0, arm).reward.mean()) / answered >= 0.85
    # The more is promised, the fewer answers.
    more = with_promises(replace(problem, contexts=replace(problem.contexts, confidence=np.array([0.93, 0.0]))), plain)
    assert more.stops is not None and more.stops[0].abstains > call.abstains


def test_where_all_answers_are_good_the_arm_stays() -> None:
    problem, plain = run(world(0.95, 0.9), 0.8)
    found = with_promises(problem, plain)
    assert not found.policy[0].abstains and found.policy[1] == plain.policy[1]


@pytest.mark.slow
def test_a_promise_that_nobody_can_keep_is_said(caplog: pytest.LogCaptureFixture) -> None:
    problem, plain = run(world(0.4, 0.36), 0.95)
    quiet = with_promises(problem, plain, quiet=True)
    assert not caplog.records
    found = with_promises(problem, plain)
    assert found.policy == quiet.policy and found.policy[0].abstains
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == LOGGER
    assert "No arm is sure to keep a promise of 0.95" in record.getMessage()
    assert "min_confidence=0." in record.getMessage()


def test_without_promises_nothing_changes() -> None:
    problem, plain = run(world(0.9, 0.36), 0.0, budget=400)
    assert with_promises(problem, plain) is plain


def test_without_a_model_nothing_can_be_promised(caplog: pytest.LogCaptureFixture) -> None:
    recording = world(0.9, 0.36)
    problem = recording.problem(max_n=2)
    problem = replace(problem, contexts=replace(problem.contexts, confidence=np.array([0.9, 0.0])))
    outcome = drive(PSST().start(problem, budget=500, seed=1), recording.environment(1))
    assert with_promises(problem, outcome).policy == outcome.policy
    assert "nothing is known of how sure answers are" in caplog.text


def test_a_second_stage_is_asked_only_where_calls_may_combine_prompts() -> None:
    problem, plain = run(world(0.9, 0.36), 0.85)
    assert len(with_promises(problem, plain, compound=False).policy[0].stages) == 1
