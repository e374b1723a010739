"""Exact values of cascades and mixtures: small cases worked by hand, and calls that are drawn and played one by one."""

from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import Sequences
from iapo_dspy.environments.recorded import stopped_values
from iapo_dspy.environments.recorded.drawn import Draws
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.environments.recorded.stopped_values import OnQueries, StoppedValues
from iapo_dspy.types import Arm, Escalation, Policy, Pulls, Share, Stop

X = 200  # queries of one law, so that a mean over them is good to 2e-3
NEAR = 4e-3
COIN, SURE, SHY = 0, 1, 2  # prompts: right half of the time; always right; right or no answer, half of the time each


def votes(overhead: tuple[float, ...] = (0.0, 0.0, 0.0)) -> VotingRecording:
    law = np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.0]])
    return VotingRecording(
        probs=np.repeat(law[:, None], X, axis=1),
        answers=np.zeros(X, dtype=np.int64),
        cost=np.array([0.01, 0.1, 0.02]),
        cost_weights=np.array([0.0, 2.0]),
        overhead=np.array(overhead),
    )


def scored() -> BestOfRecording:
    """Prompt 0 scores 0 or 1, half of the time each; prompt 1 always .8."""
    outcomes = np.array([[0.0, 1.0], [0.8, 0.8]])[:, None, :, None]
    return BestOfRecording(
        probs=np.full((2, X, 2), 0.5), outcomes=outcomes, cost=np.array([0.01, 0.1]), weights=np.array([[1.0, 1.0]])
    )


def on(arm: Arm, recording: Recording | None = None) -> OnQueries:
    return StoppedValues(recording=recording or votes()).on_queries(0, arm)


def then(arm: Arm | None, below: float = 1.0, weight: int = 0) -> Escalation:
    return Escalation(below=below, arm=arm, weight=weight)


# --- by hand ---


def test_a_cascade_that_decides_by_its_second_stage_alone() -> None:
    # Two coins agree half of the time, and are right in half of these; the others go on to the prompt that is right.
    found = on(Arm(COIN, 2, then=then(Arm(SURE, 1))), votes(overhead=(0.001, 0.003, 0.0)))
    assert found.reward.mean() == pytest.approx(0.25 + 0.5, abs=NEAR)
    assert found.escalates.mean() == pytest.approx(0.5, abs=NEAR) and not found.abstains.any()
    assert found.completions.mean(axis=1) == pytest.approx([2.0, 0.5, 0.0], abs=NEAR)
    assert found.waves.mean(axis=1) == pytest.approx([1.0, 0.5, 0.0], abs=NEAR)
    assert found.in_turn.mean() == pytest.approx(1.5, abs=NEAR)
    assert found.cost.mean() == pytest.approx(2 * 0.01 + 0.001 + 0.5 * (0.1 + 0.003), abs=NEAR / 10)


def test_a_call_that_abstains() -> None:
    found = on(Arm(COIN, 2, then=then(None)))
    assert found.reward.mean() == pytest.approx(0.25, abs=NEAR)
    assert found.abstains.mean() == pytest.approx(0.5, abs=NEAR)
    assert not found.escalates.any()  # it has no second stage


def test_it_abstains_after_its_second_stage() -> None:
    # The second stage draws two coins anew: half of the half that goes on agrees there.
    found = on(Arm(COIN, 2, then=then(Arm(COIN, 2, then=then(None)))))
    assert found.reward.mean() == pytest.approx(0.25 + 0.5 * 0.25, abs=NEAR)
    assert found.abstains.mean() == pytest.approx(0.25, abs=NEAR)
    assert found.escalates.mean() == pytest.approx(0.5, abs=NEAR)
    assert found.completions[COIN].mean() == pytest.approx(3.0, abs=2 * NEAR)


@pytest.mark.parametrize(("weight", "expected"), [(1, 0.125 + 0.375 + 0.375 / 2), (2, 0.125 + 0.75)])
def test_votes_of_the_first_stage_count_in_the_second(weight: int, expected: float) -> None:
    # Three coins: all right 1/8; two right 3/8; one right 3/8, where one more right vote makes a tie, and two win.
    found = on(Arm(COIN, 3, then=then(Arm(SURE, 1), weight=weight)))
    assert found.reward.mean() == pytest.approx(expected, abs=NEAR)
    assert found.escalates.mean() == pytest.approx(0.75, abs=NEAR)
    assert found.completions.mean(axis=1) == pytest.approx([3.0, 0.75, 0.0], abs=NEAR)


