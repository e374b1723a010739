"""Runs of a simulation share environments, and each has random streams of its own."""

from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.environments.recorded.recording import RecordedEnvironment, VotingRecording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
from iapo_dspy.simulation.entrants import Entrant, entrants
from iapo_dspy.simulation.runner import simulate
from iapo_dspy.simulation.sources import RecordedSource, SyntheticSource
from iapo_dspy.types import Arm, Escalation, Policy


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


def test_a_policy_with_a_cascade_is_worth_its_calls():
    """Two coins that agree half of the time, or else a prompt that is always right and costs ten times as much."""
    recording = VotingRecording(
        probs=np.repeat(np.array([[0.5, 0.5], [1.0, 0.0]])[:, None], 100, axis=1),
        answers=np.zeros(100, dtype=np.int64),
        cost=np.array([0.01, 0.1]),
        cost_weights=np.array([0.0, 1.0]),
    )
    cascade = Arm(0, 2, then=Escalation(below=1.0, arm=Arm(1, 1)))
    shy = Arm(0, 2, then=Escalation(below=1.0))

    class Always(PSST):
        """Chooses two arms by hand."""

        def start(self, problem, *, budget, seed):
            outcome = yield from super().start(problem, budget=budget, seed=seed)
            return replace(outcome, policy=Policy((cascade, shy)))

    where = RecordedSource(name="two", recording=recording, values=recording.exact(4), ties="paper", max_n=4)
    trial = simulate(where, [Entrant("always", Always())], [200], runs=1, seed=0)[0].trials["always", 200]
    assert trial is not None
    bold, silent = 0.25 + 0.5, 0.25 - 2 * 0.01  # at cost weights 0 and 1
    assert trial.acr == pytest.approx((bold + silent) / 2, abs=0.02)
    assert trial.regret == pytest.approx((1.0 - 0.1 + 1.0 - bold - silent) / 2, abs=0.02)
    assert (trial.compound, trial.best) == (1.0, 0.0)
    assert trial.escalates == pytest.approx(0.5 / 2, abs=0.02) and trial.abstains == pytest.approx(0.5 / 2, abs=0.02)
    assert trial.completions == pytest.approx((2.5 + 2.0) / 2, abs=0.02)
    assert trial.waves == pytest.approx((1.5 + 1.0) / 2, abs=0.02)
    exact = StoppedValues(recording=recording).on_queries(1, shy)
    assert exact.reward.mean() - exact.cost.mean() == pytest.approx(silent, abs=0.01)
