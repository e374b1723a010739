"""Stops chosen from a run's draws: estimates near the truth, a wrong model corrected, and the chooser's rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.outcome import Outcome, StoppedArm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stopping.estimates import CellReadings, StopEstimates, corrected_stops
from iapo_dspy.bandit.stopping.replays import observed_votes
from iapo_dspy.bandit.stopping.rules import exact_waves, tuned_vote_stops
from iapo_dspy.bandit.stops import THRIFT, StopMode, _Chooser, call_prices, with_stops
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_categorical
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, Contexts, FloatArray, Policy, Pulls, Stop
from tests.support.draws import observe, problem_of

MAX_N = 16


def graded(cost_weights: tuple[float, ...] = (0.0, 0.2, 1.0), overhead: float = 0.0) -> VotingRecording:
    """Four prompts, 300 queries of Beta difficulty, three wrong answers of which one is strong."""
    rng = np.random.default_rng(5)
    theta = rng.beta(1.2, 0.5, size=(1, 300)) * np.array([[1.0], [0.97], [0.94], [0.5]])
    wrong = (1 - theta)[..., None] * np.array([0.6, 0.3, 0.1])
    return VotingRecording(
        probs=np.concatenate([theta[..., None], wrong], axis=2),
        answers=np.zeros(300, dtype=np.int64),
        cost=np.full(4, 0.01),
        cost_weights=np.array(cost_weights),
        overhead=np.full(4, overhead),
    )


def run(recording: Recording, budget: int, seed: int = 0, max_n: int = MAX_N) -> tuple[Problem, Outcome]:
    problem = recording.problem(max_n)
    return problem, drive(Auto().start(problem, budget=budget, seed=seed), recording.environment(seed, 1))


@pytest.fixture(scope="module")
def voted() -> tuple[VotingRecording, Problem, Outcome]:
    recording = graded()
    return (recording, *run(recording, 6_000))


def truth(recording: Recording, prompt: int, stops: tuple[Stop, ...], context: int = 0) -> FloatArray:
    """Gain, completions and waves [3, M]."""
    values = StoppedValues(recording=recording, sequences=100)
    laws = [values.law(context, Arm(prompt, s.waves[-1], s)) for s in stops]
    return np.stack([law.mean(axis=1) for law in laws], axis=1)


# --- estimates ---


def test_replays_of_a_cells_own_draws_are_unbiased() -> None:
    """The mean over many cells of one law is what enumeration says of that law."""
    recording = VotingRecording(
        probs=np.tile([0.5, 0.3, 0.2], (1, 4000, 1)), answers=np.zeros(4000, dtype=np.int64), cost=np.ones(1),
        cost_weights=np.zeros(1),
    )  # fmt: skip
    pulls = Pulls(np.zeros(4000, int), np.arange(4000), np.full(4000, 7))
    cells = Cells.of([recording.environment(3).pull(pulls)], 1, 1)
    stops = (*tuned_vote_stops(5), Stop(waves=exact_waves(5)), *tuned_vote_stops(8))
    found = observed_votes(cells, stops)
    assert np.isnan(found[:, :, -1]).all()  # seven draws say nothing of eight
    known = [i for i, s in enumerate(stops) if s.waves[-1] <= 7]
    exact = StoppedValues(recording=recording, sequences=25)
    for i in known:
        law = exact.law(0, Arm(0, stops[i].waves[-1], stops[i])).mean(axis=1)
        assert (np.abs(found[:, :, i].mean(axis=1) - law) < [0.012, 0.04, 0.02]).all()


def test_estimates_of_votes_are_near_the_truth(voted: tuple[VotingRecording, Problem, Outcome]) -> None:
    recording, _, outcome = voted
    assert outcome.detail is not None and outcome.detail.model is not None
    found = outcome.detail.model.stops(0, np.array([0, 1]), MAX_N)
    assert found is not None
    chosen = [i for i, s in enumerate(found.stops) if s.waves[-1] in (4, 8, 16)]
    for i, prompt in enumerate((0, 1)):
        gain, completions, waves = truth(recording, prompt, tuple(found.stops[m] for m in chosen))
        np.testing.assert_allclose(found.gain[i, chosen], gain, atol=0.008)
        n = np.array([found.stops[m].waves[-1] for m in chosen])
        np.testing.assert_allclose(found.completions[i, chosen] / n, completions / n, atol=0.07)
        np.testing.assert_allclose(found.waves[i, chosen], waves, atol=0.2)


@pytest.mark.slow
def test_over_many_runs_utilities_of_stopped_arms_are_nearly_unbiased() -> None:
    """The same arms in every run, so that nothing is chosen: what is left is the estimate's own error.

    With 2,000 completions hardly a cell has 16 draws. The laws of these cells are not the model's.
    """
    recording = graded()
    arms = [Stop(waves=(2, 4, 8, 16), confidence=c) for c in (0.8, 0.9)] + [Stop(waves=(3, 6, 8), confidence=0.8)]
    gain, completions, _ = truth(recording, 0, tuple(arms))
    off = []
    for seed in range(5):
        _, outcome = run(recording, 2_000, seed=seed)
        assert outcome.detail is not None and outcome.detail.model is not None
        found = outcome.detail.model.stops(0, np.array([0]), MAX_N)
        assert found is not None
        at = [found.stops.index(s) for s in arms]
        off.append([found.gain[0, at] - gain, (found.completions[0, at] - completions) / 10])
    mean, error = np.mean(off, axis=0), np.std(off, axis=0, ddof=1) / np.sqrt(len(off))
    assert (np.abs(mean) < np.array([[0.005], [0.06]]) + 3 * error).all()


def corrected(model: float, draws: int, n_queries: int = 400) -> tuple[StopEstimates, FloatArray]:
    """A model that says the same of every query, and cells with draws on the first so many queries."""
    recording = graded().subset(np.arange(300).repeat(2)[:n_queries])
    stops = (Stop(waves=(2, 4, 8), confidence=0.8), Stop(waves=(2, 4, 8), confidence=0.99))
    sizes = np.where(np.arange(n_queries) < draws, 8, 1)
    order = np.random.default_rng(9).permutation(n_queries)  # a random part of the queries has draws
    pulls = Pulls(np.zeros(n_queries, int), order, sizes)
    cells = Cells.of([recording.environment(2).pull(pulls)], 1, 1)

    said = np.array([model, 8.0, 3.0])[:, None, None] * np.ones((3, 1, len(stops)))
    each = np.repeat(said, n_queries, axis=1)
    says = [CellReadings(np.arange(n_queries), each, each, each)]
    found = corrected_stops(n_queries * said, says, observed_votes(cells, stops), cells, np.array([0]), stops, 1.0)
    return found, truth(recording, 0, stops)


@pytest.mark.slow
def test_a_wrong_model_is_corrected_as_draws_grow() -> None:
    """The model sees no savings, and a loss of .2 where there is hardly any."""
    off = []
    for draws in (0, 60, 400):
        found, true = corrected(-0.2, draws)
        off.append([abs(found.gain[0] - true[0]).max(), abs(found.completions[0] - true[1]).max()])
    assert off[0][0] > 0.15 and off[0][1] > 3  # nothing but the model
    assert off[1][0] < 0.06 and off[1][1] < 1.0
    assert off[2][0] < 0.012 and off[2][1] < 0.25


def test_few_draws_leave_a_good_model_alone() -> None:
    _, true = corrected(0.0, 0)
    found, _ = corrected(float(true[0].mean()), 20)  # fewer queries than count as evidence
    np.testing.assert_allclose(found.gain[0], true[0].mean())


def test_estimates_of_thresholds_are_near_the_truth() -> None:
    recording = synthetic_categorical(1, n_prompts=4, n_queries=150)
    recording = replace(recording, weights=recording.weights[12:15])  # equal weights, three prices
    problem, outcome = run(recording, 4_000, max_n=8)
    stopped = with_stops(problem, outcome)
    assert stopped.stops is not None and outcome.detail is not None
    for context, arm in enumerate(stopped.stops):
        if arm.arm.stop is None:
            continue
        gain, completions, waves = truth(recording, arm.arm.prompt, (arm.arm.stop,), context)[:, 0]
        assert arm.gain == pytest.approx(gain, abs=0.06)  # of 4
        assert arm.completions == pytest.approx(completions, abs=0.6)
        assert arm.waves == pytest.approx(waves, abs=0.3)
    assert any(s.arm.stop is not None and s.arm.stop.threshold is not None for s in stopped.stops)
    q = recording.exact(8).q()
    values = StoppedValues(recording=recording)
    fixed = np.array([q[c, a.prompt, a.n - 1] for c, a in enumerate(outcome.policy.arms)])
    early = np.array([q[c, a.prompt, a.n - 1] for c, a in enumerate(stopped.policy.arms)])
    calls = values.calls(stopped.policy)
    assert (early + calls.gain + calls.saved).mean() > fixed.mean() - 0.005


# --- choosing ---


def value(recording: Recording, policy: Policy) -> FloatArray:
    """True utility of each context's arm [C]."""
    q = recording.exact(MAX_N).q()
    calls = StoppedValues(recording=recording).calls(policy)
    fixed = np.array([q[c, a.prompt, a.n - 1] for c, a in enumerate(policy.arms)])
    return np.asarray(fixed + calls.gain + calls.saved)


