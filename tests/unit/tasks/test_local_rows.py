"""Local files of rows in every format, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.tasks import task
from iapo_dspy.tasks.local_rows import SUFFIXES, read_file
from tests.unit.tasks.fixtures import fixture, rows_of, write

NAMES = ["math", "gsm8k", "commonsense_qa", "bbh/navigate", "sst2", "subj", "helpful_harmless", "summarization"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_every_task_reads_the_same_of_every_format(name: str, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows{suffix}", rows_of(name))
    found = task(name).load(path=str(path))
    assert found == task(name).load(path=fixture(name)) and len(found) >= 2


def test_a_sentence_with_its_label_before_a_tab_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "sst2.tsv"
    path.write_text('1\ta "warm and funny film \n0\tdull , loud\n\n', encoding="utf-8")
    found = {e.sentence: e.answer for e in task("sst2").load(path=path)}
    assert found == {'a "warm and funny film': "positive", "dull , loud": "negative"}
    path.rename(tmp_path / "subj.txt")
    found = {e.sentence: e.answer for e in task("subj").load(path=tmp_path / "subj.txt")}
    assert found == {'a "warm and funny film': "review", "dull , loud": "story"}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".json", ".tsv"):
        path = write(tmp_path / f"rows{suffix}", rows_of("sst2"))
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(task("sst2").load(path=path)) == 6


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.jsonl", '{"sentence": "a", "label": 1}\n{"sentence": ', r"rows\.jsonl, line 2 is not JSON: JSONDecode"),
        ("rows.jsonl", '{"sentence": "a", "label": 1}\n\n[1]', r"rows\.jsonl, line 3: give an object.* is a list"),
        ("rows.json", '{"train": []}', "give a JSON list of objects, one a row; it is a dict"),
        ("rows.json", '[{"sentence": "a", "label": 1}, 7]', r"rows\.json, row 2: give an object.* is a int"),
        ("rows.json", "[", r"rows\.json is not JSON"),
        ("rows.csv", "sentence,label\na,1\nb\n", r"rows\.csv, row 2: 1 cells, and the columns are"),
        ("rows.tsv", "1\tgood\n0 bad\n", r"rows\.tsv, line 2: give label TAB sentence on each line.* has 1 cells"),
        ("rows.parquet", "not Parquet at all", r"rows\.parquet is not a Parquet file"),
        ("rows.jsonl", "", r"rows\.jsonl is empty: task\('sst2'\) needs rows with the columns 'sentence', 'label'"),
        ("rows.json", "[]", r"rows\.json is empty"),
        ("rows.json", " ", r"rows\.json is empty"),
        ("rows.csv", "", r"rows\.csv is empty"),
        ("rows.csv", "sentence,label\n", r"rows\.csv is empty"),
        ("rows.tsv", "", r"rows\.tsv is empty"),
        (
            "rows.jsonl",
            '{"sentence": "a", "label": 1}\n{"text": "b", "label": 0}',
            r"rows\.jsonl, row 2: task\('sst2'\) needs the columns 'sentence', 'label'\. This row has 'text', 'label'; "
            r"'sentence' is missing\.",
        ),
        ("rows.csv", "text,target\nb,0\n", r"row 1: .* This row has 'text', 'target'; 'sentence', 'label' is missing"),
        ("rows.jsonl", '{"sentence": "a", "label": null}', r"row 1: .* 'label' has no value"),
        ("rows.jsonl", "{}", r"row 1: .* This row has not a column"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        task("sst2").load(path=path)


def test_a_file_that_does_not_exist_a_folder_and_a_strange_suffix_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.csv' does not exist: give a file with the columns 'sentence'"):
        task("sst2").load(path=tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigurationError, match=r"folder\.csv' is a folder"):
        task("sst2").load(path=tmp_path / "folder.csv")
    for name in ("rows.xlsx", "rows", "rows.csv.gz"):
        with pytest.raises(ConfigurationError, match=r"one of the suffixes \.jsonl, \.json, \.csv, \.tsv, \.parquet"):
            task("sst2").load(path=tmp_path / name)
    with pytest.raises(ConfigurationError, match="one of the suffixes"):
        task("gsm8k").load(path=tmp_path / "rows.txt")


def test_text_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"sentence,label\ncaf\xe9,1\n")
    with pytest.raises(ConfigurationError, match=r"rows\.csv' cannot be read: UnicodeDecodeError"):
        task("sst2").load(path=path)


def test_cells_may_hold_line_breaks_and_separators(tmp_path: Path) -> None:
    rows = [{"a": "one,\ttwo\n\nthree", "b": 'say "four"'}]
    for suffix in (".csv", ".tsv"):
        assert read_file(write(tmp_path / f"rows{suffix}", rows), columns=("a", "b")) == rows
