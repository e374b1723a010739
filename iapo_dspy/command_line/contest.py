"""`iapo simulate`: algorithms compared on one environment, with tables, numbers and figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from iapo_dspy.bandit.models.winning import Ties
from iapo_dspy.environments.recorded.synthetic import MAX_N
from iapo_dspy.errors import ConfigurationError, storing
from iapo_dspy.simulation.entrants import Rule, entrants
from iapo_dspy.simulation.plots import plot_simulation
from iapo_dspy.simulation.runner import Backend, need, simulate
from iapo_dspy.simulation.sources import ArrivalOrder, ArrivingSource, Source, source
from iapo_dspy.simulation.summaries import summarize, write_json
from iapo_dspy.simulation.tables import acr_table, details_table, generations_table, significance_table


def show_simulation(
    show: Callable[[str], None],
    *,
    environment: str,
    algorithms: str,
    budgets: str,
    runs: int = 200,
    seed: int = 0,
    ties: Ties = "paper",
    rule: Rule = "bounded",
    max_n: int = MAX_N,
    prompts: int | None = None,
    queries: int | None = None,
    arrivals: int | None = None,
    arrival_order: ArrivalOrder = "worst",
    jobs: int = 1,
    backend: Backend = "processes",
    json_path: Path | None = None,
    plot_path: Path | None = None,
    quiet: bool = False,
) -> None:
    """Simulate, show the tables, and write what was asked for.

    Args:
        show: Called with each text to print.
        environment: As for `sources.source`, as are `ties`, `max_n`, `prompts` and `queries`.
        algorithms: Names, separated by commas; see `entrants`, as for `rule`.
        budgets: Completions, separated by commas.
        runs: As for `runner.simulate`, as are `seed`, `jobs` and `backend`.
        seed: Root of all seeds.
        ties: How ties are credited.
        rule: The budget rule.
        max_n: The largest scale.
        prompts: Prompts of a synthetic environment.
        queries: Training queries.
        arrivals: Generations in which the prompts join; None: all are there at the start.
        arrival_order: See `ArrivingSource`.
        jobs: Runs at once.
        backend: Where they run.
        json_path: Where the numbers are written; None writes none.
        plot_path: Where the figures are written.
        quiet: Whether the progress bar is hidden.

    Raises:
        ConfigurationError: A setting cannot be used, or a file could not be written.
        StorageError: A file cannot be written after all; the tables have been shown.
        ImportError: An optional package is missing; the message has the command that installs it.
    """
    need("scipy", "simulation")  # before a long run, not after it
    if plot_path is not None:
        need("matplotlib", "plots")
    _check_writable(json_path, plot_path)
    where: Source = source(environment, ties=ties, max_n=max_n, prompts=prompts, queries=queries)
    if arrivals is not None:
        where = ArrivingSource(inner=where, generations=arrivals, order=arrival_order)
    with tqdm(total=runs, unit="run", disable=quiet) as bar:
        found = simulate(
            where,
            entrants(_split(algorithms), rule),
            _whole_numbers(budgets),
            runs=runs,
            seed=seed,
            jobs=jobs,
            backend=backend,
            progress=lambda _: bar.update(),
        )
    settings: dict[str, object] = {"runs": runs, "seed": seed, "ties": ties, "rule": rule, "max_n": max_n}
    settings |= {"prompts": prompts, "queries": queries, "arrivals": arrivals, "arrival_order": arrival_order}
    summary = summarize(where.name, found, settings)
    tables = [acr_table(summary), details_table(summary), significance_table(summary)]
    if arrivals is not None:
        tables.append(generations_table(summary))
    if any(r["acr"] is None for r in summary["results"]):
        tables.append("-: the algorithm refuses so small a budget; PSST needs prompts x max_n completions at least.")
    show("\n\n".join([f"{where.name}: {runs} runs, ties={ties}, rule={rule}", *tables]))
    if json_path is not None:  # after the tables: a full disk must not take them along
        write_json(summary, json_path)
    if plot_path is not None:
        with storing(plot_path):
            plot_simulation(summary, plot_path)


def _check_writable(json_path: Path | None, plot_path: Path | None) -> None:
    """Find out before a long run that its results could not be written."""
    for path in (path for path in (json_path, plot_path) if path is not None):
        if not path.parent.is_dir():
            raise ConfigurationError(f"Cannot write {path}: there is no folder {path.parent}.")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigurationError(f"Cannot write {path}: it is a folder, or may not be written.")
    if plot_path is not None and plot_path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigurationError(f"Cannot plot to {plot_path}: give a name that ends in .png, .pdf or .svg.")


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in _split(text)]
    except ValueError:
        raise ConfigurationError(f"--budgets {text!r}: give whole numbers, separated by commas: 1000,5000.") from None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
