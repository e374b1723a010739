"""Plots of a run's results on matplotlib axes (extra `plots`), from plain numbers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iapo_dspy.report.tabular import cut
from iapo_dspy.types import FloatArray

_LONGEST = 40  # characters of a label in a legend


def new_axes() -> Any:
    """Return the axes of a new figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'iapo_dspy[plots]'.") from error
    return pyplot.subplots(figsize=(7, 4.5), layout="constrained")[1]


def draw_frontier(
    axes: Any,
    cost: FloatArray,
    reward: FloatArray,
    marked: Mapping[str, tuple[float, float, tuple[float, float] | None]],
    *,
    unit: str,
) -> Any:
    """Draw every arm as a point of cost and reward, the frontier of the best ones as a line, and some arms by name.

    Args:
        axes: Where to draw.
        cost: Cost of a call of each arm [M]; arms without a known cost or reward are left out.
        reward: Reward of each arm [M].
        marked: Name -> cost, reward, and the interval of the reward of an arm that stands out.
        unit: The unit of costs in words.
    """
    known = np.isfinite(cost) & np.isfinite(reward)
    x, y = cost[known], reward[known]
    axes.scatter(x, y, s=9, color="0.6", label="every prompt at every N")
    order = np.lexsort((-y, x))
    best = np.maximum.accumulate(y[order])
    front = order[np.append(True, best[1:] > best[:-1])] if len(order) else order
    axes.step(x[front], y[front], where="post", color="C0", label="frontier")
    for i, (name, (at, worth, interval)) in enumerate(marked.items()):
        if interval is not None:
            axes.plot([at, at], interval, color=f"C{i + 1}", linewidth=1.5, label=f"_{name}")
        axes.scatter([at], [worth], s=60, color=f"C{i + 1}", marker="oDs^vP*X"[i % 8], label=name, zorder=3)
    axes.set(xlabel=f"{unit} per call", ylabel="task reward")
    if len(x) and x.min() > 0:
        axes.set_xscale("log")
    axes.legend(fontsize="small")
    return axes


def draw_curves(axes: Any, curves: Mapping[str, tuple[FloatArray, FloatArray, FloatArray]]) -> Any:
    """Draw the reward of prompts over N with their bands.

    Args:
        axes: Where to draw.
        curves: Label of a prompt -> estimate, lower and upper end [N] each; the ends may be NaN.
    """
    for i, (label, (middle, low, high)) in enumerate(curves.items()):
        n = np.arange(1, len(middle) + 1)
        axes.plot(n, middle, color=f"C{i % 10}", label=cut(label, _LONGEST))
        axes.fill_between(n, low, high, color=f"C{i % 10}", alpha=0.15, linewidth=0)
    axes.set(xlabel="N, completions per call", ylabel="task reward")
    axes.legend(fontsize="small")
    return axes


def draw_rounds(axes: Any, completions: Sequence[int], alive: Sequence[int]) -> Any:
    """Draw the completions of each round as bars, and the prompts that were alive in it as a line.

    Args:
        axes: Where to draw.
        completions: Completions of each round.
        alive: Prompts that were alive in each round.
    """
    rounds = np.arange(1, len(completions) + 1)
    axes.bar(rounds, completions, color="C0", alpha=0.6)
    axes.set(xlabel="round", ylabel="completions", xticks=rounds)
    twin = axes.twinx()
    twin.plot(rounds, alive, color="C1", marker="o")
    twin.set_ylabel("prompts alive", color="C1")
    twin.set_ylim(bottom=0)
    return axes
