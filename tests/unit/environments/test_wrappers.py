"""Wrappers add noise, failures, delay, drift and arrivals to an environment."""

from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.coordinate import Coordinate
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.named import named
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
from iapo_dspy.environments.wrappers import Arrivals, Delay, Drift, Failures, Noise
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.reference import overspending
from iapo_dspy.types import Pulls
from tests.support.recordings import Dry, best_of, coins, everywhere, voting


def test_wrappers_do_what_they_say():
    recording = best_of()
    pulls = everywhere(recording, 200)
    plain = recording.environment(0).pull(pulls)
    noisy = Noise(recording.environment(0), sd=0.5).pull(pulls)
    assert (noisy.score - plain.score).std() == pytest.approx(0.5, rel=0.05)
    flaky = Failures(recording.environment(0), share=0.3).pull(pulls)
    assert flaky.failed.mean() == pytest.approx(0.3, abs=0.03)
    assert (flaky.label[flaky.failed] == -1).all()
    np.testing.assert_array_equal(flaky.cost, plain.cost)
    np.testing.assert_array_equal(flaky.score[~flaky.failed], plain.score[~flaky.failed])
    waits: list[float] = []
    slow = Delay(recording.environment(0), seconds=2.0, per_completion=0.5, sleep=waits.append).pull(pulls)
    assert waits == [2.0 + 0.5 * 6_000]
    np.testing.assert_array_equal(slow.score, plain.score)


def constant(score):
    """Everything is answered with class 0, worth `score`."""
    return voting(probs=np.ones((3, 10, 1)), answers=np.zeros(10, dtype=int), credit=np.full((10, 1), score))


def test_drift_turns_one_environment_into_another():
    recording = constant(0.0)
    drifting = Drift(recording.environment(0), constant(1.0).environment(0), over=6_000)
    shares = [drifting.pull(everywhere(recording, 50)).score.mean() for _ in range(6)]
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1], atol=0.3)
    assert shares[0] < shares[3] and shares[-1] == 1.0


def test_drift_keeps_the_order_of_the_pulls_and_what_was_left_out():
    before, after = voting(cost=np.array([1.0, 2.0, 3.0])), voting(cost=np.array([10.0, 20.0, 30.0]))
    pulls = everywhere(before, 4)
    drifting = Drift(before.environment(0), after.environment(1), over=100)
    seen = drifting.pull(pulls)
    prompt = np.repeat(pulls.prompt, 4)
    assert set(seen.cost / (prompt + 1)) == {1.0, 10.0}
    per_pull = seen.cost.reshape(-1, 4)
    assert (per_pull == per_pull[:, :1]).all()
    short = Drift(Dry(before.environment(0), 3), after.environment(1), over=100).pull(pulls)
    assert short.exhausted and short.pulls.completions == len(short.cost) < pulls.completions
    assert set(short.cost / np.repeat(short.pulls.prompt + 1, short.pulls.size)) <= {1.0, 10.0}


def one(prompt, size):
    return Pulls(np.array([prompt]), np.array([0]), np.array([size]))


def test_prompts_arrive_once_so_many_completions_were_drawn():
    recording = coins(np.full((7, 4), 0.5))
    arriving = Arrivals(recording.environment(0), generations=[2, 1, 3, 1], at=[0, 10, 15, 15])
    assert arriving.present == 2 and (arriving.n_prompts, arriving.n_queries) == (7, 4)
    for prompt, needed in ((2, 10), (4, 15), (6, 15)):
        with pytest.raises(ConfigurationError, match=f"Prompt {prompt} is not there yet.* {needed} completions.*are 0"):
            arriving.pull(one(prompt, 1))
    assert arriving.pull(one(1, 9)).present == 2  # the refused pulls drew nothing
    seen = arriving.pull(one(0, 1))
    assert seen.present == arriving.present == 3 and len(seen.label) == 1
    with pytest.raises(ConfigurationError, match="Pull prompts below 3"):
        arriving.pull(one(3, 1))
    assert arriving.pull(one(2, 4)).present == 3
    assert arriving.pull(one(2, 4)).present is arriving.present is None  # two generations at once, and all are there
    assert arriving.pull(one(6, 2)).present is None


def test_arrivals_count_the_completions_that_were_drawn_and_change_none():
    recording = coins(np.full((4, 10), 0.5))
    arriving = Arrivals(Dry(recording.environment(0), 1), generations=[2, 2], at=[0, 8])
    asked = Pulls(np.array([0, 1]), np.array([0, 1]), np.array([5, 5]))
    assert arriving.pull(asked).present == 2  # of ten completions five were drawn
    plain, other = recording.environment(0), Arrivals(recording.environment(0), generations=[2, 2], at=[0, 8])
    np.testing.assert_array_equal(other.pull(asked).label, plain.pull(asked).label)
    np.testing.assert_array_equal(other.pull(one(3, 9)).label, plain.pull(one(3, 9)).label)


@pytest.mark.parametrize("name", ["psst", "psst+k1", "uniform", "ucb", "triple", "disjoint", "random"])
def test_algorithms_that_need_all_prompts_at_once_say_so(name):
    problem = replace(synthetic_bernoulli(0, n_prompts=3, n_queries=5).problem(2), present=2)
    with pytest.raises(ConfigurationError, match="needs all prompts at the start, and 1 of 3 join later"):
        named(name).start(problem, budget=500, seed=0)
    with pytest.raises(ConfigurationError, match="1 of 3 join later"):
        overspending(PSST()).start(problem, budget=500, seed=0)
    with pytest.raises(ConfigurationError, match="1 of 3 join later"):
        Coordinate([3]).start(problem, budget=500, seed=0)


def test_bad_wrappers_are_refused():
    environment = voting().environment(0)
    other = voting().subset(np.arange(4)).environment(0)
    for make in (
        lambda: Noise(environment, sd=-1.0),
        lambda: Failures(environment, share=1.5),
        lambda: Delay(environment, seconds=-1.0),
        lambda: Drift(environment, other, over=10),
        lambda: Drift(environment, environment, over=0),
        lambda: Arrivals(environment, generations=[], at=[]),
        lambda: Arrivals(environment, generations=[3, 0], at=[0, 5]),
        lambda: Arrivals(environment, generations=[2, 2], at=[0, 5]),
        lambda: Arrivals(environment, generations=[2, 1], at=[0]),
        lambda: Arrivals(environment, generations=[2, 1], at=[1, 5]),
        lambda: Arrivals(environment, generations=[1, 1, 1], at=[0, 9, 5]),
    ):
        with pytest.raises(ConfigurationError):
            make()


@pytest.mark.slow
def test_psst_lives_with_failures_noise_and_drift():
    recording = synthetic_bernoulli(0, n_prompts=6, n_queries=60)
    inner = Drift(recording.environment(1), recording.environment(2), over=3_000)
    environment = Failures(Noise(inner, sd=0.1), share=0.2)
    outcome = drive(PSST().start(recording.problem(16), budget=12_000, seed=0), environment)
    best = recording.exact(16).q().max(axis=(1, 2))
    found = np.array([recording.exact(16).q()[c, a.prompt, a.n - 1] for c, a in enumerate(outcome.policy.arms)])
    assert (best - found).mean() < 0.1


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
