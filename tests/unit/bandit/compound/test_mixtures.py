"""Mixtures by hand: what they gain, what they cost, and gains that had no part in their tuning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.aggregators.tally import TallyAggregator
from iapo_dspy.bandit.compound.cascades import ArmPrices
from iapo_dspy.bandit.compound.mixtures import Mixtures
from iapo_dspy.bandit.compound.sequences import Sequences
from iapo_dspy.types import Arm, FloatArray, IntArray, Share

VOTE = MajorityVoteAggregator()


def rows(
    label: IntArray,
    score: FloatArray,
    aggregator: Aggregator = VOTE,
    weights: Sequence[float] = (1.0,),
    copies: int = 1,
) -> Sequences:
    """Labels [Q, V, M] and scores [Q, V, M, K], each row so many times."""
    return Sequences(
        prompts=np.arange(len(label)),
        label=np.repeat(label, copies, axis=1),
        score=np.repeat(score, copies, axis=1),
        query=np.repeat(np.arange(label.shape[1]), copies),
        n_queries=label.shape[1],
        aggregator=aggregator,
        weights=np.array(weights),
    )


def apart(n: int = 8, n_queries: int = 20, n_prompts: int = 2) -> tuple[IntArray, FloatArray]:
    """Each query has one prompt that is always right (0); the others give a different wrong answer each time."""
    label = np.tile(1 + np.arange(n), (n_prompts, n_queries, 1)) + n * np.arange(n_prompts)[:, None, None]
    for query in range(n_queries):
        label[query % 5 % n_prompts, query] = 0  # of two prompts, the first one has three queries of five
    return label, (label == 0).astype(float)[..., None]


def free(fixed: Sequence[float] = (0.0,) * 6, each: Sequence[float] = (0.0,) * 6) -> ArmPrices:
    return ArmPrices(fixed=np.array(fixed), each=np.array(each))


UNKNOWN = np.full((6, 8), np.nan)  # the sequences need no correction


def test_prompts_that_err_on_different_queries_gain_from_each_other() -> None:
    # A mixture has several votes for the right answer on every query, and one for each other answer.
    found = Mixtures(rows(*apart()), UNKNOWN).best(8, free(), free())
    assert found is not None
    assert sorted((s.prompt, s.n) for s in found.arm.shares)[0][0] == 0
    assert found.arm.size == 8
    assert len(found.arm.shares) == 2
    assert (found.beside.n, found.beside.compound) == (8, False)
    assert found.beside.prompt == 0
    assert found.reward.mean() == pytest.approx(0.4)
    assert found.difference == pytest.approx(found.reward)
    assert found.played.reward.mean() == pytest.approx(1.0)


def test_a_mixture_may_have_three_prompts_and_no_more() -> None:
    mixtures = Mixtures(rows(*apart(n_prompts=4, n_queries=40)), UNKNOWN)
    found = mixtures.best(8, free(), free())
    assert found is not None
    assert len(found.arm.shares) == 3
    assert mixtures.by_query((2, 2, 2, 2)).mean() == 1.0


def test_the_prompt_with_most_completions_comes_first() -> None:
    mixtures = Mixtures(rows(*apart(n_prompts=3)), UNKNOWN)
    assert mixtures.arm((2, 0, 6)) == Arm(2, 6, beside=(Share(prompt=0, n=2),))
    assert mixtures.arm((4, 4, 0)) == Arm(0, 4, beside=(Share(prompt=1, n=4),))


@pytest.mark.parametrize("same", ["prompts", "only"])
def test_there_is_no_mixture_of_prompts_that_err_together(same: str) -> None:
    label, score = apart()
    label[1], score[1] = label[0], score[0]
    kept = slice(None) if same == "prompts" else slice(1)
    assert Mixtures(rows(label[kept], score[kept]), UNKNOWN).best(8, free(), free()) is None


def test_mixtures_work_with_every_way_to_decide() -> None:
    label, score = apart()
    two = np.concatenate([score, np.full_like(score, 0.5)], axis=3)
    for aggregator, weights, columns in (
        (BestOfNAggregator(), (1.0,), score),
        (TallyAggregator(floors=(0.0, 0.0), weight=1), (1.0, 0.0), two),
        (TallyAggregator(floors=(0.0, 0.0), style=(1,)), (0.8, 0.2), two),
    ):
        found = Mixtures(rows(label, columns, aggregator, weights), UNKNOWN).best(4, free(), free())
        assert found is not None, aggregator
        assert found.arm.size == 4
        assert found.reward.mean() == pytest.approx(0.4 * weights[0])


def test_each_prompt_pays_for_its_request() -> None:
    # The mixture brings 0.4. A second request costs 0.3 here, so 0.1 are left; at 0.6 it is not worth it.
    mixtures = Mixtures(rows(*apart()), UNKNOWN)
    cheap = free(fixed=(0.3,) * 6, each=(0.01,) * 6)
    found = mixtures.best(8, cheap, cheap)
    assert found is not None
    assert found.reward.mean() == pytest.approx(0.4)
    assert found.difference.mean() == pytest.approx(0.1)
    assert mixtures.best(8, free(fixed=(0.6,) * 6), free()) is None
    # Against the arm that the context has: one completion, right on two queries of five, saves seven.
    single = mixtures.best(8, cheap, cheap, Arm(1, 1))
    assert single is not None
    assert single.difference.mean() == pytest.approx(1.0 - 0.6 - 0.08 - (0.4 - 0.3 - 0.01))


def test_a_dear_prompt_gets_no_more_than_it_needs() -> None:
    mixtures = Mixtures(rows(*apart()), UNKNOWN)
    found = mixtures.best(8, free(each=(0.0, 0.1, 0, 0, 0, 0)), free())
    assert found is not None
    assert found.arm == Arm(0, 6, beside=(Share(prompt=1, n=2),))


def test_an_arm_that_breaks_a_cap_is_left_out() -> None:
    mixtures = Mixtures(rows(*apart(n_prompts=3, n_queries=30)), UNKNOWN)
    assert mixtures.best(8, free(), free(), allowed=lambda arm: not arm.beside) is None
    assert mixtures.best(8, free(), free(), allowed=lambda arm: False) is None
    found = mixtures.best(8, free(), free(), allowed=lambda arm: 1 not in arm.prompts)
    assert found is not None
    assert set(found.arm.prompts) == {0, 2}


def test_arms_of_one_prompt_are_worth_what_the_run_says() -> None:
    # Prompt 0 is .1 worse than on these sequences, and prompt 1 is .3 better; a mixture of halves is .1 better.
    level = np.full((2, 8), 0.5)
    level[1] = 0.7
    mixtures = Mixtures(rows(*apart()), level)
    assert mixtures.by_query((8, 0)).mean() == pytest.approx(0.5)  # .6 on the sequences, where prompt 1 has .4
    assert mixtures.by_query((0, 8)).mean() == pytest.approx(0.7)
    assert mixtures.by_query((4, 4)).mean() == pytest.approx(1.1)
    found = mixtures.best(8, free(), free())
    assert found is not None
    assert found.beside == Arm(1, 8)
    assert found.difference.mean() == pytest.approx(found.reward.mean())


def drawn(seed: int, n_prompts: int = 5, n_queries: int = 40) -> Sequences:
    """Every prompt on every query has a probability of its own: nothing of the past holds on other queries."""
    rng = np.random.default_rng(seed)
    right = rng.random((n_prompts, n_queries * 4, 8)) < np.repeat(rng.beta(0.3, 0.3, (n_prompts, n_queries, 1)), 4, 1)
    found = rows((~right).astype(np.int64), right.astype(float)[..., None])
    return Sequences(
        prompts=found.prompts,
        label=found.label,
        score=found.score,
        query=np.repeat(np.arange(n_queries), 4),
        n_queries=n_queries,
        aggregator=VOTE,
        weights=np.ones(1),
    )


def counts_of(arm: Arm) -> tuple[int, ...]:
    return tuple({s.prompt: s.n for s in arm.shares}.get(p, 0) for p in range(5))


def test_each_fold_is_valued_by_what_is_best_on_the_others() -> None:
    sequences = drawn(0)
    mixtures = Mixtures(sequences, UNKNOWN[:5], seed=0)
    found = mixtures.best(8, free(), free())
    assert found is not None
    for fold in range(5):
        mine = mixtures._fold == fold
        keep = ~mine[sequences.query]
        others = Sequences(
            prompts=sequences.prompts,
            label=sequences.label[:, keep],
            score=sequences.score[:, keep],
            query=np.searchsorted(np.flatnonzero(~mine), sequences.query[keep]),
            n_queries=int((~mine).sum()),
            aggregator=VOTE,
            weights=np.ones(1),
        )
        tuned = Mixtures(others, UNKNOWN[:5]).best(8, free(), free())
        if tuned is None:  # nothing but the prompt
            assert not found.reward[mine].any()
            continue
        mixed, alone = (mixtures.by_query(counts_of(arm))[mine] for arm in (tuned.arm, tuned.beside))
        assert found.reward[mine] == pytest.approx(mixed - alone)


def test_a_gain_that_is_tuned_on_the_same_queries_looks_larger_than_it_is() -> None:
    seen, kept = [], []
    for seed in range(12):
        mixtures = Mixtures(drawn(seed), UNKNOWN[:5], seed=seed)
        found = mixtures.best(8, free(), free())
        if found is None:
            continue
        kept.append(found.reward.mean())
        alone = max(float(mixtures.by_query(tuple(8 * (q == p) for q in range(5))).mean()) for p in range(5))
        seen.append(float(mixtures.by_query(counts_of(found.arm)).mean()) - alone)
    assert min(seen) > 0
    assert np.mean(kept) < np.mean(seen) - 0.005
