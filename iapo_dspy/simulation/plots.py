"""Figures of simulations: the two of the paper's evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iapo_dspy.errors import ConfigurationError, storing
from iapo_dspy.simulation.runner import need

_PSST = ("psst", "psst+k1", "psst+k4", "psst+k8")
_PANELS = {
    "Exploration strategies": (*_PSST, "uniform", "epsilon-greedy", "softmax", "ucb", "random"),
    "Inference-awareness": (*_PSST, "triple", "triple-random", "disjoint"),
}


def plot_simulation(summary: Mapping[str, Any], path: str | Path) -> None:
    """Draw mean ACR against the budget, with standard errors.

    Two panels: exploration strategies (the paper's Figure 4) and inference-awareness (Figure 5), each with those of its
    algorithms that the summary has.

    Args:
        summary: A result of `iapo_dspy.simulation.summaries.summarize`.
        path: The image; its suffix says which format.

    Raises:
        ConfigurationError: The folder does not exist.
        ImportError: matplotlib is not installed.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigurationError(f"Cannot write {path}: there is no folder {path.parent}.")
    figures = need("matplotlib.figure", "plots")
    names = list(dict.fromkeys(r["algorithm"] for r in summary["results"]))
    budgets = list(dict.fromkeys(r["budget"] for r in summary["results"]))
    figure = figures.Figure(figsize=(12, 5.5), layout="constrained")
    figure.suptitle(summary["environment"])
    for axes, (title, members) in zip(figure.subplots(1, 2, sharey=True), _PANELS.items(), strict=True):
        for name in (n for n in names if n in members):
            cells = [r for r in summary["results"] if r["algorithm"] == name and r["acr"] is not None]
            axes.errorbar(
                [r["budget"] for r in cells],
                [r["acr"] for r in cells],
                yerr=[r["sem"] or 0.0 for r in cells],
                marker="o",
                markersize=3,
                capsize=2,
                label=name,
                color=f"C{names.index(name) % 10}",
                linestyle="-" if names.index(name) < 10 else "--",
            )
        axes.axhline(summary["references"]["train_best"], color="grey", linestyle=":", label="best train policy")
        axes.set(title=title, xscale="log", xlabel="budget T (completions)")
        axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axes.minorticks_off()
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
    figure.axes[0].set_ylabel("ACR on held-out queries")
    with storing(path):
        figure.savefig(path, dpi=150)
