"""The demo's benchmark with 33 candidates: the recording, the policies' values, and the prompts that are dropped."""

import dspy
import numpy as np
import pytest
from benchmark_demo import (
    CANDIDATES,
    OTHERS,
    STUDENT,
    compiled,
    dropped_early,
    priced,
    recorded,
    scaling,
    simulated,
    valued,
)

from iapo_dspy.demo.tasks import addition_task, default_instruction
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.simulation.sources import RecordedSource
from iapo_dspy.types import Arm, Observations, Pulls
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, INSTRUCTIONS, LAZY, QUICK, adder, questions, total

COSTS = np.array([0.0, 0.2, 1.0, 5.0])  # of the demo's preferences


def source_of(probs, cost, max_n=4):
    """A recording [P, X, A = 2] whose first answer is right everywhere."""
    recording = VotingRecording(probs=probs, answers=np.zeros(probs.shape[1], dtype=int), cost=cost, cost_weights=COSTS)
    return RecordedSource(name="", recording=recording, values=recording.exact(max_n), ties="paper", max_n=max_n)


def asked(*pulls):
    """Observations of these pulls (prompt, query, size)."""
    made = Pulls(*np.array(pulls).T)
    zeros = np.zeros(made.completions)
    return Observations(
        pulls=made, label=zeros.astype(int), score=zeros[:, None], cost=zeros, overhead=np.zeros(len(made))
    )


def test_the_candidates_are_the_shipped_ones_and_twenty_more():
    shipped = addition_task().instructions
    assert len(set(CANDIDATES)) == 33 and len(OTHERS) == 20
    assert CANDIDATES[: len(shipped)] == shipped
    assert CANDIDATES[STUDENT] == default_instruction("question -> answer")


def test_a_recording_has_the_law_of_every_candidate_at_the_price_of_the_student():
    examples = questions(4)
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        found = recorded(INSTRUCTIONS, examples, 20)
        assert server.completions == 3 * 4 * 20
    np.testing.assert_array_equal(found.contexts.cost, COSTS)
    words = {LAZY: len(chat(answer="0").split()), QUICK: len(chat(answer="0").split())}
    words[CAREFUL] = words[LAZY] + 25
    np.testing.assert_allclose(found.cost, [0.01 * words[text] / words[LAZY] for text in INSTRUCTIONS])
    right = found.exact(1).reward[0, :, :, 0]
    np.testing.assert_allclose(right[1], [float(int(e.answer) % 2 == 0) for e in examples])
    assert abs(right[2].mean() - 0.8) < 0.2 and abs(right[0].mean() - 0.2) < 0.2


def test_a_policy_is_valued_exactly_on_all_questions():
    where = source_of(np.array([[[0.8, 0.2]] * 5, [[0.5, 0.5]] * 5]), np.array([0.05, 0.01]))
    vote = 0.8**3 + 3 * 0.8**2 * 0.2
    arms = (Arm(0, 3), Arm(0, 3), Arm(0, 1), Arm(1, 1))
    run = valued(where, arms, [asked((0, 0, 3), (1, 1, 2)), asked((1, 0, 4))])
    assert run.utility == pytest.approx(np.mean([vote, vote - 0.2 * 0.15, 0.8 - 0.05, 0.5 - 0.05]))


def test_a_price_multiplies_the_cost_weights():
    recording = source_of(np.array([[[0.8, 0.2]] * 5]), np.array([0.01])).recording
    found = priced(recording, 0.5)
    np.testing.assert_allclose(found.values.q()[:, 0, 0], 0.8 - 0.5 * COSTS * 0.01)
    np.testing.assert_allclose(found.instance(0, 0).train.contexts.cost, 0.5 * COSTS)
    assert found.max_n == 32


def test_prompts_scale_by_the_accuracy_of_their_largest_vote():
    where = source_of(np.array([[[p, 1 - p]] * 3 for p in (0.5, 0.8, 0.74, 0.9)]), np.full(4, 0.01), max_n=3)
    votes = [p**3 + 3 * p**2 * (1 - p) for p in (0.5, 0.8, 0.74, 0.9)]
    assert votes[3] - votes[1] < 0.1 < votes[3] - votes[2]
    np.testing.assert_array_equal(scaling(where.values), [False, True, False, True])


def test_prompts_are_dropped_early_that_are_not_asked_after_the_first_quarter():
    rounds = [asked((0, 0, 5), (1, 0, 5), (2, 0, 5)), asked((1, 1, 5), (2, 1, 5)), asked((1, 2, 50))]
    everyone = np.ones(4, dtype=bool)  # ends: 15, 75, 25, never, of 75 completions; a quarter is 18.75
    assert dropped_early(rounds, everyone) == pytest.approx(2 / 4)
    assert dropped_early(rounds, np.array([False, True, True, False])) == 0.0
    assert dropped_early(rounds[:1], np.array([True, True, True, False])) == 0.0  # one round asks everyone to the end


@pytest.mark.parametrize("algorithm", ["auto", "uniform"])
def test_a_simulated_run_finds_a_clear_winner(algorithm):
    where = source_of(np.array([[[p, 1 - p]] * 20 for p in (0.4, 1.0)]), np.array([0.01, 0.01]))
    run = simulated(where, algorithm, 200, 3)
    assert run == simulated(where, algorithm, 200, 3)
    assert run.utility == pytest.approx(where.values.q().max(axis=(1, 2)).mean())


@pytest.mark.slow
def test_a_live_run_trains_on_the_questions_of_its_seed():
    best = 7  # the only candidate that is ever right
    law = np.zeros((len(CANDIDATES), 10, 2))
    law[:, :, 1], law[best] = 1.0, [1.0, 0.0]
    where = source_of(law, np.full(len(CANDIDATES), 0.01), max_n=2)

    def answer(body, i):
        return chat(answer=str(total(body) + (CANDIDATES[best] not in body["messages"][0]["content"])))

    with Loopback(answer) as server, dspy.context(lm=server.lm()):
        run = compiled(where, "uniform", 2 * len(CANDIDATES) * 2, 0)
        sent = {total(body) for body in server.bodies}
    known = addition_task().train(10, 0)
    assert sent == {int(known[x].answer) for x in where.instance(0, 0).train_queries}
    assert run.utility == pytest.approx(where.values.q().max(axis=(1, 2)).mean())
