"""Tables of simulations."""

from iapo_dspy.simulation.runner import SimulatedRun, Trial
from iapo_dspy.simulation.summaries import summarize
from iapo_dspy.simulation.tables import acr_table, details_table, significance_table


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


def test_tables_show_every_number():
    summary = summarize("world", RUNS, {})
    lines = acr_table(summary).splitlines()
    assert lines[0].split() == ["ACR", "100", "200"]
    assert lines[2].split() == ["a", "0.5550", "0.5650"] and lines[4].split() == ["c", "-", "-"]
    assert lines[-2].split() == ["best", "train", "policy", "0.9000"]
    assert len(details_table(summary).splitlines()) == 2 + 6
    starred = significance_table(summary).splitlines()[2:]
    assert len(starred) == 2 and all(line.endswith("*") for line in starred)
