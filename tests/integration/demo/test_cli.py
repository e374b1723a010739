"""`iapo demo` in small: the whole path on the model that ships."""

import json
import math
from pathlib import Path
from typing import Any

import dspy
import pytest
from click.testing import CliRunner

from iapo_dspy.command_line.main import demo
from iapo_dspy.demo.server import DemoServer


@pytest.fixture(autouse=True, scope="module")
def settings_as_before() -> Any:
    before = dspy.settings.lm
    yield
    dspy.configure(lm=before)


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    path = folder / "out.json"
    done = CliRunner().invoke(demo, [*arguments, "--scale", "0.1", "--seed", "3", "--json", str(path)])
    assert done.exit_code == 0, done.output
    return json.loads(path.read_text()), done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return run(tmp_path_factory.mktemp("both"))


@pytest.mark.slow
def test_both_tasks_print_and_write_what_they_found(found: tuple[dict[str, Any], str]) -> None:
    data, shown = found
    assert set(data) == {"mv", "bon"}
    for name, reward in (("mv", "accuracy"), ("bon", "reward")):
        report = data[name]
        assert set(report) == {"preferences", "baselines", "acr", "spent"}
        fields = {"name", "cost", "instruction", "n", reward, "tokens_per_question", "utility"}
        assert all(set(row) == fields for row in report["preferences"]) and len(report["preferences"]) == 4
        assert {b["preference"] for b in report["baselines"]} == {p["name"] for p in report["preferences"]}
        assert len({b["name"] for b in report["baselines"]}) == 4
        assert all(0 <= row[reward] <= 1 for row in report["preferences"] + report["baselines"])
        mean = sum(p["utility"] for p in report["preferences"]) / 4
        assert math.isclose(report["acr"], mean, abs_tol=1e-9)
        assert report["spent"]["completions"] > 0 and report["spent"]["tokens"] > report["spent"]["completions"]
    assert "no evidence about large language models" in shown
    assert "instead, on the same held-out questions" in shown


@pytest.mark.slow
def test_the_same_seed_finds_the_same_numbers(found: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    reports = [data["bon"] for data in (found[0], run(tmp_path, "--task", "bon")[0])]
    for report in reports:
        report["spent"].pop("seconds")
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_it_runs_on_a_server_of_the_users_own(tmp_path: Path) -> None:
    with DemoServer() as server:
        data, shown = run(tmp_path, "--task", "bon", "--model", "openai/tiny-adder", "--api-base", server.api_base)
        assert server.completions >= data["bon"]["spent"]["completions"]
    assert "The LM is openai/tiny-adder" in shown


@pytest.mark.parametrize(
    "arguments",
    [["--api-base", "http://127.0.0.1:1/v1"], ["--scale", "0"], ["--seed", "-1"], ["--json", "/nowhere/at/all/x.json"]],
)
def test_arguments_that_cannot_be_used_exit_with_2(arguments: list[str]) -> None:
    done = CliRunner().invoke(demo, arguments)
    assert done.exit_code == 2 and "Error: " in done.stderr
