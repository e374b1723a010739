"""`iapo record TASK`: a loopback server is recorded on sums of our own, and simulated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from iapo_dspy.command_line.main import iapo
from iapo_dspy.command_line.recording_task import command_of
from iapo_dspy.recordings import load
from iapo_dspy.tasks import task
from tests.support.loopback import Loopback


def answer(body: dict[str, Any], i: int) -> str:
    """Answer in plain text: the first number of the question."""
    numbers = re.findall(r"\d+", str(body["messages"][-1]["content"]))
    return numbers[0] if numbers else "none"


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(answer) as found:
        yield found


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(iapo, arguments)


def recorded(server: Loopback, folder: Path, *more: str, output: str = "x.npz") -> Result:
    return asked(
        *("record", "arithmetic", str(folder / output), "--lm", "openai/fake", "--api-base", server.base),
        *("--adapter", "plain", "--samples", "3", "--queries", "4", "--log-dir", str(folder / "run"), *more),
    )


def test_a_task_is_recorded_shown_and_simulated(server: Loopback, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Add.\n\nAdd carefully.\nAdd.\n")
    done = recorded(server, tmp_path, "--prompts", str(prompts), "--demos", "2", "--demos", "0", "--licence", "CC0-1.0")
    assert done.exit_code == 0, done.output
    assert "x.npz: 4 prompts, 4 queries, 3 completions each" in done.output
    assert server.completions == 4 * 4 * 3
    found = load(tmp_path / "x.npz")
    assert (found.n_prompts, found.n_queries) == (4, 4)
    card = found.card
    assert [p["demonstrations"] for p in card["prompts"]] == [0, 0, 2, 2]
    assert {t for p in card["prompts"] for t in p["instructions"].values()} == {"Add.", "Add carefully."}
    assert (card["task"], card["licence"], card["seed"], card["adapter"]) == (
        "arithmetic",
        "CC0-1.0",
        0,
        "PlainTextAdapter",
    )
    shown = {tuple(m["content"] for m in b["messages"][1:-1]) for b in server.bodies}
    recorded_questions = {b["messages"][-1]["content"] for b in server.bodies}
    assert len(recorded_questions) == 4
    assert not {text for demos in shown for text in demos} & recorded_questions  # demonstrations are not recorded

    again = recorded(
        server, tmp_path, "--prompts", str(prompts), "--demos", "2", "--demos", "0", "--licence", "CC0-1.0"
    )
    assert again.exit_code == 0 and server.completions == 4 * 4 * 3  # nothing is drawn twice
    card_text = asked("show", str(tmp_path / "x.npz")).stdout
    assert json.loads(card_text) == found.card
    simulated = asked(
        *("simulate", "--environment", str(tmp_path / "x.npz"), "--algorithms", "uniform", "--budgets", "40"),
        *("--runs", "1", "--max-n", "3", "--quiet"),
    )
    assert simulated.exit_code == 0, simulated.output


def test_a_budget_says_how_much_is_missing(server: Loopback, tmp_path: Path) -> None:
    done = recorded(server, tmp_path, "--budget", "12")
    total = len(task("arithmetic").instructions) * 4 * 3
    assert done.exit_code == 2 and f"12 of {total:,} completions" in done.output.replace("\n", " ")
    assert server.completions == 12 and not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--samples", "0"), "0 is not in the range"),
        (("--extra-body", "[1]"), "give a JSON object"),
        (("--extra-body", "{"), "give a JSON object"),
        (("--api-base", "localhost:1"), "is not an address"),
        (("--api-base", "http://127.0.0.1:9/v1"), "Nothing answers at"),
        (("--split", "nowhere"), "there is not a split"),
        (("--adapter", "xml"), "'xml' is not one of"),
    ],
)
def test_wrong_arguments_cost_nothing(server: Loopback, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    done = recorded(server, tmp_path, *more)
    assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
    assert server.completions == 0


@pytest.mark.parametrize("output", ["x.csv", "missing/x.npz"])
def test_a_file_that_cannot_be_written_costs_nothing(server: Loopback, tmp_path: Path, output: str) -> None:
    done = recorded(server, tmp_path, output=output)
    assert done.exit_code == 2 and "Cannot write" in done.output and server.completions == 0


def test_an_unknown_task_is_named(server: Loopback) -> None:
    done = asked("record", "arithmetics", "--lm", "openai/fake", "--api-base", server.base)
    assert done.exit_code == 2 and "arithmetic" in done.output and server.completions == 0


def test_the_command_in_the_card_has_no_folders(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("")
    given = ["record", "sst2", "--data", str(tmp_path / "rows.tsv"), "--log-dir", "runs/x", "--threads=3", "--ray"]
    assert command_of([*given, "--extra-body", '{"top_k": 4}']) == (
        "iapo record sst2 --data rows.tsv --extra-body '{\"top_k\": 4}'"
    )
