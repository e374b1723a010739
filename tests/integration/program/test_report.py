"""The report of a run: what it holds is what the program does, also when it is read from the folder of the run."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, CompiledProgram, CompileResult, Objective, Preference
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.errors import ConfigurationError, StateError
from iapo_dspy.program.reporting.page_content import views_and_axes
from iapo_dspy.program.results.saved_results import PROGRAM, result_of_run
from iapo_dspy.report.page_data import View
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import adder, brevity, checked, questions, student

run = optimizers(budget=300, max_n=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CompiledProgram, Path]]:
    folder = tmp_path_factory.mktemp("run")
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        yield run(log_dir=folder).compile(student(), trainset=questions(40)), folder


def views(program: CompiledProgram) -> tuple[View, ...]:
    return views_and_axes(program.policy.ready, program.policy.strategy)[0]


def assert_solved(program: CompiledProgram, view: View, every: int, **weights: Any) -> None:
    """A position of the slider gets the arm that the program solves, and its utility."""
    scale, known = program.detailed_results.cost_scale, {p.wishes for p in program.preferences}
    for weight, position in list(zip(view.weights, view.chosen, strict=True))[::every]:
        preference, arm = Preference(cost=weight, **weights), view.arms[position]
        solved = program.solve(preference)
        stop = solved.stop.in_words if solved.stop is not None and not solved.compound else ""
        words = arm_in_words(solved, program.policy.strategy.aggregator()) if solved.compound else ""
        assert (arm.prompt, arm.n, arm.stop, arm.words) == (solved.prompt, solved.n, stop, words)
        if preference.wishes not in known:  # those were measured after the choice
            utility = program.explain(preference=preference).chosen.utility
            assert arm.reward - weight * scale * arm.use["cost"] == pytest.approx(utility, abs=1e-9)


def test_the_slider_gets_what_the_program_solves(made: tuple[CompiledProgram, Path]) -> None:
    program, _ = made
    (view,) = views(program)
    assert len(view.weights) >= 200 and view.weights[0] == 0.0 and {1.0, 30.0} <= set(view.weights)
    assert len({a.prompt for a in view.arms}) > 1 and any(a.stop for a in view.arms)  # there is something to choose
    assert_solved(program, view, every=20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["psst", "exact", "best of n"])
def test_the_slider_of_other_runs(kind: str) -> None:
    own: dict[str, Any] = {"psst": {"algorithm": "psst"}, "exact": {"stopping": "exact"}}.get(kind, {})
    if kind == "best of n":
        objectives = [Objective("checked", checked), Objective("brevity", brevity)]
        wishes = [Preference(n, weights={"checked": w, "brevity": 1 - w}) for n, w in (("right", 0.9), ("short", 0.2))]
        own = {"strategy": BestOfN(objectives), "metric": None, "preferences": wishes}
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        program = run(**own).compile(student(), trainset=questions(40))
    found = views(program)
    assert len(found) == (2 if kind == "best of n" else 1)
    for view, preference in zip(found, program.preferences, strict=False):
        assert_solved(program, view, every=24, weights=preference.weights)


def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = type(sys)("plotly.offline")
    offline.get_plotlyjs = lambda: "/* Plotly */"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plotly", type(sys)("plotly"))
    monkeypatch.setitem(sys.modules, "plotly.offline", offline)


def test_the_folder_of_a_run_gives_the_same_report(
    made: tuple[CompiledProgram, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_plotly(monkeypatch)
    program, folder = made
    result: CompileResult = program.detailed_results
    result.report(tmp_path / "one.html", title="Sums")
    read = result_of_run(folder)
    read.report(tmp_path / "two.html", title="Sums")
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "two.html").read_text(encoding="utf-8")
    assert "<title>Sums</title>" in page
    for row in result.policy:
        assert str(row.preference.name) in page and row.label in page
    assert f"{result.spent.completions:,}" in page
    with pytest.raises(ConfigurationError, match="without the student"):
        _ = read.candidate_programs


def test_the_program_in_the_folder_can_be_loaded(made: tuple[CompiledProgram, Path]) -> None:
    program, folder = made
    again = CompiledProgram(student())
    again.load(folder / PROGRAM)
    assert again.policy.ready.arms == program.policy.ready.arms
    assert "key" not in json.loads((folder / PROGRAM).read_text(encoding="utf-8"))


def test_functions_of_the_user_are_not_needed_to_report(tmp_path: Path) -> None:
    objectives = [Objective("checked", checked, (0.0, 2.0)), Objective("brevity", brevity)]
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        optimizer = run(strategy=BestOfN(objectives), metric=None, log_dir=tmp_path, budget=100)
        program = optimizer.compile(student(), trainset=questions(20))
    read = result_of_run(tmp_path)
    preference = Preference(cost=3.0)
    assert read.compiled.solve([preference], read.strategy).policy.arms == (program.solve(preference),)
    assert str(read) == str(program.detailed_results)


def test_a_folder_without_results_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no such folder"):
        result_of_run(tmp_path / "nowhere")
    with pytest.raises(StateError, match="it is not the log_dir of a run"):
        result_of_run(tmp_path)
    (tmp_path / "ledger.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(StateError, match=r"its run has not ended.*pays for none twice"):
        result_of_run(tmp_path)
    (tmp_path / PROGRAM).write_text("[]", encoding="utf-8")
    with pytest.raises(StateError, match="damaged"):
        result_of_run(tmp_path)


def test_results_that_were_not_kept_are_missed(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        run(log_dir=tmp_path, budget=60, track_stats=False).compile(student(), trainset=questions(10))
    with pytest.raises(StateError, match="track_stats=False"):
        result_of_run(tmp_path)


def test_a_program_that_cannot_be_saved_is_returned_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / PROGRAM).mkdir()
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)), caplog.at_level(logging.WARNING):
        program = run(log_dir=tmp_path, budget=60).compile(student(), trainset=questions(10))
    assert program.solve().n >= 1
    assert "The program could not be saved in log_dir" in caplog.text
