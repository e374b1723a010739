"""Ledgers as tables."""

from __future__ import annotations

import importlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iapo_dspy.errors import ConfigurationError, storing, whole_file
from iapo_dspy.sampling.ledger.reading import LedgerContents, contents_of
from iapo_dspy.sampling.ledger.records import CompletionRecord, ScoreRecord
from iapo_dspy.sampling.ledger.typed_values import plain

_ROWS = 8192  # that are written at a time


@dataclass(frozen=True)
class ScoredCompletion:
    """A completion with its score; None where it was never scored."""

    completion: CompletionRecord
    score: ScoreRecord | None

    @property
    def failed(self) -> bool:
        """Whether it has failed."""
        if self.score is not None:
            return self.score.scores is None
        inner = self.completion.inner  # its answer is scored although a later step of the pipeline failed
        return (self.completion.fields if inner is None else inner["fields"]) is None

    @property
    def known(self) -> bool:
        """Whether its worth is known."""
        return self.failed or self.score is not None


def export(log_dir: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write a run's completions to a Parquet file, one row each, with their scores.

    The run may still be going on. Columns: `prompt` and `query` (positions in the lists of the run that wrote last;
    null where it does not have them), the others of `CompletionRecord`, with `fields` as JSON text; `label` (the
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
        StorageError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise ConfigurationError(f"Cannot write {path.name}: give a file name that ends in .parquet.")
    contents = contents_of(log_dir)
    places = Places.of(contents)
    import datasets  # see `_features`

    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")  # they ship no types
    features = _features()
    schema = datasets.Features(features).arrow_schema
    rows = (_row(s, places, features) for s in scored(contents))
    with storing(path, kept="The ledger is as it was."), whole_file(path) as part:
        with parquet.ParquetWriter(part, schema) as writer:
            while some := list(itertools.islice(rows, _ROWS)):
                writer.write_table(pa.Table.from_pylist(some, schema))
    return int(parquet.read_metadata(path).num_rows)


def scored(contents: LedgerContents) -> Iterator[ScoredCompletion]:
    """Return every completion in the order of writing, with its last score.

    The completions of a student that was drawn for the unit of costs only (`UnitRecord`) are not there.
    """
    abouts = [(run.settings or {}).get("about") or {} for run in contents.runs.values()]
    behind = {name for about in abouts for name in (about.get("prompts") or ())[about.get("n_prompts", 0) :]}
    behind -= set((contents.about.get("prompts") or ())[: contents.about.get("n_prompts", 0)])
    for r in contents.completions:
        if r.prompt not in behind:
            yield ScoredCompletion(r, contents.last(ScoreRecord, r.key))


@dataclass(frozen=True, kw_only=True)
class Places:
    """The positions of prompts and queries in the lists of the run that wrote last.

    Attributes:
        prompts: Prompt -> its position.
        queries: Query -> its position.
        labels: The prompts in words.
    """

    prompts: Mapping[str, int]
    queries: Mapping[str, int]
    labels: Sequence[str]

    @classmethod
    def of(cls, contents: LedgerContents) -> Places:
        """Read them. A run that varies one predictor at a time lists no prompts: they are numbered as they come."""
        lists = {name: contents.about.get(name) for name in ("prompts", "queries", "labels")}
        prompts, queries, labels = (found if isinstance(found, list) else [] for found in lists.values())
        if lists["prompts"] is None:
            prompts = list(dict.fromkeys(r.prompt for r in contents.completions))
        return cls(
            prompts={name: i for i, name in enumerate(prompts)},
            queries={name: i for i, name in enumerate(queries)},
            labels=[str(label) for label in labels],
        )

    def label(self, prompt: str) -> str | None:
        """Return a prompt in words; None where they are not known."""
        place = self.prompts.get(prompt, len(self.labels))
        return self.labels[place] if place < len(self.labels) else None


def _features() -> dict[str, Any]:
    import datasets  # it takes seconds, and only this needs it

    return {
        **{n: datasets.Value("int64") for n in ("prompt", "query", "draw", "first")},
        **{n: datasets.Value("string") for n in ("label", "text", "fields", "answer")},
        "scores": datasets.Sequence(datasets.Value("float64")),
        "scored": datasets.Value("bool"),
        "failure": datasets.Value("string"),
        "error": datasets.Value("bool"),
        **{n: datasets.Value("float64") for n in ("prompt_tokens", "completion_tokens", "usd", "latency_s")},
        **{n: datasets.Value("float64") for n in ("shared_tokens", "shared_usd")},
        "seed": datasets.Value("int64"),
    }


def _row(s: ScoredCompletion, places: Places, names: Iterable[str]) -> dict[str, Any]:
    completion, score = s.completion, s.score
    row = {name: getattr(completion, name, getattr(completion.usage, name, None)) for name in names}
    row["prompt"], row["query"] = places.prompts.get(completion.prompt), places.queries.get(completion.query)
    row["label"] = places.label(completion.prompt)
    row["fields"] = None if completion.fields is None else json.dumps(plain(completion.fields), ensure_ascii=False)
    row["scored"] = s.known
    if score is not None:
        row["answer"] = score.answer
        row["scores"] = None if score.scores is None else [float(v) for v in score.scores]
        row["failure"] = completion.failure or score.failure
        row["error"] = completion.error or score.error
    return {name: _encodable(value) if isinstance(value, str) else value for name, value in row.items()}


def _encodable(text: str) -> str:
    """Return a text in which each half of a surrogate pair, which no file of text can hold, is a question mark."""
    return text.encode(errors="replace").decode()
