"""Results of simulations, made by hand."""

from iapo_dspy.simulation.runner import SimulatedRun, Trial


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
