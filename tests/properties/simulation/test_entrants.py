"""Properties of all algorithms on random worlds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import block_layout
from iapo_dspy.bandit.models.exact import best_of_n_rewards, majority_vote_rewards
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import BestOfRecording, VotingRecording
from iapo_dspy.errors import BudgetTooSmall
from iapo_dspy.simulation.entrants import NAMES, entrants


def world(seed, n_prompts, kind):
    rng = np.random.default_rng(seed)
    cost = rng.uniform(0, 0.05, n_prompts)
    if kind == "vote":
        return VotingRecording(
            probs=rng.dirichlet(np.ones(3), size=(n_prompts, 4)) * rng.choice([1.0, 0.7]),
            answers=rng.integers(3, size=4),
            cost=cost,
            cost_weights=rng.uniform(0, 1, 3),
        )
    return BestOfRecording(
        outcomes=rng.random((n_prompts, 4, 3, 2)),
        probs=rng.dirichlet(np.ones(3), size=(n_prompts, 4)),
        cost=cost,
        weights=rng.random((3, 3)),
    )


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(["vote", "best"]),
    n_prompts=st.integers(1, 6),
    max_n=st.integers(1, 8),
    budget=st.integers(0, 600),
    seed=st.integers(0, 2**31),
)
def test_no_algorithm_ever_spends_more_than_its_budget(name, kind, n_prompts, max_n, budget, seed):
    recording = world(seed, n_prompts, kind)
    try:
        algorithm = entrants([name])[0].algorithm.start(recording.problem(max_n), budget=budget, seed=seed)
    except BudgetTooSmall as error:
        assert budget < error.least
        return
    outcome = drive(algorithm, recording.environment(seed))
    assert outcome.spent <= budget and outcome.complete
    assert all(arm.prompt < n_prompts and arm.n <= max_n for arm in outcome.policy.arms)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["vote", "best"]), max_n=st.integers(1, 12))
def test_one_completion_is_worth_its_mean(seed, kind, max_n):
    recording = world(seed, 3, kind)
    q = recording.exact(max_n).q()
    cost = recording.contexts.cost[:, None] * recording.cost
    if kind == "best":
        mean = np.einsum("pxm,pxmk,ck->cp", recording.probs, recording.outcomes, recording.contexts.weights) / 4
    else:
        mean = (recording.probs * recording.scores).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(q[:, :, 0], mean - cost, atol=1e-12)
    if kind == "best":
        assert (np.diff(recording.exact(max_n).reward, axis=3) >= -1e-12).all()  # more draws are never worse


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 9), kind=st.sampled_from(["vote", "best"]))
def test_blocks_and_subsets_agree_in_expectation(seed, size, kind):
    """Blocks of a shuffled pull average to the mean over all subsets, which for n draws is unbiased for scale n."""
    rng = np.random.default_rng(seed)
    label, score = rng.integers(0, 3, size=size), rng.random(size)
    aggregator = MajorityVoteAggregator() if kind == "vote" else BestOfNAggregator()
    orders = np.array([rng.permutation(size) for _ in range(4_000)])
    layout = block_layout(size, size)
    found = aggregator.blocks(label[orders], score[orders][:, :, None], np.ones((1, 1)), layout)[0].mean(axis=1)
    for n in range(1, size + 1):
        subsets = np.array([s for s in np.ndindex(*(2,) * size) if sum(s) == n], dtype=bool)
        index = np.array([np.flatnonzero(s) for s in subsets])
        exact = aggregator.reward(label[index], score[index][:, :, None], np.ones((1, 1)))[0]
        ours = found[layout.first[n - 1] : layout.first[n - 1] + size // n].mean()
        assert abs(ours - exact.mean()) < 5 * exact.std() / np.sqrt(4_000) + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), n_answers=st.integers(1, 5), max_n=st.integers(1, 20))
def test_votes_for_all_answers_share_one_win(seed, n_answers, max_n):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(n_answers), size=3)
    probs[0] = np.eye(n_answers)[0]
    wins = sum(majority_vote_rewards(probs, np.tile(np.eye(n_answers)[a], (3, 1)), max_n) for a in range(n_answers))
    np.testing.assert_allclose(wins, 1.0, atol=1e-9)
    np.testing.assert_allclose(majority_vote_rewards(probs, np.ones_like(probs), max_n), 1.0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_best_of_n_commutes_with_affine_maps_of_the_score(seed, shift, scale):
    rng = np.random.default_rng(seed)
    values, probs = rng.normal(size=(2, 4)), rng.dirichlet(np.ones(4), size=2)
    plain = best_of_n_rewards(values, probs, 6)
    np.testing.assert_allclose(best_of_n_rewards(scale * values + shift, probs, 6), scale * plain + shift, atol=1e-9)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(list(range(5))), kind=st.sampled_from(["vote", "best"]), seed=st.integers(0, 2**31))
def test_relabelling_prompts_permutes_exact_values(order, kind, seed):
    recording = world(seed, 5, kind)
    q = recording.exact(4).q()
    moved: VotingRecording | BestOfRecording
    if kind == "vote":
        moved = VotingRecording(
            probs=recording.probs[order],
            answers=recording.answers,
            cost=recording.cost[order],
            cost_weights=recording.cost_weights,
        )
    else:
        moved = BestOfRecording(
            outcomes=recording.outcomes[order],
            probs=recording.probs[order],
            cost=recording.cost[order],
            weights=recording.weights,
        )
    np.testing.assert_allclose(moved.exact(4).q(), q[:, order], atol=1e-12)
