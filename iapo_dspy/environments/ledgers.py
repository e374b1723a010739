"""A run's ledger for analysis: as a Parquet table, and as a recorded environment."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iapo_dspy.environments.recorded import BestOfRecording, Recording, VotingRecording
from iapo_dspy.errors import ConfigurationError, LedgerError
from iapo_dspy.sampling.cost import Cost
from iapo_dspy.sampling.ledger import read_ledger
from iapo_dspy.sampling.records import CompletionRecord, PullKey, Record, ScoreRecord
from iapo_dspy.scoring.calibration import Scales
from iapo_dspy.types import Contexts, FloatArray, Preference

__all__ = ["export", "recording_of"]

logger = logging.getLogger(__name__)

_KINDS: dict[str, Literal["vote", "best-of"]] = {"majority_vote": "vote", "best_of_n": "best-of"}
_SHOWN = 5  # missing cells that a message names
_Cells = dict[tuple[int, int], list["_Scored"]]


@dataclass(frozen=True)
class _Scored:
    """A completion with its score; None where it was never scored."""

    completion: CompletionRecord
    score: ScoreRecord | None

    @property
    def failed(self) -> bool:
        if self.score is not None:
            return self.score.scores is None
        inner = self.completion.inner  # what it said is scored although a later step of the pipeline failed
        return self.completion.fields is None and (inner is None or inner["fields"] is None)

    @property
    def known(self) -> bool:
        return self.failed or self.score is not None


def export(log_dir: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write a run's completions to a Parquet file, one row each, with their scores.

    The run may still be going on. Columns: what `CompletionRecord` has, with `fields` as JSON text; `label` (the
    prompt's instruction); `answer`, `scores` (one per objective; null for a completion that failed or was not scored
    yet), `scored`; and `failure` and `error` of the completion or, where that is fine, of its score.

    Args:
        log_dir: The run's directory.
        path: The file to write, `.parquet`.

    Returns:
        The number of rows.

    Raises:
        LedgerError: There is no ledger, or it cannot be read.
        ConfigurationError: Another suffix.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise ConfigurationError(f"Cannot write {path.name}: give a file name that ends in .parquet.")
    header, records = read_ledger(log_dir)
    labels: Sequence[str] = _about(header).get("labels") or ()
    import datasets  # see `_features`

    features = _features()
    rows = [_row(s, labels, features) for s in _scored(records)]
    columns = {name: [row[name] for row in rows] for name in features}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features)).data.table
    importlib.import_module("pyarrow.parquet").write_table(table, path)  # `to_parquet` shows a progress bar
    return len(rows)


def recording_of(
    log_dir: str | os.PathLike[str],
    *,
    prompts: Sequence[int] | None = None,
    common_queries: bool = False,
    cost_scale: float | None = None,
) -> Recording:
    """Turn a run's ledger into a recorded environment, to be replayed, simulated and valued without an LM.

    Every (prompt, query) cell needs completions; their empirical law becomes the cell's. An algorithm that drops
    prompts leaves cells empty: keep fewer prompts, keep only the queries that all of them were asked, or record the
    environment itself (`environments.recorder.record`).

    Args:
        log_dir: The run's directory.
        prompts: Indices of the prompts to keep, in this order. Default: all.
        common_queries: Keep only the queries on which every kept prompt has completions.
        cost_scale: Utility of one unit of the run's `Cost`, an output token by default. `None`: the average call for a
            single completion (mean over the kept prompts) costs 0.01.

    Returns:
        A recording with the run's preferences as contexts; `environments.files.save` writes it.

    Raises:
        LedgerError: There is no ledger, it cannot be read, or it lacks what a recording needs.
        ConfigurationError: Cells without completions, or a prompt that the run does not have.
    """
    header, records = read_ledger(log_dir)
    settings = header.get("settings") or {}
    kind = _KINDS.get(str((settings.get("strategy") or {}).get("kind")))
    about = _about(header)
    strategy = (settings.get("strategy") or {}).get("kind")
    if kind is None and strategy is not None:
        raise LedgerError(
            f"The run in {log_dir} used the strategy {strategy!r}; recordings hold majority votes and Best-of-N "
            "only. Its completions can be exported: iapo_dspy.export."
        )
    if kind is None or not {"n_prompts", "n_queries", "objectives"} <= about.keys():
        raise LedgerError(
            f"The ledger in {log_dir} does not say which strategy, prompts and queries it is about, as those of "
            "IAPO.compile do; it can be exported, but not made a recording."
        )
    everything = _scored(records)
    unscored = sum(not s.known for s in everything)
    if unscored:
        raise LedgerError(
            f"{unscored} completions in {log_dir} were never scored: the run was stopped. Compile again to finish it."
        )
    cells: _Cells = {}
    for s in everything:
        cells.setdefault((s.completion.prompt, s.completion.query), []).append(s)
    kept = _prompts(prompts, int(about["n_prompts"]))
    queries = list(range(int(about["n_queries"])))
    if common_queries:
        queries = [x for x in queries if all((p, x) in cells for p in kept)]
        if not queries:
            raise ConfigurationError(f"No query in {log_dir} was asked of all the prompts {kept}; keep fewer prompts.")
    missing = [(p, x) for p in kept for x in queries if (p, x) not in cells]
    if missing:
        raise ConfigurationError(
            f"{len(missing)} of {len(kept) * len(queries)} (prompt, query) cells have no completions, among them "
            f"{missing[:_SHOWN]}: algorithms drop prompts early. Keep fewer prompts (prompts=[...]), only queries that "
            "all prompts were asked (common_queries=True), or record all cells with environments.recorder.record."
        )
    table = [[cells[p, x] for x in queries] for p in kept]
    objectives = [str(name) for name in about["objectives"]]
    contexts = Contexts.from_preferences([Preference.from_dict(p) for p in settings["preferences"]], objectives)
    overhead, cost = _costs(table, Cost.from_dict(settings.get("cost") or {}))
    if cost_scale is None:
        call = float((overhead + cost).mean())
        cost_scale = 0.01 / call if call > 0 else 0.0
    overhead, cost = overhead * cost_scale, cost * cost_scale
    logger.info("%d prompts and %d queries of %s are in the recording.", len(kept), len(queries), log_dir)
    if kind == "vote":
        return _voting(table, cost, overhead, contexts)
    first = [s.score.scores for s in everything if s.completion.round == 0 and s.score is not None]
    scales = Scales.of_saved(settings["strategy"]).learn([scores for scores in first if scores is not None])
    return _best_of(table, cost, overhead, contexts, scales)


def _costs(table: Sequence[Sequence[Sequence[_Scored]]], cost: Cost) -> tuple[FloatArray, FloatArray]:
    """Return each prompt's mean overhead per pull and mean cost per completion [P], in raw units."""
    overhead, each = np.zeros(len(table)), np.zeros(len(table))
    for p, row in enumerate(table):
        pulls: dict[PullKey, list[CompletionRecord]] = {}
        for s in (s for cell in row for s in cell):
            pulls.setdefault(s.completion.pull, []).append(s.completion)
        parts = [cost.split(completions) for completions in pulls.values()]
        overhead[p] = np.mean([once for once, _ in parts])
        each[p] = np.mean([c for _, costs in parts for c in costs])
    return overhead, each


