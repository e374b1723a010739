"""Compiled programs that stop early: what is chosen, saved, reported, and really drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import IAPO, BestOfN, CompiledProgram, Cost, Execution, MajorityVote, Objective, Preference, Search
from iapo_dspy.errors import ConfigurationError
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import INSTRUCTIONS, adder, exact, questions

PREFERENCES = [Preference("quality"), Preference("thrifty", cost=1.0), Preference("hasty", max_latency_s=1e6)]


def compiled(server: Loopback, **kwargs: Any) -> CompiledProgram:
    settings = {"preferences": PREFERENCES, "max_n": 8, "budget": 600, **kwargs}
    with dspy.context(lm=server.lm(seed=3)):
        return optimizers(**settings)().compile(dspy.Predict("question -> answer"), trainset=questions(24))


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Loopback, CompiledProgram]]:
    with Loopback(adder) as server:
        yield server, compiled(server)


def test_a_vote_for_quality_is_drawn_in_waves_and_expects_fewer_completions_than_n(world: Any) -> None:
    _, program = world
    row = program.detailed_results.policy[0]
    assert row.arm.stop is not None and row.arm.stop.waves[-1] == row.arm.n > 2
    assert 1.0 <= row.waves <= len(row.arm.stop.waves) and 1.0 <= row.completions < row.arm.n
    mean = program.detailed_results.tokens[row.arm.prompt, 0]
    assert row.tokens == pytest.approx(row.completions * mean)
    assert "draws" in str(program.detailed_results) and f" {row.completions:.1f} " in str(program.detailed_results)


def test_calls_draw_what_they_report_and_end_at_a_wave(world: Any) -> None:
    server, program = world
    ends = set(program.solve("quality").stop.waves)
    drawn = []
    with dspy.context(lm=server.lm(seed=5)):
        for example in questions(40)[24:]:
            before, requests = server.completions, server.requests
            report = program(**example.inputs(), preference="quality").iapo
            assert server.completions - before == report.n and server.requests - requests == report.waves
            assert report.n in ends and report.planned == max(ends) and sum(report.votes.values()) == report.n
            assert (report.stopped is None) == (report.n == report.planned)
            assert report.stopped in (None, "settled", "confident")
            drawn.append(report.n)
    assert min(drawn) < max(ends)
    expected = program.detailed_results.policy[0].completions
    assert np.mean(drawn) == pytest.approx(expected, abs=1.5)  # 16 calls of at most 8


def test_stops_are_saved_and_unseen_preferences_get_them_too(world: Any, tmp_path: Path) -> None:
    _, program = world
    program.save(str(tmp_path / "p.json"))
    loaded = CompiledProgram(dspy.Predict("question -> answer"))
    loaded.load(str(tmp_path / "p.json"))
    for preference in ("quality", "thrifty", Preference(cost=0.03), Preference(cost=7.0)):
        assert loaded.solve(preference) == program.solve(preference)
    assert program.solve(Preference(cost=0.03)).stop is not None


def test_without_stopping_all_n_come_in_one_request() -> None:
    with Loopback(adder) as server:
        program = compiled(server, stopping=None)
        assert all(row.arm.stop is None and row.waves == 1.0 for row in program.detailed_results.policy)
        before = server.requests
        with dspy.context(lm=server.lm()):
            report = program(question="3 + 4", preference="quality").iapo
        assert server.requests - before == report.waves == 1 and report.n == report.planned > 1


@pytest.mark.slow
def test_exact_stopping_keeps_prompt_and_n() -> None:
    with Loopback(adder) as server:
        plain, exactly = compiled(server, stopping=None), compiled(server, stopping="exact")
    for before, row in zip(plain.detailed_results.policy, exactly.detailed_results.policy, strict=True):
        assert (before.arm.prompt, before.arm.n) == (row.arm.prompt, row.arm.n)
        assert row.reward == pytest.approx(before.reward, abs=0.02) and row.utility >= before.utility - 0.02
        if row.arm.n > 2:
            assert row.arm.stop.waves == ((row.arm.n + 1) // 2, row.arm.n) and row.arm.stop.confidence is None
            assert row.completions < row.arm.n


@pytest.mark.slow
def test_where_a_prompt_costs_more_than_waves_save_all_n_are_drawn_at_once() -> None:
    with Loopback(adder) as server:
        program = compiled(server, cost_unit=Cost(prompt_tokens=1000.0, completion_tokens=0.001))
    priced = [row for row in program.detailed_results.policy if row.preference.cost]
    assert priced and all(row.arm.stop is None for row in priced)


@pytest.mark.slow
def test_a_cap_on_latency_limits_the_waves() -> None:
    with Loopback(adder, latency=0.05) as server:
        free = compiled(server)
        stop = free.solve(Preference("quality")).stop
        assert stop is not None
        waves = len(stop.waves)
        assert waves >= 2
        program = compiled(server)
        seconds = program.policy.ready.charges(Preference(max_latency_s=1.0)).upper()[3]
        arm = program.solve("quality")
        one_wave = Preference(max_latency_s=float(1.5 * seconds[arm.prompt, arm.n - 1]))
        solved = program.solve(one_wave)
        taken = seconds[solved.prompt, solved.n - 1]
        assert (1 if solved.stop is None else len(solved.stop.waves)) * taken <= one_wave.max_latency_s


@pytest.mark.slow
def test_best_of_n_stops_where_the_best_there_can_be_was_drawn() -> None:
    right = Objective("right", lambda example, prediction: str(prediction.answer) == "7")
    with Loopback(lambda body, i: chat(answer="7" if i % 3 == 0 else "8")) as server, dspy.context(lm=server.lm()):
        optimizer = IAPO(
            strategy=BestOfN([right]), preferences=[Preference("quality")], max_n=8, budget=200,
            candidates=INSTRUCTIONS, execution=Execution(progress=False))  # fmt: skip
        program = optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(10))
        reports = [program(question=f"{i} + 1").iapo for i in range(6)]
    assert all(r.utilities[r.winner] == 1.0 for r in reports)
    assert any(r.stopped in ("settled", "threshold") for r in reports) == (program.solve("quality").stop is not None)


@pytest.mark.parametrize("value", ["early", True, 0.9])
def test_other_words_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="stopping="):
        IAPO(metric=exact, strategy=MajorityVote("answer"), budget=10, search=Search(stopping=value))
