"""Prompts join while a simulated run goes on, and the summary says what each of them took."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from click.testing import CliRunner

from iapo_dspy.bandit.algorithms.standing import Standing
from iapo_dspy.bandit.baselines.uniform import Uniform
from iapo_dspy.bandit.named import ALGORITHMS
from iapo_dspy.command_line.main import simulate as contest
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.entrants import Entrant
from iapo_dspy.simulation.runner import simulate
from iapo_dspy.simulation.sources import ArrivingSource, RecordedSource
from iapo_dspy.simulation.summaries import summarize
from iapo_dspy.types import Observations, Pulls
from tests.support.recordings import coins

THETA = np.array([0.9, 0.2, 0.6, 0.3, 0.1, 0.75])


@dataclass(frozen=True)
class TakingTurns:
    """One completion of every prompt that is there, round after round."""

    def least(self, problem):
        return problem.n_prompts

    def start(self, problem, *, budget, seed):
        state = Standing(problem)
        rounds: list[Observations] = []
        while state.present <= budget - state.spent:
            prompts = np.arange(state.present)
            seen = yield Pulls(prompts, np.full(len(prompts), len(rounds) % problem.n_queries), np.ones_like(prompts))
            state.note(seen, np.ones(problem.shape, dtype=bool))
            rounds.append(seen)
        return self.solve(problem, rounds)

    def solve(self, problem, rounds):
        return Uniform().solve(problem, rounds)


@pytest.fixture
def where() -> RecordedSource:
    recording = coins(np.tile(THETA[:, None], (1, 30)))
    values = recording.exact(2)
    return RecordedSource(name="coins", recording=recording, values=values, ties="paper", max_n=2)


def test_the_worst_generation_comes_first_and_within_it_the_order_is_random(where):
    orders = set()
    for run in range(12):
        instance = ArrivingSource(inner=where, generations=3).instance(0, run)
        plain = where.instance(0, run)
        assert instance.generations == (2, 2, 2)
        assert isinstance(instance.train, VotingRecording)
        theta = instance.train.probs[:, 0, 0].tolist()
        assert [set(theta[i : i + 2]) for i in (0, 2, 4)] == [{0.1, 0.2}, {0.3, 0.6}, {0.75, 0.9}]
        orders.add(tuple(theta))
        np.testing.assert_array_equal(instance.train_queries, plain.train_queries)
        np.testing.assert_allclose(instance.q_train[0, :, 0], theta)
        np.testing.assert_allclose(instance.q_test[0, :, 0], theta)
        np.testing.assert_array_equal(instance.stopped.recording.probs[:, 0, 0], theta)
    assert len(orders) > 3
    random = [ArrivingSource(inner=where, generations=4, order="random").instance(0, run) for run in range(12)]
    assert {i.generations for i in random} == {(2, 2, 1, 1)}
    first = [i.q_train[0, 0, 0] for i in random]
    assert len(set(first)) > 3 and set(np.round(first, 6)) <= set(THETA)
    again = ArrivingSource(inner=where, generations=4, order="random").instance(0, 3)
    np.testing.assert_array_equal(again.q_train, random[3].q_train)
    with pytest.raises(ConfigurationError, match="has 6 prompts"):
        ArrivingSource(inner=where, generations=7).instance(0, 0)


def test_a_run_tells_what_each_newcomer_took(where):
    # 2 prompts for 10 rounds, 4 for 5 rounds from the 20th completion on, 6 for 3 rounds from the 40th on.
    source = ArrivingSource(inner=where, generations=3)
    runs = simulate(source, [Entrant("turns", TakingTurns())], [60], runs=4, seed=0)
    for run in runs:
        trial = run.trials["turns", 60]
        assert trial is not None and trial.spent == 58
        assert [(g, n) for g, n, _ in trial.newcomers] == [(0, 18), (0, 18), (1, 8), (1, 8), (2, 3), (2, 3)]
        assert sum(chosen for _, _, chosen in trial.newcomers) == 1  # one context
    (result,) = summarize("coins", runs, {})["results"]
    found = result["generations"]
    assert [g["prompts"] for g in found] == [2, 2, 2] and sum(g["chosen"] for g in found) == 1
    assert [(g["completions"], g["put_aside"], g["most_put_aside"]) for g in found] == [
        (18, 18, 18),
        (8, 8, 8),
        (3, 3, 3),
    ]
    plain = simulate(where, [Entrant("turns", TakingTurns())], [60], runs=4, seed=0)
    assert [(r.train_best, r.oracle) for r in plain] == [(r.train_best, r.oracle) for r in runs]  # the same splits
    assert all(r.trials["turns", 60].newcomers == () for r in plain)  # type: ignore[union-attr]
    assert "generations" not in summarize("coins", plain, {})["results"][0]


def test_the_command_line_lets_prompts_arrive(monkeypatch, tmp_path):
    monkeypatch.setitem(ALGORITHMS, "turns", TakingTurns())
    out = tmp_path / "out.json"
    command = [
        "--environment",
        "synthetic-bernoulli",
        "--prompts",
        "6",
        "--queries",
        "20",
        "--max-n",
        "2",
        "--runs",
        "2",
    ]
    command += ["--budgets", "60", "--quiet", "--arrivals"]
    asked = [*command, "3", "--arrival-order", "random", "--algorithms", "turns", "--json", str(out)]
    done = CliRunner().invoke(contest, asked)
    assert done.exit_code == 0, done.output
    summary = json.loads(out.read_text())
    assert (summary["settings"]["arrivals"], summary["settings"]["arrival_order"]) == (3, "random")
    assert [g["completions"] for g in summary["results"][0]["generations"]] == [18, 8, 3]
    assert "3 (2 prompts)" in done.stdout
    for arguments, message in (
        (["3", "--algorithms", "psst"], "needs all prompts at the start, and 4 of 6 join later"),
        (["0", "--algorithms", "turns"], "arrivals is 0"),
        (["7", "--algorithms", "turns"], "has 6 prompts"),
    ):
        refused = CliRunner().invoke(contest, [*command, *arguments])
        assert refused.exit_code == 2 and message in refused.stderr
