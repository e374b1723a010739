"""What is said of the utility of cascades, and of their gains, holds in worlds whose truth is known."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.comparison import compared
from iapo_dspy.bandit.compound.chosen import with_compounds
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import Sequences, needed
from iapo_dspy.bandit.inference import choices
from iapo_dspy.bandit.measurement import measured, measuring_pulls
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.types import Arm

QUERIES, ANSWERS, ROWS, RUNS = 100, 31, 20_000, 20
RIGHT = np.array([[1.0, 0.1], [0.93, 0.93]])  # a cheap prompt that is right on easy queries, and a dear one
COST = np.array([0.01, 0.12])
LAW = np.concatenate(
    [RIGHT[:, :, None], np.repeat((1.0 - RIGHT[:, :, None]) / (ANSWERS - 1), ANSWERS - 1, axis=2)], axis=2
)  # [prompt, easy or hard, answer]


def recording(seed: int) -> VotingRecording:
    """Return a hundred queries, each hard with probability one half."""
    hard = (np.random.default_rng([7, seed]).random(QUERIES) < 0.5).astype(int)
    answers = np.zeros(QUERIES, dtype=int)
    return VotingRecording(probs=LAW[:, hard], answers=answers, cost=COST, cost_weights=np.ones(1))


@lru_cache
def worth(arm: Arm) -> float:
    """Return the utility of an arm over all queries that there may be, to .002."""
    rng, n, found = np.random.default_rng(1), max(needed(arm).values()), 0.0
    for law in np.moveaxis(LAW, 1, 0):
        drawn = rng.random((2, ROWS, n))
        label = np.stack([np.searchsorted(np.cumsum(law[p])[:-1], drawn[p], side="right") for p in (0, 1)])
        sequences = Sequences(
            prompts=np.arange(2),
            label=label,
            score=(label == 0)[..., None].astype(float),
            query=np.zeros(ROWS, dtype=int),
            n_queries=1,
            aggregator=MajorityVoteAggregator(),
            weights=np.ones(1),
        )
        played = play(arm, sequences)
        found += 0.5 * float((played.reward - played.completions @ COST).mean())
    return found


@pytest.mark.slow
def test_intervals_of_cascades_and_of_their_gains_cover() -> None:
    utilities, gains = [], []
    for seed in range(RUNS):
        world = recording(seed)
        problem = world.problem(8)
        outcome = drive(Auto().start(problem, budget=700, seed=seed), world.environment(seed))
        outcome = with_compounds(problem, with_stops(problem, outcome))
        arm = outcome.policy[0]
        if not arm.compound:
            continue
        pulls = measuring_pulls(problem, outcome, np.arange(QUERIES), 200, seed)
        after = measured(problem, outcome, world.environment(seed + 1000).pull(pulls))
        for found in (outcome, after):
            sure = choices(found, problem.contexts, problem.aggregator)
            assert sure is not None
            utilities.append((sure[0].utility - worth(arm), *(end - worth(arm) for end in sure[0].interval)))
        (baselines,) = compared(problem, after, student=0, mode="confidence")
        assert baselines[-1].name == "best single arm"
        for baseline in baselines:
            gain = worth(arm) - worth(baseline.call.arm)
            gains.append((baseline.difference - gain, *(end - gain for end in baseline.difference_interval)))
    assert len(utilities) > RUNS  # the cascade is found in most of the runs
    for name, rows in (("utility", utilities), ("gain", gains)):
        error, low, high = np.array(rows).T
        held = ((low <= 0) & (high >= 0)).mean()
        half_held = ((error - (error - low) / 2 <= 0) & (error + (high - error) / 2 >= 0)).mean()
        print(f"{name}: {held:.3f} of {len(error)} hold it, {half_held:.3f} if half as wide; {error.mean():+.3f}")
        assert held >= 0.9
        assert half_held < 0.97  # so they are not wide for nothing
        assert abs(error.mean()) < 0.05
