"""Command line of the simulator: `python -m iapo_dspy.simulation --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from iapo_dspy.environments.recorded.synthetic import MAX_N
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.entrants import NAMES, entrants
from iapo_dspy.simulation.plots import plot_simulation
from iapo_dspy.simulation.runner import need, simulate
from iapo_dspy.simulation.sources import SYNTHETIC, ArrivingSource, Source, source
from iapo_dspy.simulation.summaries import summarize, write_json
from iapo_dspy.simulation.tables import acr_table, details_table, generations_table, significance_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    asked = _parser().parse_args(arguments)
    try:
        _check_outputs(asked)
        where: Source = source(
            asked.environment, ties=asked.ties, max_n=asked.max_n, prompts=asked.prompts, queries=asked.queries
        )
        if asked.arrivals is not None:
            where = ArrivingSource(inner=where, generations=asked.arrivals, order=asked.arrival_order)
        chosen = entrants(_split(asked.algorithms), asked.rule)
        with tqdm(total=asked.runs, unit="run", disable=asked.quiet) as bar:
            runs = simulate(
                where,
                chosen,
                _budgets(asked.budgets),
                runs=asked.runs,
                seed=asked.seed,
                jobs=asked.jobs,
                backend=asked.backend,
                progress=lambda _: bar.update(),
            )
        names = ("runs", "seed", "ties", "rule", "max_n", "prompts", "queries", "arrivals", "arrival_order")
        summary = summarize(where.name, runs, {name: getattr(asked, name) for name in names})
    except (ConfigurationError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{where.name}: {asked.runs} runs, ties={asked.ties}, rule={asked.rule}\n")
    print(acr_table(summary), details_table(summary), significance_table(summary), sep="\n\n")
    if asked.arrivals is not None:
        print("", generations_table(summary), sep="\n")
    if any(r["acr"] is None for r in summary["results"]):
        print("\n-: the algorithm refuses so small a budget; PSST needs prompts x max_n completions at least.")
    try:  # after the tables: a full disk must not take them along
        if asked.json:
            write_json(summary, asked.json)
        if asked.plot:
            plot_simulation(summary, asked.plot)
    except OSError as error:
        print(f"error: the results could not be written: {error}", file=sys.stderr)
        return 2
    return 0


def _budgets(text: str) -> list[int]:
    try:
        return [int(b) for b in _split(text)]
    except ValueError:
        raise ConfigurationError(f"--budgets {text!r}: give whole numbers, separated by commas: 1000,5000.") from None


def _check_outputs(asked: argparse.Namespace) -> None:
    """Find out before a long run, not after it, that its results could not be tested or written."""
    need("scipy", "simulation")
    if asked.plot:
        need("matplotlib", "plots")
    for path in (Path(p) for p in (asked.json, asked.plot) if p):
        if not path.parent.is_dir():
            raise ConfigurationError(f"Cannot write {path}: there is no folder {path.parent}.")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigurationError(f"Cannot write {path}: it is a folder, or may not be written.")
    if asked.plot and Path(asked.plot).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigurationError(f"Cannot plot to {asked.plot}: give a name that ends in .png, .pdf or .svg.")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m iapo_dspy.simulation", description=__doc__)
    parser.add_argument(
        "--environment",
        required=True,
        help=f"{', '.join(SYNTHETIC)}, or a recording (.npz, .parquet, or a published .pkl)",
    )
    parser.add_argument("--prompts", type=int, help="how many prompts a synthetic environment has")
    parser.add_argument(
        "--queries",
        type=int,
        help="how many queries are trained on; the rest, or 100 to a quarter as many synthetic ones, are held out",
    )
    parser.add_argument(
        "--arrivals", type=int, help="generations in which the prompts join, each after an equal share of the budget"
    )
    parser.add_argument(
        "--arrival-order", choices=("worst", "random"), default="worst", help="worst: the good prompts come late"
    )
    parser.add_argument("--algorithms", default="psst,psst+k4,uniform,triple,triple-random", help=", ".join(NAMES))
    parser.add_argument("--budgets", default="1000,5000,20000", help="completions, separated by commas")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ties", choices=("paper", "half"), default="paper", help="credit of a tied vote: 1/t, or .5")
    parser.add_argument(
        "--rule",
        choices=("bounded", "overspending"),
        default="bounded",
        help="bounded: never more than the budget; overspending: as the authors' code, to compare with its figures",
    )
    parser.add_argument("--max-n", type=int, default=MAX_N, help="largest number of completions that are aggregated")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; -1 for one per core; same numbers always")
    parser.add_argument("--backend", choices=("processes", "ray"), default="processes")
    parser.add_argument("--json", help="write the numbers here")
    parser.add_argument("--plot", help="write the figures here")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(main())
