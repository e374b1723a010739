"""Results of a run are searched, handed on, shown and plotted."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import CompiledProgram, CompileResult, Cost, Preference
from iapo_dspy.errors import ConfigurationError, UnknownPreference
from iapo_dspy.types import Arm
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import INSTRUCTIONS, adder, questions, student

run = optimizers(budget=300, cost_unit=Cost(usd_per_million=(1.0, 4.0)))


@pytest.fixture(scope="module")
def program() -> CompiledProgram:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        compiled = run(candidates=[student(), *INSTRUCTIONS]).compile(student(), trainset=questions(30))
    assert isinstance(compiled, CompiledProgram)
    return compiled


@pytest.fixture(scope="module")
def result(program: CompiledProgram) -> CompileResult:
    found = program.detailed_results
    assert isinstance(found, CompileResult)
    return found


def test_each_preference_stands_beside_the_student_and_the_best_single_prompt(result: CompileResult) -> None:
    assert result.student == 0
    for context, row in enumerate(result.policy):
        asked, single, tuned = row.baselines
        assert [b.name for b in row.baselines] == ["student", "best prompt", "best prompt, N tuned"]
        assert asked.estimate.arm == Arm(0, 1)
        assert single.estimate.arm == Arm(int(np.nanargmax(result.q[context, :, 0])), 1)
        assert tuned.estimate.arm.prompt == single.estimate.arm.prompt
        for b in row.baselines:
            assert b.difference == pytest.approx(row.utility - b.estimate.utility)
            assert b.interval is not None and b.interval[0] <= b.difference <= b.interval[1]
            # one dollar a million input tokens, four a million output tokens; the prompt is paid once in each wave
            assert b.estimate.usd is not None and b.estimate.usd > 4e-6 * b.estimate.tokens


def test_baselines_are_loaded_as_they_were_saved(program: CompiledProgram, tmp_path: Path) -> None:
    program.save(tmp_path / "program.json")
    again = CompiledProgram(student())
    again.load(tmp_path / "program.json")
    mine, theirs = program.detailed_results, again.detailed_results
    assert theirs.policy == mine.policy and theirs.student == 0 and str(theirs) == str(mine)
    assert theirs.to_dict() == mine.to_dict()
    assert theirs.at(tokens=1e6) == mine.at(tokens=1e6)
    state = json.loads((tmp_path / "program.json").read_text())
    for row in state["policy"]["results"]["policy"]:
        del row["baselines"], row["usd"], row["seconds"]
    del state["policy"]["results"]["student"]
    (tmp_path / "older.json").write_text(json.dumps(state))
    again.load(tmp_path / "older.json")
    older = again.detailed_results
    assert [r.baselines for r in older.policy] == [(), ()] and "student" not in str(older)


def test_the_best_arm_is_the_chosen_one_or_is_solved(result: CompileResult, program: CompiledProgram) -> None:
    row = result.policy[1]
    assert result.best("thrifty").arm == row.arm and result.best("thrifty").utility == row.utility
    assert result.best().arm == result.policy[0].arm
    other = Preference(cost=0.5)
    assert result.best(other).arm == program.solve(other)
    with pytest.raises(UnknownPreference, match="'hasty'"):
        result.best("hasty")


def test_the_cheapest_arm_is_within_reach_of_the_best(result: CompileResult) -> None:
    reward, cost = result.reward[0], result.costs
    for within in (0.0, 0.05, 0.4):
        found = result.cheapest(within)
        assert found.reward >= np.nanmax(reward) - within - 1e-6
        cheaper = (reward >= np.nanmax(reward) - within + 1e-6) & (cost < found.cost - 1e-9)
        assert not cheaper.any()
    assert result.cheapest(1.0).cost <= np.nanmin(cost) + 1e-9
    with pytest.raises(ConfigurationError, match=r"cheapest\(within=-1\)"):
        result.cheapest(-1)


@pytest.mark.parametrize("unit", ["tokens", "usd", "seconds"])
def test_the_best_arm_at_a_price_keeps_it(result: CompileResult, unit: str) -> None:
    amounts: Any = getattr(result, unit)
    limit = float(np.nanmedian(amounts))
    at: Any = result.at
    found = at(**{unit: limit})
    assert getattr(found, unit) <= limit
    assert found.reward >= np.nanmax(np.where(amounts <= limit * (1 - 1e-9), result.reward[0], -np.inf)) - 1e-6
    with pytest.raises(ConfigurationError, match=rf"at\({unit}=1e-12\): no arm takes so little"):
        at(**{unit: 1e-12})
    with pytest.raises(ConfigurationError, match=r"at\(\)"):
        result.at()


def test_dollars_that_are_not_known_are_not_too_many() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        unpriced = optimizers(budget=40)(candidates=[student()]).compile(student(), trainset=questions(10))
    with pytest.raises(ConfigurationError, match=r"at\(usd=1\): usd of a call is not known\. .* program\.reprice"):
        unpriced.detailed_results.at(usd=1)
    assert unpriced.reprice((1.0, 4.0)).detailed_results.at(usd=1).usd < 1


def test_an_arm_of_the_results_can_be_deployed(program: CompiledProgram, result: CompileResult, tmp_path: Path) -> None:
    found = result.at(tokens=float(result.tokens[1, 1]) + 0.5)
    fixed = program.with_arm(found)
    assert fixed.solve() == found.arm and program.solve() == result.policy[0].arm
    fixed.save(tmp_path / "fixed.json")
    again = CompiledProgram(student())
    again.load(tmp_path / "fixed.json")
    assert again.solve() == found.arm
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=2)):
        call = again(question=questions(1)[0].question)
    assert (call.iapo.prompt, call.iapo.planned) == (found.arm.prompt, found.arm.n)
    with pytest.raises(ConfigurationError, match="1 of prompt 9 is not an arm"):
        program.with_arm(dataclasses.replace(found, arm=Arm(9, 1)))


def test_results_are_plain_data(result: CompileResult) -> None:
    data = result.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert [row["row"] for row in data["rows"]] == ["chosen", "student", "best prompt", "best prompt, N tuned"] * 2
    chosen = data["rows"][0]
    assert (chosen["preference"], chosen["n"], chosen["utility"]) == (
        "quality", result.policy[0].arm.n, result.policy[0].utility,
    )  # fmt: skip
    assert [next(iter(p["instructions"].values())) for p in data["prompts"]][1:] == INSTRUCTIONS
    assert np.array(data["estimates"]["reward"], dtype=float).shape == result.reward.shape


def test_results_are_a_data_frame(result: CompileResult) -> None:
    pytest.importorskip("pandas")
    frame = result.to_pandas()
    assert len(frame) == 8 and set(frame["preference"]) == {"quality", "thrifty"}
    assert math.isclose(frame["gain"][1], result.policy[0].baselines[0].difference)


def test_notebooks_show_tables(program: CompiledProgram, result: CompileResult) -> None:
    shown = result._repr_html_()
    assert program._repr_html_() == shown and "student as it was" in shown and "<table" in shown
    explanation = program.explain(preference="quality")
    explained = explanation._repr_html_()
    assert explanation.alternatives and result.policy[0].label in explained
    assert all(option.what in explained for option in explanation.alternatives)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=2)):
        call = program(question=questions(1)[0].question)
        quote = run().quote(student(), trainset=questions(30))
    assert "prompt tokens" in call.iapo._repr_html_() and str(call.iapo.seconds) in call.iapo._repr_html_()
    assert quote.requests is not None and f">{quote.requests:,}</td>" in quote._repr_html_()


@pytest.mark.extra
def test_plots_are_of_the_results(result: CompileResult) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    frontier = result.plot_frontier("usd")
    assert {m.get_label() for m in frontier.collections[1:]} == {"quality", "thrifty"}
    assert frontier.collections[2].get_offsets().tolist() == [[result.policy[1].usd, result.policy[1].reward]]
    cost = result.policy[1].reward - result.policy[1].utility
    assert result.policy[1].interval is not None
    interval = next(line for line in frontier.get_lines() if line.get_label() == "_thrifty").get_ydata()
    assert list(interval) == pytest.approx([end + cost for end in result.policy[1].interval])
    curves = result.plot_curves([1, 2])
    assert curves.get_lines()[0].get_ydata().tolist() == result.curve(1)[0].tolist()
    assert len(result.plot_curves().get_lines()) == len(result.labels)
    rounds = result.plot_rounds()
    assert result.rounds is not None
    assert [bar.get_height() for bar in rounds.patches] == [r.completions for r in result.rounds]
    matplotlib.pyplot.close("all")


def test_plots_say_what_is_not_there(result: CompileResult) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UnknownPreference, match="qualty"):
        result.plot_curves(preference="qualty")
    with pytest.raises(ConfigurationError, match="there are 4 prompts"):
        result.plot_curves([99])
    with pytest.raises(ConfigurationError, match="give one of 'tokens', 'usd'"):
        result.plot_frontier("dollars")  # type: ignore[arg-type]


def test_a_program_that_was_not_compiled_is_shown_as_text() -> None:
    assert CompiledProgram(student())._repr_html_() is None


def test_half_a_character_does_not_keep_a_report_from_being_written(result: CompileResult, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    result.report(tmp_path / "report.html", title="Sums \ud83d")
    assert "<title>Sums ?</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
