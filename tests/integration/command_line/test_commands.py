"""The command `iapo`: what it prints, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dspy
import pytest
from click.testing import CliRunner, Result

from iapo_dspy import BestOfN, Objective, Preference
from iapo_dspy.command_line.main import iapo
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import INSTRUCTIONS, adder, brevity, questions, student

FIXTURES = Path(__file__).parents[2] / "fixtures" / "v0_1"

SCRIPT = """
import sys

import dspy
from helper import asked, exact_match

from iapo_dspy import IAPO, MajorityVote

{before}
if __name__ == "__main__":
    dspy.configure(lm=dspy.LM("openai/not-there", api_base="http://127.0.0.1:9/v1", api_key="k", max_tokens=50))
    optimizer = IAPO(metric=exact_match, strategy=MajorityVote("answer"), budget=int(sys.argv[1]), max_n=4)
    try:
        program = optimizer.compile(
            dspy.Predict("question -> answer"), trainset=asked(30), candidates=["Add.", "Add with care."]
        )
    except Exception:
        pass
    raise SystemExit("it went on")
"""
HELPER = """
import dspy


def exact_match(example, prediction, trace=None):
    return example.answer == prediction.answer


def asked(n):
    return [dspy.Example(question=f"{i} + {i}", answer=str(2 * i)).with_inputs("question") for i in range(n)]
"""


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(iapo, arguments)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text(HELPER)
    path = tmp_path / "run.py"
    path.write_text(SCRIPT.format(before=""))
    return path


def test_a_quote_is_of_the_scripts_first_compilation_and_ends_the_script(script: Path) -> None:
    path, argv = list(sys.path), list(sys.argv)
    done = asked("quote", str(script), "500")
    assert done.exit_code == 0 and done.stdout.startswith("at most 500 completions of 2 prompts (least ")
    assert "expected" not in done.stdout.splitlines()[1]  # lengths are not known
    told = asked("quote", "--output-tokens", "20", str(script), "500")
    assert "expected" in told.stdout.splitlines()[1]
    (tokens,) = [line.split() for line in told.stdout.splitlines() if line.startswith("completion tokens:")]
    most, expected = (int(number.replace(",", "")) for number in tokens[2:4])
    assert most == 500 * 50 and expected <= 500 * 20 and expected % 20 == 0
    assert (sys.path, sys.argv) == (path, argv)


def test_a_quote_of_what_cannot_run_names_the_reason_and_the_line(script: Path) -> None:
    small = asked("quote", str(script), "1")
    assert small.exit_code == 2 and small.stderr.startswith("Error: ") and "budget" in small.stderr
    for before, told in (
        ("1 / 0", f"{script}, line 9: ZeroDivisionError: division by zero"),
        ("1 / ", f"{script}, line 9: SyntaxError: invalid syntax"),
        ("import not_there", f"{script}, line 9: ModuleNotFoundError: No module named 'not_there'"),
        ("sys.exit(0)", f"{script}, line 9: SystemExit: 0"),
    ):
        script.write_text(SCRIPT.format(before=before))
        failed = asked("quote", str(script), "500")
        assert failed.exit_code == 2 and failed.stderr.startswith(f"Error: {told}")
    script.write_text("import iapo_dspy")
    assert "ended without a call of IAPO.compile" in asked("quote", str(script)).stderr


def test_a_saved_program_is_shown_without_its_code(tmp_path: Path) -> None:
    path = tmp_path / "program.json"
    strategy = BestOfN([Objective("brevity", brevity)])  # code of the user's, which `show` does not have
    optimizer = optimizers(strategy=strategy, metric=None)(Preference("short", cost=0.1), budget=120)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        program = optimizer.compile(student(), trainset=questions(10))
    program.save(path)
    row = program.detailed_results.policy[0]
    done = asked("show", str(path))
    assert done.exit_code == 0
    assert f"short {row.utility:.3f} {row.reward:.3f} {row.tokens:.0f}" in " ".join(done.stdout.split())
    assert f"    {INSTRUCTIONS[row.arm.prompt]}" in done.stdout.splitlines()
    found = json.loads(asked("show", "--json", str(path)).stdout)["program"]
    (told,) = found["preferences"]
    assert (told["name"], told["cost"], told["prompt"], told["n"]) == ("short", 0.1, row.arm.prompt, row.arm.n)
    wanted = {name: getattr(row, name) for name in ("utility", "reward", "tokens", "cost")}
    assert told["estimates"] == pytest.approx(wanted)
    assert found["prompts"][str(row.arm.prompt)]["instructions"] == {"self": INSTRUCTIONS[row.arm.prompt]}
    assert found["spent"]["completions"] == program.detailed_results.spent.completions


def test_a_report_of_a_run_is_written_beside_its_ledger(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    run = tmp_path / "sums"
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        optimizers()(Preference("quality"), budget=60, log_dir=run).compile(student(), trainset=questions(10))
    done = asked("report", str(run))
    assert done.exit_code == 0 and done.stdout == f"{run / 'report.html'}\n"
    assert "<title>Report of sums</title>" in (run / "report.html").read_text(encoding="utf-8")
    assert asked("report", str(run), "--output", str(tmp_path / "r.html")).exit_code == 0
    assert (tmp_path / "r.html").is_file()
    refused = asked("report", str(tmp_path))
    assert refused.exit_code == 2 and "has no program.json" in refused.stderr and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*/program.json")), ids=lambda path: path.parent.name)
def test_programs_of_earlier_versions_are_shown(path: Path) -> None:
    done = asked("show", str(path))
    assert done.exit_code == 0
    state = next(value for value in json.loads(path.read_text()).values() if "arms" in value or "prompts" in value)
    drawn = {p["arm"][0] for p in state["preferences"]}
    for prompt in drawn:
        for predictor in state["prompts"][prompt]["state"].values():
            assert all(line in done.stdout for line in predictor["signature"]["instructions"].splitlines())


def test_other_files_are_not_shown(tmp_path: Path) -> None:
    for text, told in (("no", "is not JSON"), ("[]", "has not a compiled program"), ('{"a": {}}', "has not a")):
        (tmp_path / "x.json").write_text(text)
        refused = asked("show", str(tmp_path / "x.json"))
        assert refused.exit_code == 2 and refused.stderr.startswith("Error: ") and told in refused.stderr
    assert asked("show", str(tmp_path / "nowhere.json")).exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "told"), [("demo", "--task"), ("simulation", "--environment"), ("environments", "record")]
)
def test_folders_that_run_are_commands(module: str, told: str) -> None:
    command = [sys.executable, "-m", f"iapo_dspy.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"Usage: python -m iapo_dspy.{module} ") and told in done.stdout


def test_help_imports_neither_dspy_nor_numpy() -> None:
    code = (
        "import sys; from iapo_dspy.command_line.main import iapo; iapo(['quote', '--help'], standalone_mode=False); "
        "sys.exit(' '.join({'dspy', 'numpy', 'litellm'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--output-tokens" in done.stdout