def test_tuned_stops_gain_utility_and_save_a_third_of_the_samples(
    voted: tuple[VotingRecording, Problem, Outcome],
) -> None:
    recording, problem, outcome = voted
    stopped = with_stops(problem, outcome)
    assert stopped.stops is not None and [s.arm for s in stopped.stops] == list(stopped.policy.arms)
    plain, early = value(recording, outcome.policy), value(recording, stopped.policy)
    assert early[0] > plain[0] - 0.003  # nothing is paid for samples: they are saved all the same
    assert stopped.stops[0].completions <= outcome.policy[0].n * 2 / 3
    assert early[2] > plain[2] + 0.003
    np.testing.assert_allclose([s.utility for s in stopped.stops], early, atol=0.03)


def test_what_is_reported_adds_up(voted: tuple[VotingRecording, Problem, Outcome]) -> None:
    _, problem, outcome = voted
    for context, s in enumerate(with_stops(problem, outcome).stops or ()):
        cost_weight = problem.contexts.cost[context]
        assert s.cost == pytest.approx(0.01 * s.completions)
        assert s.utility == pytest.approx(s.reward - cost_weight * s.cost)
        assert s.reward == pytest.approx(outcome.reward[context, s.arm.prompt, s.arm.n - 1] + s.gain)


def test_exact_stops_keep_prompt_n_and_every_answer(voted: tuple[VotingRecording, Problem, Outcome]) -> None:
    recording, problem, outcome = voted
    stopped = with_stops(problem, outcome, mode="exact")
    for before, after in zip(outcome.policy.arms, stopped.policy.arms, strict=True):
        assert (after.prompt, after.n) == (before.prompt, before.n)
        assert after.n == 1 or after.stop == Stop(waves=exact_waves(after.n))
    calls = StoppedValues(recording=recording).calls(stopped.policy)
    assert (calls.gain == 0.0).all()
    assert (calls.completions < [0.95 * a.n for a in outcome.policy.arms]).all()
    np.testing.assert_allclose([s.completions for s in stopped.stops or ()], calls.completions, atol=0.6)