def _about(header: Mapping[str, Any]) -> Mapping[str, Any]:
    return (header.get("settings") or {}).get("about") or {}


def _scored(records: Sequence[Record]) -> list[_Scored]:
    """Every completion in the order of rounds, positions and indices, with its last score."""
    scores = {r.key: r for r in records if isinstance(r, ScoreRecord)}
    completions = {(r.pull, r.index): r for r in records if isinstance(r, CompletionRecord)}
    return [_Scored(r, scores.get(f"{r.round}/{r.position}/{r.index}")) for _, r in sorted(completions.items())]


def _features() -> dict[str, Any]:
    import datasets  # it takes seconds, and only this needs it

    return {
        **{n: datasets.Value("int64") for n in ("round", "position", "index", "prompt", "query")},
        **{n: datasets.Value("string") for n in ("label", "text", "fields", "answer")},
        "scores": datasets.Sequence(datasets.Value("float64")),
        "scored": datasets.Value("bool"),
        "failure": datasets.Value("string"),
        "error": datasets.Value("bool"),
        **{n: datasets.Value("float64") for n in ("prompt_tokens", "completion_tokens", "usd", "latency_s")},
        **{n: datasets.Value("float64") for n in ("shared_tokens", "shared_usd")},
        "seed": datasets.Value("int64"),
    }


