"""Draw the picture of the README from the demo's results, accuracy against tokens; needs the extra `plots`.

    python -m iapo_dspy.demo --task mv --json demo.json
    python examples/frontier_picture.py demo.json docs/pictures/frontier.svg

Every point is a program that was asked all held-out questions of the demo: the compiled program under each preference,
the best single-shot prompt asked once, the same prompt with its N tuned, and the student as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "instruction and N chosen together (IAPO)"
TUNED = "best single-shot prompt, N tuned"
SINGLE = "best single-shot prompt"
STUDENT = "student as it is"
LOOKS = {  # colours and greys that can be read on a white and on a black page
    OURS: {"color": "#2f81f7", "marker": "o"},
    TUNED: {"color": "#d97706", "marker": "s"},
    SINGLE: {"color": "#d97706", "marker": "*", "markersize": 15, "linestyle": "none"},
    STUDENT: {"color": "#768390", "marker": "X", "linestyle": "none"},
}
GREY = "#768390"

Points = Mapping[str, Sequence[tuple[float, float]]]
"""Name of a way -> its points (tokens a question, accuracy), cheapest first."""


def along(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return the points of some rows of the demo, each once, cheapest first."""
    return sorted({(row["tokens_per_question"], row["accuracy"]) for row in rows})


def points_of(demo: Mapping[str, Any]) -> Points:
    """Return the points of the demo's majority vote, from what its `--json` writes."""
    found = demo["mv"]
    others = {name: [row for row in found["baselines"] if row["name"] == name] for name in (TUNED, SINGLE, STUDENT)}
    return {OURS: along(found["preferences"]), **{name: along(rows) for name, rows in others.items()}}


def draw(points: Points, path: Path) -> None:
    """Draw the points on a transparent ground."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    plt.rcParams.update({"svg.hashsalt": "iapo", "svg.fonttype": "path", "font.size": 11})
    for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        plt.rcParams[name] = GREY
    figure, axes = plt.subplots(figsize=(7.2, 3.9))
    for name, look in LOOKS.items():
        style: dict[str, Any] = {"linewidth": 2.2, "markersize": 7, **look}
        axes.plot(*zip(*points[name], strict=True), label=name, **style)
    axes.set_xscale("log")
    axes.set(xlabel="output tokens a question (log)", ylabel="accuracy on held-out questions", ylim=(0.3, 1.0))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GREY, alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    """Print and draw the points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what the demo wrote with --json")
    parser.add_argument("picture", type=Path, help="where it goes, .svg or .png")
    asked = parser.parse_args()
    points = points_of(json.loads(asked.results.read_text(encoding="utf-8")))
    for name, some in points.items():
        print(f"{name}: " + ", ".join(f"{accuracy:.2f} at {tokens:.0f} tokens" for tokens, accuracy in some))
    draw(points, asked.picture)


if __name__ == "__main__":
    main()
