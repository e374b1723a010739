"""What must be independent is, and what the baselines' papers fix is as they say."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.baselines.sequential import UCB, EpsilonGreedy, Softmax
from iapo_dspy.environments.recorded.recording import RecordedEnvironment, VotingRecording
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
from iapo_dspy.environments.wrappers import Failures, Noise
from iapo_dspy.simulation.entrants import entrants
from iapo_dspy.simulation.runner import simulate
from iapo_dspy.simulation.sources import SyntheticSource
from iapo_dspy.types import Pulls


def coin(n_queries=50):
    return VotingRecording(
        probs=np.full((2, n_queries, 2), 0.5),
        answers=np.zeros(n_queries, dtype=int),
        cost=np.full(2, 0.01),
        cost_weights=np.zeros(1),
    )


def pulls_of(recording, size=100):
    query = np.tile(np.arange(recording.n_queries), 2)
    return Pulls(np.repeat([0, 1], recording.n_queries), query, np.full(len(query), size))


@pytest.mark.parametrize("seed", [0, 7])
def test_failures_do_not_depend_on_what_they_hit_even_with_one_seed(seed):
    recording = coin()
    pulls = pulls_of(recording)
    plain = recording.environment(seed).pull(pulls)
    failed = Failures(recording.environment(seed), share=0.3, seed=seed).pull(pulls).failed
    right = plain.score[:, 0] == 1.0
    assert failed[right].mean() == pytest.approx(0.3, abs=0.03)
    assert failed[~right].mean() == pytest.approx(0.3, abs=0.03)


def test_troubles_of_one_seed_are_independent_of_each_other():
    recording = coin()
    pulls = pulls_of(recording)
    twice = Failures(Failures(recording.environment(0), share=0.3), share=0.3).pull(pulls)
    assert twice.failed.mean() == pytest.approx(1 - 0.7**2, abs=0.02)
    noisy = Noise(Noise(recording.environment(0), sd=1.0), sd=1.0).pull(pulls)
    plain = recording.environment(0).pull(pulls)
    assert (noisy.score - plain.score).std() == pytest.approx(np.sqrt(2), rel=0.05)  # one stream twice: 2


def test_the_ucb_index_is_the_mean_plus_c_times_the_root_of_ln_t_over_n():
    rule = UCB().rule
    rng, count = np.random.default_rng(0), np.array([100, 10])
    # ln 110 = 4.70: the bonuses are .0217 and .0686; with t instead of ln t they would be .105 and .332.
    assert rule(rng, np.array([0.50, 0.49]), count) == 1
    assert rule(rng, np.array([0.60, 0.49]), count) == 0
    assert rule(rng, np.array([0.60, 0.49]), np.array([100, 0])) == 1  # unseen first


def test_all_rules_look_at_every_arm_before_they_compare():
    q, count = np.array([3.0, 0.0]), np.array([4, 0])
    for baseline in (Softmax(), EpsilonGreedy()):
        assert {baseline.rule(np.random.default_rng(s), q, count) for s in range(50)} == {1}


def test_softmax_and_epsilon_choose_as_often_as_their_papers_say():
    count = np.array([5, 5])
    rule = Softmax().rule
    chosen = [rule(np.random.default_rng(s), np.array([0.5, 0.45]), count) for s in range(4000)]
    assert np.mean(chosen) == pytest.approx(1 / (1 + np.e), abs=0.03)  # a gap of one temperature, .05
    rule = EpsilonGreedy().rule
    chosen = [rule(np.random.default_rng(s), np.array([0.5, 0.45]), count) for s in range(4000)]
    assert np.mean(chosen) == pytest.approx(0.15 / 2, abs=0.02)


def test_the_papers_constants():
    defaults: dict[Callable[..., Any], tuple[str, float]] = {
        UCB: ("c", 0.1),
        Softmax: ("temperature", 0.05),
        EpsilonGreedy: ("epsilon", 0.15),
        Screening: ("rho", 0.2),
    }
    for function, (name, value) in defaults.items():
        assert inspect.signature(function).parameters[name].default == value


def test_runs_and_budgets_have_random_streams_of_their_own_and_algorithms_share_the_environments(monkeypatch):
    seen, started = [], []
    original = RecordedEnvironment.__init__

    def note(self, recording, seed):
        seen.append((seed, recording.probs.tobytes()))
        original(self, recording, seed)

    monkeypatch.setattr(RecordedEnvironment, "__init__", note)

    def make(*seed):
        return synthetic_bernoulli(*seed, n_prompts=3, n_queries=12)

    def counting(entrant):
        class Counting:
            def start(self, problem, *, budget, seed):
                started.append((entrant.name, budget, seed))
                return entrant.algorithm.start(problem, budget=budget, seed=seed)

        return replace(entrant, algorithm=Counting())

    who = [counting(e) for e in entrants(["psst", "uniform"], "bounded")]
    where = SyntheticSource(name="small", make=make, ties="paper", max_n=4)
    simulate(where, who, [40, 80], runs=3, seed=1)
    assert len(seen) == 3 * 2 * 2 and len({s for s, _ in seen}) == 3 * 2  # shared by the two algorithms
    assert len({law for _, law in seen}) == 3  # every run has an environment of its own
    for name in ("psst", "uniform"):
        assert len({s for n, _, s in started if n == name}) == 3 * 2
