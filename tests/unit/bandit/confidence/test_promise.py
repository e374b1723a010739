from __future__ import annotations

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
from iapo_dspy.types import NEVER_SURE, Policy


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
def test_calls_abstain_where_questions_are_hard() -> None:
    recording = world(0.9, 0.36)  # hard questions: three answers are about as likely
    problem, plain = run(recording, 0.85)
    found = with_promises(problem, plain)
    assert found.stops is not None and plain.stops is not None
    call, arm, promise = found.stops[0], found.policy[0], found.promises[0]
    assert promise is not None and promise.kept and "is kept" in promise.in_words
    assert arm.abstains and found.policy[1] == plain.policy[1] and found.stops[1] == plain.stops[1]
    truth = StoppedValues(recording=recording, sequences=100).calls(Policy((arm, plain.policy[1])))
    assert call.abstains == pytest.approx(float(truth.abstains[0]), abs=0.1) and 0.1 < call.abstains < 0.8
    values = StoppedValues(recording=recording, sequences=100)
    answered = 1.0 - float(truth.abstains[0])
    assert float(values.on_queries(0, arm).reward.mean()) / answered >= 0.85
    # The more is promised, the fewer answers.
    more = with_promises(replace(problem, contexts=replace(problem.contexts, confidence=np.array([0.93, 0.0]))), plain)
    assert more.stops is not None and more.stops[0].abstains > call.abstains


def test_where_all_answers_are_good_nearly_every_call_answers() -> None:
    problem, plain = run(world(0.95, 0.9), 0.8, budget=6_000)
    found = with_promises(problem, plain)
    assert found.promises[0] is not None and found.promises[0].kept
    assert found.stops is not None and found.stops[0].abstains < 0.05 and found.policy[1] == plain.policy[1]


@pytest.mark.slow
def test_a_promise_that_nobody_can_keep_is_said() -> None:
    problem, plain = run(world(0.4, 0.36), 0.95)
    found = with_promises(problem, plain)
    promise = found.promises[0]
    assert promise is not None and not promise.kept and promise.bound < 0.95
    arm = found.policy[0]
    assert arm.then is not None and arm.then.arm is None and arm.then.below == NEVER_SURE
    assert found.stops is not None and found.stops[0].abstains == 1.0
    assert "no arm is sure to keep the promise of 0.95" in promise.in_words
    assert "min_confidence=0." in promise.in_words and found.promises[1] is None


def test_without_promises_nothing_changes() -> None:
    problem, plain = run(world(0.9, 0.36), 0.0, budget=400)
    assert with_promises(problem, plain) is plain


def test_without_a_model_nothing_can_be_promised() -> None:
    recording = world(0.9, 0.36)
    problem = recording.problem(max_n=2)
    problem = replace(problem, contexts=replace(problem.contexts, confidence=np.array([0.9, 0.0])))
    outcome = drive(PSST().start(problem, budget=500, seed=1), recording.environment(1))
    found = with_promises(problem, outcome)
    promise = found.promises[0]
    assert found.policy == outcome.policy and promise is not None and not promise.kept
    assert "nothing is known of how sure answers are" in promise.in_words


def test_a_second_stage_is_asked_only_where_calls_may_combine_prompts() -> None:
    problem, plain = run(world(0.9, 0.36), 0.85)
    assert len(with_promises(problem, plain, compound=False).policy[0].stages) == 1
