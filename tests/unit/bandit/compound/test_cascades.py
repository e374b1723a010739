"""Cascades: the best one by hand, thresholds on queries that had no part in tuning them, and what is not offered."""

from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.compound.cascades import Allowed, ArmPrices, Cascades, Offer
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import Sequences
from iapo_dspy.types import Arm, Escalation, FloatArray, IntArray

COPIES = 40


def rows(right: FloatArray, n: int, wrong: int = 3, seed: int = 0) -> Sequences:
    """Votes of prompts that are right with these probabilities [Q, V]; wrong completions give one of a few answers."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(right.shape[1]), COPIES)
    chance = right[:, query, None]
    hit = rng.random((len(right), len(query), n)) < chance
    label = np.where(hit, 0, 1 + rng.integers(0, wrong, hit.shape))
    return Sequences(
        prompts=np.arange(len(right)),
        label=label,
        score=hit[..., None].astype(float),
        query=query,
        n_queries=right.shape[1],
        aggregator=MajorityVoteAggregator(),
        weights=np.ones(1),
    )


def prices(each: list[float], fixed: float = 0.0) -> ArmPrices:
    return ArmPrices(fixed=np.full(len(each), fixed), each=np.array(each))


def best(cascades: Cascades, paid: ArmPrices, single: Arm, allowed: Allowed | None = None) -> Offer | None:
    return cascades.best(paid, paid, single, allowed)


def easy_and_hard(n_queries: int = 200) -> FloatArray:
    """A cheap prompt that is right on half of the queries and guesses on the others; a dear one that is right."""
    easy = np.arange(n_queries) % 2 == 0
    return np.stack([np.where(easy, 1.0, 0.25), np.full(n_queries, 1.0)])


def test_a_cheap_stage_answers_the_easy_half() -> None:
    found = best(Cascades(rows(easy_and_hard(), 8)), prices([0.001, 0.1]), Arm(1, 1))
    assert found is not None
    assert found.arm.prompt == 0 and found.arm.then is not None and found.arm.then.arm is not None
    assert found.arm.then.arm.prompt == 1 and found.arm.then.arm.n == 1
    # All agree on the easy half; on the hard half all n agree on one of 4 equally likely answers with 4^(1 - n). The
    # dear prompt alone is worth 1 - 0.1; so the gain is about half of its price, less the cheap completions.
    n = found.arm.n
    agree = 4.0 ** (1 - n)
    worth = 0.5 * 0.1 - 0.001 * n - 0.5 * agree * (0.75 - 0.1)
    assert found.gain == pytest.approx(worth, abs=0.006)
    assert found.played.completions[:, 1].mean() == pytest.approx(0.5 * (1 - agree), abs=0.02)


def test_a_threshold_is_valued_on_queries_that_had_no_part_in_it() -> None:
    # All prompts guess among four answers, so a cascade gains nothing; the best of thousands on the same rows would.
    guess = np.full((4, 60), 0.25)
    cascades = Cascades(rows(guess, 8))
    found = best(cascades, prices([0.0] * 4), Arm(0, 1))
    assert found is not None
    tuned = play(found.arm, cascades.sequences).reward.mean() - play(Arm(0, 1), cascades.sequences).reward.mean()
    assert found.gain < tuned - 0.005
    assert abs(found.gain) < 0.03


def test_three_stages_are_found_where_each_of_them_serves_some_queries() -> None:
    third = np.arange(240) % 3
    right = np.stack([np.where(third == 0, 1.0, 0.25), np.where(third < 2, 1.0, 0.25), np.full(240, 1.0)])
    found = best(Cascades(rows(right, 6)), prices([0.001, 0.01, 0.5]), Arm(2, 1))
    assert found is not None and [stage.prompt for stage in found.arm.stages] == [0, 1, 2]
    assert found.gain == pytest.approx(0.5 * 2 / 3 - 0.02, abs=0.04)


def test_votes_of_the_first_stage_count_where_they_help() -> None:
    # One wrong answer, the second prompt the weaker one. Where the first is split 2 to 1, its answer is right with .6.
    # Three votes of the second alone are right with .575. With all six votes, a right leader wins if two of the three
    # are right and draws if one is, a wrong one loses if all are and draws if two are: .593.
    right = np.stack([np.full(600, 0.6), np.full(600, 0.55)])
    found = best(
        Cascades(rows(right, 3, wrong=1)), prices([0.0, 0.0]), Arm(0, 3), lambda arm: (arm.prompt, arm.n) == (0, 3)
    )
    assert found is not None and found.arm.then is not None
    assert found.arm.then.weight == 1
    assert found.gain == pytest.approx(0.72 * (0.593 - 0.6), abs=0.006)


def test_waves_inside_of_stages_change_no_answer_and_save_completions() -> None:
    cascades = Cascades(rows(easy_and_hard(), 8))
    found = best(cascades, prices([0.01, 0.1]), Arm(1, 1))
    assert found is not None

    def plain(arm: Arm) -> Arm:
        then = arm.then
        if then is not None and then.arm is not None:
            then = Escalation(below=then.below, arm=plain(then.arm), weight=then.weight)
        return Arm(arm.prompt, arm.n, then=then)

    waves, once = play(found.arm, cascades.sequences), play(plain(found.arm), cascades.sequences)
    assert found.arm.stop is not None
    assert waves.reward.mean() == pytest.approx(once.reward.mean(), abs=1e-9)
    assert (waves.stage == once.stage).all()
    assert waves.completions.mean() < once.completions.mean()


def test_arms_that_break_a_cap_are_left_out() -> None:
    cascades = Cascades(rows(easy_and_hard(), 8))
    assert best(cascades, prices([0.001, 0.1]), Arm(1, 1), lambda arm: False) is None
    small = best(cascades, prices([0.001, 0.1]), Arm(1, 1), lambda arm: arm.most <= 4)
    assert small is not None and small.arm.most <= 4


def best_of_rows() -> Sequences:
    rng = np.random.default_rng(3)
    query: IntArray = np.repeat(np.arange(100), COPIES)
    good = (np.arange(100) % 2 == 0)[query, None]
    cheap = np.where(good, 0.9, 0.1) + 0.05 * rng.random((len(query), 4))
    dear = 0.8 + 0.1 * rng.random((len(query), 4))
    score = np.stack([cheap, dear])[..., None]
    return Sequences(
        prompts=np.arange(2),
        label=np.zeros(score.shape[:3], dtype=np.int64),
        score=score,
        query=query,
        n_queries=100,
        aggregator=BestOfNAggregator(floors=(0.0,)),
        weights=np.ones(1),
    )


def test_best_of_n_goes_on_where_the_best_score_is_low() -> None:
    found = best(Cascades(best_of_rows()), prices([0.01, 0.2]), Arm(1, 1))
    assert found is not None and found.arm.then is not None
    assert 0.15 < found.arm.then.below < 0.9 and found.arm.n == 1
    # Half of the calls cost 0.01 and are worth about .925, the others 0.21 and .85; the dear prompt alone: .85 - .2.
    assert found.gain == pytest.approx((0.925 + 0.85) / 2 - 0.11 - 0.65, abs=0.02)
