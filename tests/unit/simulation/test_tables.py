"""Tables of simulations."""

from dataclasses import replace

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


def test_numbers_of_compound_arms_are_shown_where_there_are_some():
    assert "second stage" not in details_table(summarize("world", RUNS, {})).splitlines()[0]
    trials = {
        key: trial and replace(trial, compound=0.5, escalates=0.25, abstains=0.125)
        for key, trial in RUNS[0].trials.items()
    }
    table = details_table(summarize("world", [replace(RUNS[0], trials=trials)], {})).splitlines()
    assert "compound  second stage  abstains" in table[0]
    assert table[2].split()[-6:-3] == ["0.50", "0.250", "0.125"] and table[-1].split()[-6:] == ["-"] * 6