def test_waves_that_pay_the_prompt_again_are_not_taken() -> None:
    """A query costs as much as 40 completions: a second wave costs more than all completions that it could save."""
    recording = graded((1.0,), overhead=0.4)
    problem, outcome = run(recording, 4_000)
    for mode in ("exact", "confidence"):
        (arm,) = with_stops(problem, outcome, mode=mode).policy.arms
        assert arm.stop is None
    cheap = graded((1.0,), overhead=0.002)
    problem, outcome = run(cheap, 4_000)
    (stopped,) = with_stops(problem, outcome).stops or ()
    assert stopped.arm.stop is not None
    assert stopped.cost == pytest.approx(0.002 * stopped.waves + 0.01 * stopped.completions)


def test_waves_are_capped(voted: tuple[VotingRecording, Problem, Outcome]) -> None:
    _, problem, outcome = voted
    prices = call_prices(problem, outcome)
    two = with_stops(problem, outcome, prices=replace(prices, most_waves=np.full(problem.shape, 2)))
    assert all(a.stop is None or len(a.stop.waves) <= 2 for a in two.policy.arms)
    assert any(a.stop is not None for a in two.policy.arms)
    one = with_stops(problem, outcome, prices=replace(prices, most_waves=np.full(problem.shape, 1)))
    assert all(a.stop is None for a in one.policy.arms)
    small = np.zeros(problem.shape, dtype=np.int64)
    small[:, 1, :4] = 9  # only prompt 1, and at most four samples
    assert all(a.prompt == 1 and a.n <= 4 for a in with_stops(problem, outcome, prices=replace(prices, most_waves=small)).policy.arms)  # fmt: skip  # noqa: E501
    nothing = replace(prices, most_waves=np.zeros(problem.shape, dtype=np.int64))
    assert with_stops(problem, outcome, prices=nothing).policy == outcome.policy


