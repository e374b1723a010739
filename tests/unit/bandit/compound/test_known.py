"""Completions as a run knows them: their values, how prompts go together on a query, and urns by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.blockwise import Blockwise
from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.aggregators.tally import TallyAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.compound.known import _weight_of_others, known_sequences
from iapo_dspy.bandit.compound.sequences import Part, Sequences
from iapo_dspy.bandit.models.port import CellPredictions, Simulates
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import Recording, VotingRecording
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_categorical
from iapo_dspy.types import FloatArray, IntArray, Observations
from tests.support.draws import observe, problem_of
from tests.support.recordings import everywhere


def solved(recording: Recording, size: int, max_n: int = 8, seed: int = 0) -> tuple[Problem, Outcome]:
    """So many completions of every prompt on every query."""
    problem = recording.problem(max_n)
    drawn = recording.environment(seed).pull(everywhere(recording, size))
    return problem, Auto().solve(problem, [drawn])


def known(
    problem: Problem, outcome: Outcome, prompts: Sequence[int], n: int, context: int = 0, **settings: int
) -> Sequences:
    found = known_sequences(problem, outcome, context, np.array(prompts), n, **settings)
    assert found is not None
    return found


def voting(probs: FloatArray, answers: int = 0) -> VotingRecording:
    """Laws of answers [P, X, A]; the right one is the same everywhere."""
    return VotingRecording(
        probs=probs,
        answers=np.full(probs.shape[1], answers),
        cost=np.full(len(probs), 0.01),
        cost_weights=np.array([0.0]),
    )


def both_wrong(rows: Sequences, *prompts: int) -> tuple[float, float]:
    """P(one completion of each prompt is wrong), and P(they also give the same answer)."""
    score = rows.score[list(prompts), :, 0, 0] if prompts[0] != prompts[1] else rows.score[prompts[0], :, :2, 0].T
    label = rows.label[list(prompts), :, 0] if prompts[0] != prompts[1] else rows.label[prompts[0], :, :2].T
    wrong = (score < 0.5).all(axis=0)
    return float(wrong.mean()), float((wrong & (label[0] == label[1]) & (label[0] >= 0)).mean())


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("kind", ["vote", "best of"])
def test_single_completions_are_worth_what_the_model_expects_of_them(kind: str, context: int) -> None:
    recording: Recording = (
        synthetic_bernoulli(3, n_prompts=3, n_queries=60)
        if kind == "vote"
        else synthetic_categorical(3, n_prompts=3, n_queries=60)
    )
    problem, outcome = solved(recording, 3)
    assert outcome.detail is not None
    evidence = outcome.detail
    cells = Cells.of(outcome.observations, 3, problem.contexts.n_objectives)
    rows = problem.aggregator.rows(problem.contexts.weights)  # type: ignore[attr-defined]
    found = problem.aggregator.model(rows.rows, 3, 8, problem.parts).predict(cells)  # type: ignore[attr-defined]
    assert isinstance(found, CellPredictions)
    expected = found.dense(cells).given_all[evidence.row[context]].mean(axis=1) * evidence.factor[context]
    drawn = known(problem, outcome, range(3), 8, context, copies=400)
    for p in range(3):
        values = drawn.reward([Part(p, 0, 1)])  # of several, the spread of cells decides, which is measured anew
        noise = 4 * values.std() / len(values) ** 0.5  # less: rows are spread evenly over what is not known
        assert values.mean() == pytest.approx(expected[p, 0], abs=noise + 0.005 * np.ptp(drawn.score)), p


def test_with_many_draws_the_rows_tend_to_the_recording() -> None:
    rng = np.random.default_rng(4)
    right = rng.beta(0.8, 0.8, size=(2, 40))
    wrong = rng.dirichlet(np.ones(3), size=(2, 40))
    recording = voting(np.concatenate([right[..., None], (1 - right)[..., None] * wrong], axis=2))
    problem, outcome = solved(recording, 300)
    drawn = known(problem, outcome, [0, 1], 8, copies=100)
    exact = recording.exact(8).reward[0]  # [P, X, N]
    for p in range(2):
        for n in (1, 4, 8):
            values = drawn.by_query(drawn.reward([Part(p, 0, n)]))
            assert values.mean() == pytest.approx(exact[p, :, n - 1].mean(), abs=0.02)
            assert np.abs(values - exact[p, :, n - 1]).mean() < 0.07  # the law of wrong answers is a model's


def test_prompts_fail_on_the_same_queries_as_often_as_they_were_seen_to() -> None:
    # Half of the queries are hard for prompts 0 and 1, the other half for prompt 2.
    hard = np.arange(200) % 2 == 0
    right = np.stack([np.where(hard, 0.2, 0.9), np.where(hard, 0.25, 0.85), np.where(hard, 0.9, 0.2)])
    recording = voting(np.stack([right, 1 - right], axis=2))
    problem, outcome = solved(recording, 16)
    drawn = known(problem, outcome, [0, 1, 2], 2)
    wrong = 1 - right
    for a, b in ((0, 1), (0, 2), (1, 2), (0, 0)):
        assert both_wrong(drawn, a, b)[0] == pytest.approx((wrong[a] * wrong[b]).mean(), abs=0.03)
    assert (wrong[0].mean() * wrong[1].mean()) < (wrong[0] * wrong[1]).mean() - 0.1  # as if apart: far off


def test_a_prompt_shares_the_difficulty_of_a_query_on_which_others_were_drawn() -> None:
    # Prompt 2 is drawn on half of the queries only; on the others, its rows are wrong where those of 0 and 1 are.
    rng = np.random.default_rng(0)
    level = rng.normal(0, 2.5, 300)
    right = 1 / (1 + np.exp(-level)) * np.ones((3, 1))
    recording = voting(np.stack([right, 1 - right], axis=2))
    pulls = everywhere(recording, 6)
    pulls = pulls.take(np.flatnonzero((pulls.prompt < 2) | (pulls.query < 150)))
    problem = recording.problem(4)
    outcome = Auto().solve(problem, [recording.environment(0).pull(pulls)])
    drawn = known(problem, outcome, [0, 2], 1)
    unseen = drawn.query >= 150
    wrong = drawn.score[:, unseen, 0, 0] < 0.5
    expected = ((1 - right[0, 150:]) ** 2).mean()
    assert wrong.all(axis=0).mean() == pytest.approx(expected, abs=0.03)
    assert wrong[0].mean() * wrong[1].mean() < expected - 0.08


def test_prompts_that_fail_on_each_others_queries_keep_what_their_own_draws_say() -> None:
    mine = np.arange(120) % 2 == 0
    right = np.stack([np.where(mine, 0.8, 0.2), np.where(mine, 0.2, 0.8)])
    problem, outcome = solved(voting(np.stack([right, 1 - right], axis=2)), 8)
    drawn = known(problem, outcome, [0, 1], 2)
    for p in (0, 1):
        level = drawn.by_query(drawn.score[p, :, 0, 0])
        assert level[right[p] > 0.5].mean() > 0.7
        assert level[right[p] < 0.5].mean() < 0.3
    assert both_wrong(drawn, 0, 1)[0] == pytest.approx(0.16, abs=0.04)


@pytest.mark.parametrize("same", [True, False])
def test_prompts_make_the_same_mistake_where_they_were_seen_to(same: bool) -> None:
    right = np.full((2, 120), 0.5)
    other = np.zeros((2, 120, 2))
    other[0, :, 0] = other[1, :, 0 if same else 1] = 0.5
    recording = voting(np.concatenate([right[..., None], other], axis=2))
    problem, outcome = solved(recording, 12)
    drawn = known(problem, outcome, [0, 1], 2)
    _, own = both_wrong(drawn, 0, 0)
    _, together = both_wrong(drawn, 0, 1)
    assert own == pytest.approx(0.25, abs=0.02)
    assert together == pytest.approx(0.25 if same else 0.0, abs=0.05)


def test_wrong_completions_agree_as_often_as_they_were_seen_to() -> None:
    rng = np.random.default_rng(1)
    probs = np.concatenate([np.full((2, 100, 1), 0.4), np.full((2, 100, 6), 0.1)], axis=2)
    recording = voting(rng.permuted(probs, axis=1))
    problem, outcome = solved(recording, 6)
    drawn = known(problem, outcome, [0, 1], 2)
    assert both_wrong(drawn, 0, 0)[1] == pytest.approx(6 * 0.01, abs=0.015)
    assert both_wrong(drawn, 0, 1)[1] == pytest.approx(6 * 0.01, abs=0.02)


def test_completions_without_a_vote_keep_the_prompts_own_share() -> None:
    probs = np.zeros((2, 100, 2))
    probs[:, :, 0], probs[:, :, 1] = 0.5, [[0.5], [0.2]]  # prompt 1 fails in three of ten completions
    problem, outcome = solved(voting(probs), 8)
    drawn = known(problem, outcome, [0, 1], 4)
    silent = (drawn.label < 0).mean(axis=(1, 2))
    assert silent[0] < 0.005
    assert silent[1] == pytest.approx(0.3, abs=0.02)


def test_answers_keep_their_own_credit() -> None:
    probs = np.full((1, 60, 3), [0.2, 0.5, 0.3])
    recording = VotingRecording(
        probs=probs,
        answers=np.zeros(60, dtype=np.int64),
        cost=np.array([0.01]),
        cost_weights=np.array([0.0]),
        credit=np.tile([1.0, 0.6, 0.1], (60, 1)),
    )
    problem, outcome = solved(recording, 60)
    drawn = known(problem, outcome, [0], 1, copies=60)
    assert sorted({round(float(s), 6) for s in np.unique(drawn.score)})[-2:] == [0.6, 1.0]
    assert drawn.score.mean() == pytest.approx(0.2 + 0.3 + 0.03, abs=0.03)  # as if each had the mean of others: 0.45


def test_the_units_are_those_of_the_contexts_reward() -> None:
    problem = problem_of(MajorityVoteAggregator(), n_prompts=1, weights=np.array([[1.0], [0.5]]))
    drawn = observe([(0, x, 4) for x in range(20)], [1, 1, 0, 1] * 20, [0, 0, 1, 0] * 20)
    outcome = Auto().solve(problem, [drawn])
    one, half = (known(problem, outcome, [0], 4, c, copies=200).reward([Part(0, 0, 4)]).mean() for c in (0, 1))
    assert one == pytest.approx(2 * half, abs=0.02)


def urn_of(observations: Observations, n_prompts: int) -> tuple[Problem, Outcome]:
    problem = problem_of(TallyAggregator(floors=(0.0,)), n_prompts=n_prompts)
    return problem, Auto().solve(problem, [observations])


def test_an_urn_deals_whole_completions_and_puts_back_one_more_of_each() -> None:
    # Two completions: P(the second one dealt is the first one again) = 2 / 3, P(right) = 1 / 2.
    problem, outcome = urn_of(observe([(0, 0, 2)], [1.0, 0.25], [7, 9]), 1)
    drawn = known(problem, outcome, [0], 3, copies=30_000)
    label, score = drawn.label[0], drawn.score[0, :, :, 0]
    assert ((label == 7) == (score == 1.0)).all()
    assert ((label == 9) == (score == 0.25)).all()
    assert (label[:, 0] == label[:, 1]).mean() == pytest.approx(2 / 3, abs=0.01)
    assert (label == 7).mean(axis=0) == pytest.approx(1 / 2, abs=0.01)
    # After two equal ones, the third is that one again with 3 / 4.
    twice = label[:, 0] == label[:, 1]
    assert (label[twice, 2] == label[twice, 0]).mean() == pytest.approx(3 / 4, abs=0.01)


def test_an_urn_has_a_little_of_the_other_prompts() -> None:
    # Prompt 0 says 1 three times, prompt 1 says 2 once; prompt 2 was not drawn on this query and takes from both.
    score = [1.0, 1.0, 1.0, 0.0, 0.5, 0.5]
    drawn = observe([(0, 0, 3), (1, 0, 1), (2, 1, 2)], score, [1, 1, 1, 2, 3, 3])
    problem, outcome = urn_of(drawn, 3)
    others = _weight_of_others(Cells.of([drawn], 3, 1))
    assert others == 0.25  # completions of one prompt always agree, and those of different ones never do
    rows = known(problem, outcome, [0, 1, 2], 1, copies=20_000)
    here = rows.query == 0
    assert (rows.label[0, here] == 2).mean() == pytest.approx(0.25 / 3.25, abs=0.01)
    assert (rows.label[1, here] == 1).mean() == pytest.approx(0.25 / 1.25, abs=0.01)
    assert (rows.label[2, here] == 1).mean() == pytest.approx(3 / 4, abs=0.01)
    assert (rows.label[2, ~here] == 3).all()


def test_the_weight_of_others_makes_completions_agree_as_they_do() -> None:
    rng = np.random.default_rng(0)
    right = np.repeat(rng.beta(1, 1, 300), 4)[:, None] > rng.random((1200, 5))
    drawn = observe([(p, x, 5) for x in range(300) for p in range(4)], right.reshape(-1), right.reshape(-1))
    # What differs is the query alone: other prompts tell as much of a cell as its own completions.
    assert _weight_of_others(Cells.of([drawn], 4, 1)) == 16.0


class Flat(Blockwise):
    """Says nothing of how sure an answer is."""

    def check(self, n_objectives: int) -> None:
        pass

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        return np.asarray(weights[:, 0, None] * np.nan_to_num(score[:, :, 0]).mean(axis=1))


def test_there_are_no_rows_without_evidence() -> None:
    drawn = observe([(0, x, 4) for x in range(20)], [1, 1, 0, 1] * 20, [0, 0, 1, 0] * 20)

    def found(aggregator: Aggregator, prompts: list[int]) -> Sequences | None:
        problem = problem_of(aggregator, n_prompts=2)
        return known_sequences(problem, Auto().solve(problem, [drawn]), 0, np.array(prompts), 4)

    assert found(MajorityVoteAggregator(), [0]) is not None
    assert found(MajorityVoteAggregator(), [0, 1]) is None  # prompt 1 was never drawn
    assert found(Flat(), [0]) is None
    recording = synthetic_bernoulli(0, n_prompts=2, n_queries=40)
    problem = recording.problem(4)
    outcome = drive(PSST().start(problem, budget=400, seed=0), recording.environment(0))
    assert known_sequences(problem, outcome, 0, np.array([0]), 4) is None


def test_the_same_seed_draws_the_same_rows() -> None:
    problem, outcome = solved(synthetic_categorical(0, n_prompts=2, n_queries=20), 3)
    assert isinstance(problem.aggregator, BestOfNAggregator)
    assert outcome.detail is not None
    assert isinstance(outcome.detail.model, Simulates)
    first, again, other = (known(problem, outcome, [0, 1], 4, seed=s) for s in (0, 0, 1))
    assert (first.score == again.score).all()
    assert (first.score != other.score).any()
    assert len(first) == 24 * 20
    assert first.query.tolist() == np.repeat(np.arange(20), 24).tolist()


def test_cells_and_prompts_are_as_wide_and_as_alike_as_they_are() -> None:
    # Nearly every cell is right or wrong always, which no normal law of logits is; prompts 0 and 1 fail together.
    rng = np.random.default_rng(0)
    hard = rng.random(300) < 0.1
    right = np.stack(
        [np.where(hard, 0.02, 0.99), np.where(hard, 0.05, 0.99), np.where(rng.random(300) < 0.4, 0.9, 0.1)]
    )
    recording = voting(np.stack([right, 1 - right], axis=2))
    problem, outcome = solved(recording, 2)
    drawn = known(problem, outcome, [0, 1, 2], 2)
    wrong = 1 - right
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2)):
        assert both_wrong(drawn, a, b)[0] == pytest.approx((wrong[a] * wrong[b]).mean(), abs=0.02), (a, b)
