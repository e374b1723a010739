"""Rows from the hub: what is asked of `datasets`, and what is said where it fails. Nothing here goes to the network."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.tasks import TASKS, task
from tests.unit.tasks.fixtures import rows_of, write

ON_THE_HUB = [name for name in TASKS if task(name).source.repository is not None]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Answer every download with the rows of a fixture, and note what was asked for."""
    calls: list[tuple[Any, ...]] = []
    by_repository = {str(task(name).source.repository): name for name in reversed(ON_THE_HUB)}

    def load_dataset(repository: str, config: str | None, *, split: str, revision: str) -> datasets.Dataset:
        calls.append((repository, config, split, revision))
        name = f"bbh/{config}" if repository.endswith("/bbh") else by_repository[repository]
        return datasets.Dataset.from_list(rows_of(name))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_the_pinned_commit_is_asked_for(asked: list[tuple[Any, ...]]) -> None:
    assert len(task("gsm8k").load("test")) == 4
    assert asked == [("openai/gsm8k", "main", "test", "740312add88f781978c0658806c59bc2815b9866")]


def test_all_seven_subjects_of_math_are_asked_for(asked: list[tuple[Any, ...]]) -> None:
    where, rows = task("math").source.rows("math", "train")
    assert len(rows) == 28 and len({config for _, config, _, _ in asked}) == 7
    assert where == "EleutherAI/hendrycks_math at revision 21a5633873b6, split 'train'"


@pytest.mark.parametrize("name", ["commonsense_qa", "sst2", "subj", "helpful_harmless", "summarization"])
def test_a_repository_with_one_configuration_is_asked_for_without_one(name: str, asked: list[tuple[Any, ...]]) -> None:
    assert task(name).load()
    source = task(name).source
    assert asked == [(source.repository, None, "train", source.revision)]


@pytest.mark.parametrize(
    ("name", "split", "there"),
    [("sst2", "test", "'train', 'validation'"), ("gsm8k", "trian", r"'train', 'test'\. Did you mean 'train'\?")],
)
def test_a_split_that_does_not_exist_is_an_error_that_lists_those_that_do(name: str, split: str, there: str) -> None:
    for path in (None, "rows.jsonl"):
        with pytest.raises(ConfigurationError, match=rf"task\('{name}'\): there is not a split '{split}'; .*{there}"):
            task(name).load(split, path=path)


def test_columns_that_changed_on_the_hub_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "1 + 1?", "answer": "#### 2"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    with pytest.raises(
        ConfigurationError,
        match=r"openai/gsm8k at revision 740312add88f, split 'train', row 1: .* needs the columns 'question', 'answer'"
        r"\. This row has 'prompt', 'answer'; 'question' is missing",
    ):
        task("gsm8k").load()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub"),
        FileNotFoundError("Couldn't find any data file"),
        ValueError("BuilderConfig 'main' not found"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'openai/gsm8k' doesn't exist on the Hub"),
    ],
)
def test_where_the_hub_is_out_of_reach_one_error_says_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigurationError) as told:
        task("gsm8k").load()
    said = str(told.value)
    assert "openai/gsm8k at revision 740312add88f" in said and type(error).__name__ in said
    assert "HF_ENDPOINT=" in said and "path='rows.jsonl'" in said and "'question', 'answer'" in said
    assert "During handling" not in "".join(traceback.format_exception(told.value))


def test_an_old_version_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("2.14.6", "1.0", "2.9.0.dev0"):
        monkeypatch.setattr(datasets, "__version__", version)
        with pytest.raises(ConfigurationError, match=rf"datasets {version} is too old: pip install 'datasets>=2.19'"):
            task("gsm8k").load()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match=r"need Hugging Face's datasets: pip install 'datasets>=2\.19'"):
        task("gsm8k").load()


def test_parts_of_a_split_have_no_row_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub" / "navigate").mkdir(parents=True)
    write(tmp_path / "hub" / "navigate" / "test.parquet", rows_of("bbh/navigate"))
    (tmp_path / "hub" / "README.md").write_text(
        "---\nconfigs:\n- config_name: navigate\n  data_files:\n  - split: test\n    path: navigate/test.parquet\n---\n"
    )
    navigate = task("bbh/navigate")
    local = replace(navigate, source=replace(navigate.source, repository=str(tmp_path / "hub"), revision=None))
    train, test = local.load(), local.load("test")
    assert (len(train), len(test)) == (2, 3) and not {e.question for e in train} & {e.question for e in test}
    assert {e.question for e in [*train, *test]} == {row["input"] for row in rows_of("bbh/navigate")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k", "sst2"])
def test_without_a_network_a_run_ends_with_one_error(name: str, tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refused(*_, **__): raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.getaddrinfo = refused\n"
        "from iapo_dspy.errors import ConfigurationError\n"
        "from iapo_dspy.tasks import task\n"
        f"try: task({name!r}).load()\n"
        "except ConfigurationError as error: print(error)\n"
    )
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    settings.pop("HF_DATASETS_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, check=True)
    assert done.stdout.startswith(f"task({name!r}) cannot load {task(name).source.repository} at revision ")
    assert "path='rows.jsonl'" in done.stdout and len(done.stdout.splitlines()) == 1
