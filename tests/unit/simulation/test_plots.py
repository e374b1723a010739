"""Figures of simulations."""

import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.plots import plot_simulation
from iapo_dspy.simulation.summaries import summarize
from tests.support.simulated import run


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