def _row(s: _Scored, labels: Sequence[str], names: Iterable[str]) -> dict[str, Any]:
    completion, score = s.completion, s.score
    row = {name: getattr(completion, name, None) for name in names}
    row["label"] = labels[completion.prompt] if completion.prompt < len(labels) else None
    row["fields"] = None if completion.fields is None else json.dumps(completion.fields, ensure_ascii=False)
    row["scored"] = s.known
    if score is not None:
        row["answer"] = score.answer
        row["scores"] = None if score.scores is None else [float(v) for v in score.scores]
        row["failure"] = completion.failure or score.failure
        row["error"] = completion.error or score.error
    return row


def _prompts(prompts: Sequence[int] | None, n_prompts: int) -> list[int]:
    kept = list(range(n_prompts)) if prompts is None else [int(p) for p in prompts]
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(n_prompts)):
        raise ConfigurationError(f"prompts={prompts!r}: give different indices below {n_prompts}.")
    return kept


def _voting(
    table: Sequence[Sequence[Sequence[_Scored]]], cost: FloatArray, overhead: FloatArray, contexts: Contexts
) -> VotingRecording:
    """Shares of each answer, and the mean score of each answer on a query over all prompts."""
    n_queries = len(table[0])
    names: list[dict[str, int]] = [{} for _ in range(n_queries)]
    votes: dict[tuple[int, int, int], int] = {}
    credits: dict[tuple[int, int], list[float]] = {}
    for p, row in enumerate(table):
        for x, cell in enumerate(row):
            for s in cell:
                if s.failed or s.score is None or s.score.answer is None or s.score.scores is None:
                    continue  # no vote: missing probability
                a = names[x].setdefault(s.score.answer, len(names[x]))
                votes[p, x, a] = votes.get((p, x, a), 0) + 1
                credits.setdefault((x, a), []).append(float(s.score.scores[0]))
    n_answers = max(1, *(len(n) for n in names))
    probs = np.zeros((len(table), n_queries, n_answers))
    credit = np.zeros((n_queries, n_answers))
    for (p, x, a), count in votes.items():
        probs[p, x, a] = count / len(table[p][x])
    for (x, a), scores in credits.items():
        credit[x, a] = float(np.mean(scores))
    right = credit == 1.0
    exact = bool(((credit == 0.0) | right).all() and (right.sum(axis=1) <= 1).all())
    return VotingRecording(
        probs=probs,
        answers=np.where(right.any(axis=1), right.argmax(axis=1), -1),
        cost=cost,
        overhead=overhead,
        cost_weights=contexts.cost,
        credit=None if exact else credit,
    )


def _best_of(
    table: Sequence[Sequence[Sequence[_Scored]]],
    cost: FloatArray,
    overhead: FloatArray,
    contexts: Contexts,
    scales: Scales,
) -> BestOfRecording:
    """Every completion of a cell is an outcome with the same probability; cells with fewer are padded with none."""
    most = max(len(cell) for row in table for cell in row)
    shape = (len(table), len(table[0]), most)
    outcomes, probs = np.zeros((*shape, contexts.n_objectives)), np.zeros(shape)
    for p, row in enumerate(table):
        for x, cell in enumerate(row):
            for i, s in enumerate(cell):
                if not s.failed and s.score is not None and s.score.scores is not None:
                    outcomes[p, x, i] = scales.place(s.score.scores)
                    probs[p, x, i] = 1.0 / len(cell)
    weights = np.column_stack([contexts.weights, contexts.cost])
    return BestOfRecording(outcomes=outcomes, probs=probs, cost=cost, overhead=overhead, weights=weights)