def test_a_mixture_is_one_vote_and_its_prompts_are_drawn_at_once() -> None:
    found = on(Arm(COIN, 1, beside=(Share(prompt=SURE, n=1),)))
    assert found.reward.mean() == pytest.approx(0.75, abs=NEAR)  # right, or a tie
    assert found.completions.mean(axis=1) == pytest.approx([1.0, 1.0, 0.0])
    assert found.in_turn.mean() == pytest.approx(1.0)
    assert found.waves.mean(axis=1) == pytest.approx([1.0, 1.0, 0.0])


def test_failed_completions_count_against_the_leader() -> None:
    # Two shy completions: both right 1/4; one of them 1/2, a share of .5; none 1/4.
    found = on(Arm(SHY, 2, then=then(Arm(SURE, 1), below=0.6)))
    assert found.escalates.mean() == pytest.approx(0.75, abs=NEAR)
    assert found.reward.mean() == pytest.approx(1.0, abs=NEAR)


def test_waves_inside_of_a_stage() -> None:
    # Two coins that disagree cannot become unanimous: the call goes on without the third. Two that agree are no proof.
    found = on(Arm(COIN, 3, stop=Stop(waves=(2, 3)), then=then(Arm(SURE, 1))))
    assert found.completions.mean(axis=1) == pytest.approx([2.5, 0.75, 0.0], abs=NEAR)
    assert found.waves.mean(axis=1) == pytest.approx([1.5, 0.75, 0.0], abs=NEAR)
    assert found.reward.mean() == pytest.approx(0.125 + 0.75, abs=NEAR)


def test_best_of_n_goes_on_where_its_best_is_not_good_enough() -> None:
    found = on(Arm(0, 2, stop=Stop(waves=(1, 2)), then=then(Arm(1, 1), below=0.5)), scored())
    assert found.reward.mean() == pytest.approx(0.75 + 0.25 * 0.8, abs=NEAR)
    assert found.completions.mean(axis=1) == pytest.approx([1.5, 0.25], abs=NEAR)
    assert found.escalates.mean() == pytest.approx(0.25, abs=NEAR)


# --- checks of one way against another ---


def worlds() -> list[tuple[Recording, float]]:
    """Two recordings of random laws with failures, and a threshold for each."""
    rng = np.random.default_rng(4)
    probs = rng.dirichlet(np.ones(4), size=(3, 12))[:, :, :3]  # what is missing to 1 fails
    voting = VotingRecording(
        probs=probs, answers=rng.integers(-1, 3, 12), cost=np.array([0.01, 0.02, 0.03]), cost_weights=np.ones(1)
    )
    best = BestOfRecording(
        probs=probs, outcomes=rng.random((3, 12, 3, 2)), cost=voting.cost, weights=np.array([[0.7, 0.3, 1.0]])
    )
    return [(voting, 0.6), (best, 0.6)]


@pytest.mark.parametrize(("recording", "below"), worlds())
@pytest.mark.parametrize("weight", [0, 1, 2])
def test_values_are_those_of_calls_that_are_drawn(recording: Recording, below: float, weight: int) -> None:
    """Three stages, the first with waves, the last one with the first one's prompt again; and it may abstain."""
    last = Arm(0, 2, then=then(None, below=below / 2))
    middle = Arm(1, 2, beside=(Share(prompt=2, n=1),), then=then(last, below=below, weight=weight))
    arm = Arm(0, 4, stop=Stop(waves=(2, 4)), then=then(middle, below=below, weight=weight))
    copies, length = 3_000, 6
    prompt, query = np.repeat(np.indices((3, 12)).reshape(2, -1), copies, axis=1)
    pulls = Pulls(prompt, query, np.full(36 * copies, length))
    seen = recording.environment(9).pull(pulls)
    rows = Sequences(
        prompts=np.arange(3),
        label=seen.label.reshape(3, -1, length),
        score=seen.score.reshape(3, 12 * copies, length, -1),
        query=np.repeat(np.arange(12), copies),
        n_queries=12,
        aggregator=recording.aggregator(),
        weights=recording.contexts.weights[0],
    )
    drawn = play(arm, rows)
    found = on(arm, recording)
    assert found.reward == pytest.approx(rows.by_query(drawn.reward), abs=0.05)
    assert found.reward.mean() == pytest.approx(drawn.reward.mean(), abs=0.008)
    assert found.escalates.mean() == pytest.approx((drawn.stage > 0).mean(), abs=0.008)
    assert found.abstains.mean() == pytest.approx(1 - drawn.answered.mean(), abs=0.008)
    assert found.completions.mean(axis=1) == pytest.approx(drawn.completions.mean(axis=0), abs=0.03)
    assert found.waves.mean(axis=1) == pytest.approx(drawn.waves.mean(axis=0), abs=0.015)