def test_dearer_completions_never_mean_more_of_them(voted: tuple[VotingRecording, Problem, Outcome]) -> None:
    _, problem, outcome = voted
    weights = np.array([0.0, 0.1, 0.3, 1.0, 3.0, 10.0])
    contexts = Contexts(np.ones((6, 1)), weights)
    other = replace(problem, contexts=contexts)
    solved = with_stops(other, Auto().solve(other, outcome.observations))
    drawn = [s.completions for s in solved.stops or ()]
    assert all(a >= b - 0.05 for a, b in pairwise(drawn))
    utility = [s.utility for s in solved.stops or ()]
    best = np.nanmax(solved.q, axis=(1, 2))
    assert (np.array(utility) >= best - THRIFT - 0.001).all()  # all at once is always on offer


def test_stored_rounds_give_the_runs_own_stops(voted: tuple[VotingRecording, Problem, Outcome]) -> None:
    _, problem, outcome = voted
    for mode in ("exact", "confidence"):
        first = with_stops(problem, outcome, mode=mode)
        again = with_stops(problem, Auto().solve(problem, outcome.observations), mode=mode)
        assert again.policy == first.policy and again.stops == first.stops
    assert Auto().solve(problem, outcome.observations).stops is None


def test_contexts_that_are_solved_apart_get_the_stops_that_they_would_get_alone() -> None:
    rng = np.random.default_rng(0)
    theta = rng.beta(1.2, 0.5, size=(1, 200)) * rng.uniform(0.5, 1.0, size=(9, 200))
    probs = np.stack([theta, *((1 - theta) * share for share in (0.6, 0.3, 0.1))], axis=2)
    recording = VotingRecording(
        probs=probs, answers=np.zeros(200, dtype=np.int64), cost=np.geomspace(0.02, 0.001, 9), cost_weights=np.zeros(1)
    )
    problem, outcome = run(recording, 3_000)
    weights = np.array([0.0, 0.3, 1.0, 3.0, 20.0])
    wide = replace(problem, contexts=Contexts(np.ones((5, 1)), weights), cost_scale=1.0)
    together = Auto().solve(wide, outcome.observations)
    alone: list[StoppedArm] = []
    for weight in weights:
        one = replace(wide, contexts=Contexts(np.ones((1, 1)), np.array([weight])))
        alone += with_stops(one, Auto().solve(one, outcome.observations)).stops or ()
    assert len({s.arm.prompt for s in alone}) > 1
    assert with_stops(wide, together, apart=True).stops == tuple(alone)
    assert with_stops(wide, together).policy != Policy(tuple(s.arm for s in alone))  # rules are tuned for more prompts


def test_runs_without_a_model_get_exact_waves() -> None:
    recording = graded()
    problem = recording.problem(8)
    outcome = drive(PSST().start(problem, budget=4_000, seed=0), recording.environment(0))
    stopped = with_stops(problem, outcome)
    for before, after, s in zip(outcome.policy.arms, stopped.policy.arms, stopped.stops or (), strict=True):
        assert after == (replace(before, stop=Stop(waves=exact_waves(before.n))) if before.n > 1 else before)
        assert s.gain == 0.0 and s.completions <= before.n
    calls = StoppedValues(recording=recording).calls(stopped.policy)
    np.testing.assert_allclose([s.completions for s in stopped.stops or ()], calls.completions, atol=1.0)
    dear = graded(overhead=1.0)
    outcome = drive(PSST().start(dear.problem(8), budget=4_000, seed=0), dear.environment(0))
    assert all(a.stop is None for a in with_stops(dear.problem(8), outcome).policy.arms)


def test_best_of_n_without_thresholds_draws_all_at_once() -> None:
    recording = synthetic_categorical(0, n_prompts=2, n_queries=40)
    recording = replace(recording, weights=recording.weights[12:15])
    problem = recording.problem(4)
    assert isinstance(problem.aggregator, BestOfNAggregator)
    outcome = drive(PSST().start(problem, budget=400, seed=0), recording.environment(0))
    assert with_stops(problem, outcome).policy == outcome.policy
    _, outcome = run(recording, 200, max_n=4)
    assert with_stops(recording.problem(4), outcome, mode="exact").policy == outcome.policy


