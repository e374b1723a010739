"""Simulations of policies with cascades: where one pays, and where none can."""

from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.simulation.entrants import entrants
from iapo_dspy.simulation.runner import Trial, simulate
from iapo_dspy.simulation.sources import RecordedSource

BUDGET = 2_400
NAMES = ("auto+stop", "auto+compound")


def two_models(known: float) -> VotingRecording:
    """A large model, right 19 times of 20, at .05; a small one at .005, as right on a share of the questions.

    Where the small one does not know an answer, its completions are spread over ten.
    """
    n_queries, n_answers = 160, 10
    sure = np.append(0.95, np.full(n_answers - 1, 0.05 / (n_answers - 1)))
    lost = np.full(n_answers, 1.0 / n_answers)
    knows = np.arange(n_queries) < known * n_queries
    small = np.where(knows[:, None], sure, lost)
    return VotingRecording(
        probs=np.stack([small, np.tile(sure, (n_queries, 1))]),
        answers=np.zeros(n_queries, dtype=np.int64),
        cost=np.array([0.005, 0.05]),
        cost_weights=np.array([0.5, 4.0]),
    )


def trials(known: float) -> dict[str, list[Trial]]:
    recording = two_models(known)
    where = RecordedSource(name="two", recording=recording, values=recording.exact(8), ties="paper", max_n=8)
    runs = simulate(where, entrants(NAMES), [BUDGET], runs=2, seed=0)
    found: dict[str, list[Trial]] = {name: [] for name in NAMES}
    for run in runs:
        for name in NAMES:
            trial = run.trials[name, BUDGET]
            assert trial is not None and trial.spent <= BUDGET
            found[name].append(trial)
    return found


@pytest.mark.slow
def test_a_cascade_is_chosen_where_it_pays_and_is_valued_as_it_says() -> None:
    """At cost weight 4 the best arm of one prompt is worth about .75, and two small completions first about .81."""
    found = trials(0.5)
    for alone, both in zip(found["auto+stop"], found["auto+compound"], strict=True):
        assert both.compound > 0 and both.acr > alone.acr + 0.01
        assert 0.1 < both.escalates < 0.6 and alone.escalates == 0.0
        assert both.coverage == 1.0 and both.bias is not None and abs(both.bias) < 0.08


@pytest.mark.slow
def test_none_is_chosen_where_the_small_model_knows_nothing() -> None:
    found = trials(0.0)
    for alone, both in zip(found["auto+stop"], found["auto+compound"], strict=True):
        assert both.compound == 0.0 and both.acr == alone.acr and both.completions == alone.completions
