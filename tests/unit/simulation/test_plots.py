"""Figures of simulations."""

import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.plots import plot_simulation
from iapo_dspy.simulation.runner import SimulatedRun, Trial
from iapo_dspy.simulation.summaries import summarize


def run(i, **acr):
    """A run at budgets 100 and 200; algorithms named by keyword, None where refused."""
    trials = {}
    for name, value in acr.items():
        for budget in (100, 200):
            made = (
                None
                if value is None
                else Trial(
                    acr=value + budget / 1e4, regret=1 - value, best=0.5, spent=budget - 1, completions=7.5, waves=1.5
                )
            )
            trials[name, budget] = made
    return SimulatedRun(run=i, trials=trials, train_best=0.9, oracle=0.95)


RUNS = [run(i, a=0.5 + 0.01 * i, b=0.4 + 0.012 * i, c=None) for i in range(10)]


@pytest.mark.extra
def test_figures_have_the_two_panels(tmp_path):
    summary = summarize("world", [run(i, psst=0.5 + 0.01 * i, uniform=0.4, triple=None) for i in range(3)], {})
    plot_simulation(summary, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    plot_simulation(summary, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert "Exploration strategies" in text and "Inference-awareness" in text
    with pytest.raises(ConfigurationError, match="no folder"):
        plot_simulation(summary, tmp_path / "missing" / "figure.png")