@pytest.mark.parametrize(("recording", "below"), worlds())
def test_an_arm_that_never_goes_on_is_worth_what_its_first_stage_is(recording: Recording, below: float) -> None:
    found = on(Arm(0, 4, then=then(Arm(2, 3), below=-1.0)), recording)
    np.testing.assert_allclose(found.reward, recording.exact(4).reward[0, 0, :, 3], atol=1e-9)
    always = on(Arm(0, 4, then=then(Arm(2, 3), below=2.0)), recording)
    np.testing.assert_allclose(always.reward, recording.exact(4).reward[0, 2, :, 2], atol=1e-9)
    np.testing.assert_allclose(always.cost, 4 * 0.01 + 3 * 0.03)


def test_stages_played_together_are_worth_what_they_are_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    recording, below = worlds()[0]
    arm = Arm(0, 4, then=then(Arm(1, 3, then=then(Arm(2, 1), below=below)), below=below))
    apart = on(arm, recording)
    monkeypatch.setattr(stopped_values, "_groups", lambda arm: [arm])
    together = on(arm, recording)
    assert together.reward.mean() == pytest.approx(apart.reward.mean(), abs=NEAR)
    assert together.cost.mean() == pytest.approx(apart.cost.mean(), abs=NEAR / 10)
    assert together.escalates.mean() == pytest.approx(apart.escalates.mean(), abs=NEAR)


def test_few_queries_at_a_time_are_worth_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    recording, below = worlds()[0]
    arm = Arm(0, 4, then=then(Arm(1, 3), below=below, weight=1))
    whole = on(arm, recording)
    monkeypatch.setattr(stopped_values, "_AT_ONCE", 7_000)
    parts = on(arm, recording)
    np.testing.assert_allclose(parts.reward, whole.reward, atol=1e-12)
    np.testing.assert_allclose(parts.waves, whole.waves, atol=1e-12)


# --- policies ---


def test_gain_and_saved_of_a_compound_arm_are_against_all_n_of_its_first_prompt() -> None:
    recording = votes(overhead=(0.001, 0.003, 0.0))
    arm, single = Arm(COIN, 2, then=then(Arm(SURE, 1))), Arm(COIN, 3, stop=Stop(waves=(2, 3)))
    calls = StoppedValues(recording=recording).calls(Policy((arm, arm)), np.arange(50))
    assert calls.gain == pytest.approx([0.25, 0.25], abs=0.01)
    assert calls.saved == pytest.approx([0.0, -2.0 * 0.5 * 0.103], abs=1e-3)
    assert calls.escalates == pytest.approx([0.5, 0.5], abs=0.01) and calls.waves == pytest.approx([1.5] * 2, abs=0.01)
    both = StoppedValues(recording=recording).calls(Policy((arm, single)))
    alone = StoppedValues(recording=recording).calls(Policy((single, single)))
    assert both.saved[1] == alone.saved[1] and both.escalates[1] == both.abstains[1] == 0.0


def test_a_completion_costs_the_tokens_of_its_own_query() -> None:
    # Query 0 has long answers, query 1 short ones; only query 1 is unsure, and goes on to prompt 1.
    outcome = np.array([[[0, 0], [0, 1]], [[0, 0], [0, 0]]])
    tokens = np.array([[[30, 30], [10, 10]], [[40, 40], [120, 120]]])
    recording = VotingRecording(
        probs=np.array([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [1.0, 0.0]]]),
        answers=np.zeros(2, dtype=np.int64),
        cost=np.array([0.02, 0.08]),
        cost_weights=np.ones(1),
        drawn=Draws(
            outcome=outcome,
            tokens=tokens,
            prompt_tokens=np.zeros((2, 2), dtype=np.int64),
            finish=np.zeros((2, 2, 2), dtype=np.int64),
            endings=("stop",),
            failures=np.zeros((2, 0), dtype=np.int64),
            causes=(),
        ),
    )
    found = on(Arm(0, 2, then=then(Arm(1, 1))), recording)
    assert found.cost[0] == pytest.approx(2 * 0.03)
    assert found.cost[1] == pytest.approx(2 * 0.01 + found.escalates[1] * 0.12)
    assert found.escalates[1] == pytest.approx(0.5, abs=0.05)
