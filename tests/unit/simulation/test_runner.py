"""Runs of a simulation share environments, and each has random streams of its own."""

from dataclasses import replace

from iapo_dspy.environments.recorded.recording import RecordedEnvironment
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
from iapo_dspy.simulation.entrants import entrants
from iapo_dspy.simulation.runner import simulate
from iapo_dspy.simulation.sources import SyntheticSource


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
