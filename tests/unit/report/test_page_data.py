"""The data of a report, saved and read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from iapo_dspy.errors import StateError, StorageError
from iapo_dspy.report.page_data import FILE, load_page_data, save_page_data
from tests.support.pages import small_page


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    data = small_page()
    save_page_data(data, tmp_path)
    assert load_page_data(tmp_path) == data
    assert [f.name for f in tmp_path.iterdir()] == [FILE]
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert {"format": "iapo_dspy.report", "version": 1}.items() <= json.loads(text).items()


def test_numbers_that_json_does_not_know_are_left_out(tmp_path: Path) -> None:
    data = small_page()
    odd = replace(
        data, axes=(replace(data.axes[0], values=((math.nan, 1.0, 2.0, math.inf), *data.axes[0].values[1:])),)
    )
    save_page_data(odd, tmp_path)
    assert load_page_data(tmp_path).axes[0].values[0] == (None, 1.0, 2.0, None)


def test_a_folder_without_a_report_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no such folder"):
        load_page_data(tmp_path / "nowhere")
    with pytest.raises(StateError, match="it is not the log_dir of a run"):
        load_page_data(tmp_path)
    (tmp_path / "ledger.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(StateError, match=r"its run has not ended, kept no results .*pays for none twice"):
        load_page_data(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "not the data of a report"),
        ('{"format": "iapo_dspy.policy", "version": 1}', "not the data of a report"),
        ('{"format": "iapo_dspy.report", "version": 2}', "has version 2, and this iapo_dspy reads version 1"),
        ('{"format": "iapo_dspy.report", "version": 1}', "title: Field required"),
    ],
)
def test_a_file_that_is_not_a_report_says_why(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(StateError, match=reason):
        load_page_data(tmp_path)


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        save_page_data(small_page(), tmp_path / "nowhere")