def test_odd_worlds() -> None:
    """One score only, one completion only, and a run that saw nothing."""
    flat = BestOfRecording(
        outcomes=np.ones((1, 1, 1, 1)), probs=np.ones((2, 30, 1)), cost=np.ones(2), weights=np.array([[1.0, 0.0]])
    )
    problem, outcome = run(flat, 100, max_n=4)
    assert (with_stops(problem, outcome).stops or ())[0].arm.stop is None
    problem, outcome = run(graded(), 100, max_n=1)
    assert all(a == Arm(a.prompt, 1) for a in with_stops(problem, outcome).policy.arms)
    problem = graded().problem(4)
    empty = with_stops(problem, Auto().solve(problem, ()), mode="confidence")
    assert empty.policy.arms == (Arm(0, 1),) * 3
    with pytest.raises(ConfigurationError, match="exact"):
        with_stops(problem, empty, mode="fast")  # type: ignore[arg-type]


def test_failed_completions_are_not_votes() -> None:
    recording = synthetic_bernoulli(2, n_prompts=3, n_queries=120)
    recording = replace(recording, probs=recording.probs * 0.7)
    problem, outcome = run(recording, 3_000, max_n=8)
    stopped = with_stops(problem, outcome)
    calls = StoppedValues(recording=recording).calls(stopped.policy)
    np.testing.assert_allclose([s.completions for s in stopped.stops or ()], calls.completions, atol=0.8)
    np.testing.assert_allclose([s.gain for s in stopped.stops or ()], calls.gain, atol=0.02)


# --- arms that are the arm of one completion ---


def of_two(failed: int = 0) -> tuple[Problem, Outcome]:
    """A run that has chosen a vote of two: every query was drawn four times, and some first completions failed."""
    problem = problem_of(MajorityVoteAggregator(), n_prompts=1, max_n=2, n_queries=40, price=[0.1], cost_scale=0.01)
    right = np.random.default_rng(2).random(160) < 0.7
    score = np.where(np.arange(160) < failed, np.nan, right)
    label = np.where(np.isnan(score), -1, 1 - right)
    outcome = PSST().solve(problem, [observe([(0, x, 4) for x in range(40)], score, label)])
    return problem, replace(outcome, policy=Policy((Arm(0, 2),)))


@pytest.mark.parametrize("mode", ["exact", "confidence"])
def test_a_vote_of_two_that_its_first_completion_always_settles_is_shown_as_one_completion(mode: StopMode) -> None:
    problem, outcome = of_two()
    (found,) = (stopped := with_stops(problem, outcome, mode=mode)).stops or ()
    assert found.arm == stopped.policy[0] == Arm(0, 1)
    assert (found.completions, found.waves, found.cost) == (1.0, 1.0, 1.0)
    assert found.utility == outcome.q[0, 0, 0] and found.reward == outcome.reward[0, 0, 0]


def test_a_vote_of_two_that_asks_again_after_failures_is_an_arm_of_its_own() -> None:
    problem, outcome = of_two(failed=16)  # four queries on which nothing came back
    (found,) = with_stops(problem, outcome, mode="exact").stops or ()
    assert found.arm == Arm(0, 2, Stop(waves=(1, 2)))
    assert found.completions == pytest.approx(1.1)


def test_a_threshold_that_every_completion_reaches_is_shown_as_one_completion() -> None:
    problem = problem_of(BestOfNAggregator(), n_prompts=1, max_n=4, n_queries=40, price=[0.1], cost_scale=0.01)
    rule = Stop(waves=(1, 2, 4), threshold=0.5)
    for lowest, arm in ((0.6, Arm(0, 1)), (0.4, Arm(0, 4, rule))):
        score = np.append(np.random.default_rng(3).uniform(0.6, 1.0, 159), lowest)
        outcome = PSST().solve(problem, [observe([(0, x, 4) for x in range(40)], score)])
        chooser = _Chooser(problem, outcome, call_prices(problem, outcome), "exact")
        assert chooser.as_drawn(0, chooser._described(0, Arm(0, 4, rule), 0.0, 1.0)).arm == arm
