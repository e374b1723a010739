"""A run's ledger for analysis: as a Parquet table, and as a recorded environment."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from iapo_dspy.environments.recorded.empirical import Cell, Kind, empirical_recording
from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.environments.recorded.token_shares import drawn_of
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError, LedgerError, one_line
from iapo_dspy.preferences import Preference
from iapo_dspy.sampling.ledger.export import Places, ScoredCompletion, scored
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.sampling.ledger.records import CompletionRecord, PullKey
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.sampling.spending.usage_check import pieces
from iapo_dspy.scoring.calibration import Scales
from iapo_dspy.types import Contexts, FloatArray

logger = logging.getLogger(__name__)

KINDS: dict[str, Kind] = {"majority_vote": "vote", "best_of_n": "best-of"}
_SHOWN = 5  # missing cells that a message names


def recording_of(
    log_dir: str | os.PathLike[str],
    *,
    prompts: Sequence[int] | None = None,
    common_queries: bool = False,
    samples: int | None = None,
    cost_scale: float | None = None,
) -> Recording:
    """Turn a run's ledger into a recorded environment, to be replayed, simulated and valued without an LM.

    Every (prompt, query) cell needs completions; their empirical law becomes the cell's. An algorithm that drops
    prompts leaves cells empty: keep fewer prompts, keep only the queries that all of them were asked, or record all
    cells (`IAPO.record`).

    Args:
        log_dir: The run's directory.
        prompts: Indices of the prompts to keep, in this order. Default: all.
        common_queries: Keep only the queries on which every kept prompt has completions.
        samples: Keep the first S completions of each cell. Default: all of them.
        cost_scale: Utility of one unit of the run's `Cost`, an output token by default. `None`: the average call for a
            single completion (mean over the kept prompts) costs 0.01.

    Returns:
        A recording with the run's preferences as contexts; `environments.files.save` writes it. Where all cells have
        the same number of completions, it has these too (`Recording.drawn`).

    Raises:
        LedgerError: There is no ledger, it cannot be read, or it lacks parts that a recording needs.
        ConfigurationError: Cells without completions, or a prompt that the run does not have.
        BudgetTooSmall: Cells with fewer than `samples` completions; the message says how many are missing.
    """
    contents = contents_of(log_dir)
    settings, facts = contents.settings, contents.about
    strategy = settings.get("strategy")
    strategy = strategy.get("kind") if isinstance(strategy, Mapping) else None
    kind = KINDS.get(str(strategy))
    if kind is None and strategy is not None:
        raise LedgerError(
            f"The run in {log_dir} used the strategy {strategy!r}; recordings hold majority votes and Best-of-N "
            "only. Its completions can be exported: iapo_dspy.ledger.export."
        )
    if kind is None or not {"n_prompts", "n_queries", "objectives"} <= facts.keys():
        raise LedgerError(
            f"The ledger in {log_dir} does not say which strategy, prompts and queries it is about, as those of "
            "IAPO.compile do; it can be exported, but not made a recording."
        )
    try:
        n_prompts, n_queries = int(facts["n_prompts"]), int(facts["n_queries"])
        objectives = [str(name) for name in facts["objectives"]]
        contexts = Contexts.from_preferences([Preference.from_dict(p) for p in settings["preferences"]], objectives)
        cost = Cost.from_dict(settings.get("cost") or {})
        scales = Scales.of_saved(settings["strategy"]) if kind == "best-of" else None
        if scales is not None and list(scales.names) != objectives:
            raise ValueError(f"the strategy has the objectives {list(scales.names)}, the run {objectives}")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise LedgerError(
            f"{contents.path} is damaged: its settings are not those of a run ({one_line(error)}). Repair its "
            'line of the kind "run", or run again in another log_dir.'
        ) from error
    columns = len(objectives) if kind == "best-of" else 1
    unscored = 0
    places = Places.of(contents)
    cells: dict[tuple[int, int], list[ScoredCompletion]] = {}
    sizes: dict[str, int] = {}
    for s in scored(contents):
        unscored += not s.known
        if s.score is not None and s.score.scores is not None and len(s.score.scores) != columns:
            raise LedgerError(
                f"{contents.path} has {len(s.score.scores)} scores for the completion {s.score.key}, and the run has "
                f"{columns} objectives: the ledger was changed. Compile again to score it anew."
            )
        sizes[s.completion.key] = pieces(s.completion.text)
        bare = replace(s.completion, text=None, fields=s.completion.fields and {}, inner=None)  # texts take memory
        at = places.prompts.get(bare.prompt), places.queries.get(bare.query)
        if samples is not None and bare.draw >= samples:
            continue
        if at[0] is not None and at[1] is not None:  # else the run that wrote last does not have it
            cells.setdefault((at[0], at[1]), []).append(replace(s, completion=bare))
    if unscored:
        raise LedgerError(
            f"{unscored} completions in {log_dir} were never scored: the run was stopped. Compile again to finish it."
        )
    kept: Sequence[int] = range(n_prompts) if prompts is None else [int(p) for p in prompts]
    if not kept or (prompts is not None and (len(set(kept)) < len(kept) or not set(kept) <= set(range(n_prompts)))):
        raise ConfigurationError(f"prompts={prompts!r}: give different indices below {n_prompts}.")
    queries: Sequence[int] = range(n_queries)
    if common_queries:
        asked = sorted({x for _, x in cells if x in queries})
        queries = [x for x in asked if all((p, x) in cells for p in kept)]
        if not queries:
            raise ConfigurationError(f"No query in {log_dir} was asked of all the prompts {kept}; keep fewer prompts.")
    if samples is not None:
        _check_complete(
            log_dir, sum(len(cells.get((p, x), ())) for p in kept for x in queries), samples * len(kept) * len(queries)
        )
    missing = ((p, x) for p in kept for x in queries if (p, x) not in cells)
    shown = list(itertools.islice(missing, _SHOWN))
    if shown:
        lacking = len(kept) * len(queries) - sum(p in kept and x in queries for p, x in cells)
        raise ConfigurationError(
            f"{lacking} of {len(kept) * len(queries)} (prompt, query) cells have no completions, among them "
            f"{shown}: algorithms drop prompts early. Keep fewer prompts (prompts=[...]), only queries that "
            "all prompts were asked (common_queries=True), or record all cells with IAPO.record."
        )
    table = [[cells[p, x] for x in queries] for p in kept]
    for cell in cells.values():
        cell.sort(key=lambda s: s.completion.draw)  # as they were asked for, not as they came
    overhead, each = _costs(table, cost)
    place: Callable[[Any], Sequence[float]] = itemgetter(slice(1))
    if scales is not None:
        first = (s.score for cell in cells.values() for s in cell if s.score is not None and s.score.calibrates)
        place = scales.learn([score.scores for score in first if score.scores is not None]).place
    logger.info("%d prompts and %d queries of %s are in the recording.", len(kept), len(queries), log_dir)
    names: list[dict[str, int]] = [{} for _ in queries]  # the answers of each query
    drawn = [[_drawn(cell, names[x], place, columns) for x, cell in enumerate(row)] for row in table]
    even = len({len(cell) for row in table for cell in row}) == 1
    return empirical_recording(
        kind,
        drawn,
        cost=each,
        overhead=overhead,
        contexts=contexts,
        cost_scale=cost_scale,
        tokens=partial(drawn_of, table, sizes) if even else None,
    )


def _check_complete(log_dir: str | os.PathLike[str], have: int, total: int) -> None:
    """Refuse a recording that lacks completions."""
    if have < total:
        raise BudgetTooSmall(
            f"{have:,} of {total:,} completions are in {log_dir}, and {total - have:,} are missing: the budget has "
            f"ended, or requests failed. Record again with log_dir={str(log_dir)!r}: what is there is not drawn "
            f"again. A budget must have at least {total:,} completions.",
            given=have,
            least=total,
        )


def _drawn(
    cell: Sequence[ScoredCompletion], names: dict[str, int], place: Callable[[Any], Sequence[float]], columns: int
) -> Cell:
    """Return the completions of one cell; `names` learns answers that are new."""
    label, score = np.full(len(cell), -1), np.full((len(cell), columns), np.nan)
    for i, s in enumerate(cell):
        if s.failed or s.score is None or s.score.scores is None:
            continue
        score[i] = place(s.score.scores)
        if s.score.answer is not None:
            label[i] = names.setdefault(s.score.answer, len(names))
    return label, score


def _costs(table: Sequence[Sequence[Sequence[ScoredCompletion]]], cost: Cost) -> tuple[FloatArray, FloatArray]:
    """Return each prompt's mean overhead per pull and mean cost per completion [P], in raw units."""
    overhead, each = np.zeros(len(table)), np.zeros(len(table))
    for p, row in enumerate(table):
        pulls: dict[PullKey, list[CompletionRecord]] = {}
        for s in (s for cell in row for s in cell):
            pulls.setdefault(s.completion.pull, []).append(s.completion)
        parts = [cost.split([c.usage for c in completions]) for completions in pulls.values()]
        overhead[p] = np.mean([once for once, _ in parts])
        each[p] = np.mean([c for _, costs in parts for c in costs])
    return overhead, each
