"""Tables of simulations."""

from iapo_dspy.simulation.summaries import summarize
from iapo_dspy.simulation.tables import acr_table, details_table, significance_table
from tests.support.simulated import RUNS


def test_tables_show_every_number():
    summary = summarize("world", RUNS, {})
    lines = acr_table(summary).splitlines()
    assert lines[0].split() == ["ACR", "100", "200"]
    assert lines[2].split() == ["a", "0.5550", "0.5650"] and lines[4].split() == ["c", "-", "-"]
    assert lines[-2].split() == ["best", "train", "policy", "0.9000"]
    assert len(details_table(summary).splitlines()) == 2 + 6
    starred = significance_table(summary).splitlines()[2:]
    assert len(starred) == 2 and all(line.endswith("*") for line in starred)
