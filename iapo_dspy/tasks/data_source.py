"""Where the rows of a task come from: a pinned repository of the Hugging Face hub, a local file, or a generator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iapo_dspy.errors import ConfigurationError, nearest, one_line
from iapo_dspy.tasks.local_rows import SUFFIXES, read_file

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""Column -> value."""

_LEAST_VERSION = (2, 19)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The data of a task, pinned.

    Attributes:
        repository: On the Hugging Face hub; None for rows that this package generates.
        configs: Configurations of the repository that are read, one after another; empty for its only one.
        splits: Split of the task -> the split of the repository, or a slice of it such as "test[:40%]".
        revision: Commit of the repository, 40 hexadecimal digits.
        licence: As the data's card says it.
        columns: Columns that the task reads. Others are ignored.
        headless: Columns of a `.tsv` or `.txt` file that has no line of names, in their order; empty where such a file
            is not read.
        generated: Split -> its rows, for generated data.
    """

    repository: str | None = None
    configs: tuple[str, ...] = ()
    splits: Mapping[str, str]
    revision: str | None = None
    licence: str
    columns: tuple[str, ...]
    headless: tuple[str, ...] = ()
    generated: Callable[[str], Iterable[Row]] | None = None

    def rows(self, task: str, split: str, path: str | Path | None = None) -> tuple[str, list[Row]]:
        """Return the rows of a split.

        Args:
            task: Name of the task, for errors.
            split: One of `splits`.
            path: A local file with rows of this split, in the columns of the repository: .jsonl, .json, .csv, .tsv,
                .parquet. None: they come from the hub, or from the generator.

        Returns:
            Where they come from, in words, and the rows, >= 1, each with all of `columns`.

        Raises:
            ConfigurationError: The split does not exist, the data cannot be reached or read, there is not a row, or a
                column is missing.
        """
        if split not in self.splits:
            raise ConfigurationError(
                f"task({task!r}): there is not a split {split!r}; there are {', '.join(map(repr, self.splits))}."
                f"{nearest(str(split), self.splits)}"
            )
        if path is not None:
            where, rows = str(path), read_file(Path(path), columns=self.columns, headless=self.headless)
        elif self.generated is not None:
            where, rows = f"task({task!r})", list(self.generated(split))
        else:
            where, rows = self._downloaded(task, split)
        if not rows:
            raise ConfigurationError(f"{where} is empty: task({task!r}) needs rows with {self._expected()}.")
        self._check_columns(task, where, rows)
        return where, rows

    def _check_columns(self, task: str, where: str, rows: Sequence[Row]) -> None:
        for number, row in enumerate(rows, 1):
            missing = [c for c in self.columns if c not in row or row[c] is None]
            if missing:
                raise ConfigurationError(
                    f"{where}, row {number}: task({task!r}) needs {self._expected()}. This row has "
                    f"{', '.join(map(repr, row)) or 'not a column'}; {', '.join(map(repr, missing))} "
                    f"{'has no value' if missing[0] in row else 'is missing'}."
                )

    def _expected(self) -> str:
        return f"the columns {', '.join(map(repr, self.columns))}"

    def _downloaded(self, task: str, split: str) -> tuple[str, list[Row]]:
        where = f"{self.repository} at revision {str(self.revision)[:12]}, split {self.splits[split]!r}"
        datasets = _datasets()
        rows: list[Row] = []
        for config in self.configs or (None,):
            try:
                found = datasets.load_dataset(self.repository, config, split=self.splits[split], revision=self.revision)
            except Exception as exc:  # what is raised without a network differs from version to version
                logger.debug("%s cannot be loaded.", where, exc_info=True)
                raise ConfigurationError(
                    f"task({task!r}) cannot load {where}{f', configuration {config!r}' if config else ''}: "
                    f"{one_line(exc)}. Check the network (HF_ENDPOINT=https://... names a mirror of the hub, "
                    "HF_HUB_OFFLINE=1 forbids downloads), or give a local file of these rows: path='rows.jsonl' "
                    f"({', '.join(SUFFIXES)}) with {self._expected()}."
                ) from None
            rows.extend(found)
        return where, rows


def _datasets() -> Any:
    """Import `datasets`.

    Raises:
        ConfigurationError: It is not installed, or too old.
    """
    least = ".".join(map(str, _LEAST_VERSION))
    try:
        import datasets
    except ImportError as exc:
        raise ConfigurationError(
            f"Data from the hub need Hugging Face's datasets: pip install 'datasets>={least}', or give path=... of a "
            "local file."
        ) from exc
    version = str(datasets.__version__)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _LEAST_VERSION:
        raise ConfigurationError(
            f"datasets {version} is too old: pip install 'datasets>={least}', or give path=... of a local file."
        )
    return datasets
