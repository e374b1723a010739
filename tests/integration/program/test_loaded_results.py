"""A loaded program says of its run what the compiled one says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import CompiledProgram, CompileResult, Preference
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.errors import StateError
from iapo_dspy.program.evidence.columns import packed, unpacked
from iapo_dspy.prompts.copies import program_state
from iapo_dspy.sampling.spending.budget import Spent
from tests.fixtures.make_v0_1 import CASES, Case, compiled, lm, load, program_within, world
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import adder, questions, student

FILES = Path(__file__).parents[2] / "fixtures" / "v0_1"
FAST = ("vote", "psst")
run = optimizers(budget=120)


def said(results: CompileResult) -> dict[str, Any]:
    """Return everything that results say, as data that can be compared; NaN equals NaN."""
    own = {f.name for f in dataclasses.fields(results)} - {"compiled", "strategy", "programs", "rounds"}
    facts = {name: getattr(results, name) for name in own}
    return {
        **{name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in facts.items()},
        "rounds": results.rounds and [(r.active.tolist(), r.pulls, r.completions) for r in results.rounds],
        "compiled": results.compiled.to_dict(),
        "failures": results.failures and results.failures.without_examples(),  # a file holds no text of a completion
        "strategy": results.strategy.to_dict(),
        "programs": [program_state(p) for p in results.candidate_programs],
        "lms": [[p.lm and p.lm.model for p in c.predictors()] for c in results.candidate_programs],
        "too_little": results.too_little,
        "curves": [[c.tolist() for c in results.curve(p)] for p in range(len(results.labels))],
        "table": str(results),
    }


def assert_alike(one: CompileResult, other: CompileResult) -> None:
    assert isinstance(one, CompileResult) and isinstance(other, CompileResult)
    mine, theirs = said(one), said(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert repr(value) == repr(theirs[name]), name


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_every_attribute_is_as_it_was(name: str, tmp_path: Path) -> None:
    case: Case = CASES[name]
    with Loopback(world) as server, dspy.context(lm=lm(server.base)):
        first = compiled(case, server.base, tmp_path / "run")
        first.save(str(tmp_path / "program.json"))
        again = load(case, tmp_path / "program.json", server.base)
        before = server.requests
        one, other = program_within(case, first), program_within(case, again)
        assert_alike(one.detailed_results, other.detailed_results)
        for preference in (*one.preferences, *case.unseen):
            assert one.solve(preference) == other.solve(preference)
            assert one.explain(preference=preference) == other.explain(preference=preference)
        if case.prices is not None:
            assert_alike(*(p.reprice(case.prices).detailed_results for p in (one, other)))
            assert_alike(*(p.detailed_results.reprice(case.prices, model="openai/m") for p in (one, other)))
        again.save(str(tmp_path / "again.json"))
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "program.json").read_bytes()
        assert server.requests == before  # without a call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompiledProgram, dict[str, Any]]:
    """A compiled program, and its saved state."""
    path = tmp_path_factory.mktemp("saved") / "program.json"
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = run().compile(student(), trainset=questions(20))
    program.save(path)
    return program, json.loads(path.read_text())


def loaded(state: Mapping[str, Any], folder: Path) -> CompiledProgram:
    (folder / "program.json").write_text(json.dumps(state))
    program = CompiledProgram(student())
    program.load(folder / "program.json")
    return program


def test_results_outlive_an_algorithm_that_was_saved_by_its_name_only(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = run(algorithm=Auto(rounds=2)).compile(student(), trainset=questions(20))
    program.save(tmp_path / "program.json")
    again = CompiledProgram(student())
    again.load(tmp_path / "program.json")
    # The policy knows the algorithm by its name only; the results need none.
    assert repr(again.detailed_results.policy) == repr(program.detailed_results.policy)
    assert len(again.detailed_results.rounds) == 3  # two, and the one that measures


def test_without_track_stats_there_are_none(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = run(track_stats=False).compile(student(), trainset=questions(20))
    assert program.detailed_results is None
    program.save(tmp_path / "program.json")
    again = CompiledProgram(student())
    again.load(tmp_path / "program.json")
    assert again.detailed_results is None and again.solve("quality") == program.solve("quality")


def test_results_of_other_optimizers_may_be_put_there_and_are_not_saved(
    saved: tuple[CompiledProgram, Any], tmp_path: Path
) -> None:
    program = loaded(saved[1], tmp_path)
    twin = program.deepcopy()
    assert twin.detailed_results is program.detailed_results
    twin.detailed_results = {"best": 1}
    assert isinstance(program.detailed_results, CompileResult)
    twin.save(tmp_path / "twin.json")
    program.load(tmp_path / "twin.json")
    assert program.detailed_results is None


def test_a_file_that_cannot_be_read_leaves_the_results(saved: tuple[CompiledProgram, Any], tmp_path: Path) -> None:
    program = loaded(saved[1], tmp_path)
    before = program.detailed_results
    state = {**saved[1]["policy"], "results": {"policy": 1}}
    (tmp_path / "program.json").write_text(json.dumps({**saved[1], "policy": state}))
    with pytest.raises(StateError, match="damaged at results"):
        program.load(tmp_path / "program.json")
    assert program.detailed_results is before


def estimates(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit of the packed estimates."""

    def edit(results: dict[str, Any]) -> None:
        results["estimates"] = packed({**unpacked(results["estimates"]), **changes})

    return edit


def within(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(results: dict[str, Any]) -> None:
        inner: Any = results
        *names, last = (int(n) if n.isdigit() else n for n in place.split("."))
        for name in names:
            inner = inner[name]
        inner[last] = value

    return edit


DAMAGES = {
    "rows": within("policy", []),
    "a row": within("policy.0", 3),
    "a number": within("policy.0.utility", "high"),
    "a certainty": within("policy.1.choice.interval", [0.1]),
    "an arm": within("policy.1.choice.runner_up", {"prompt": -1, "n": 1, "stop": None}),
    "models": within("models", ["m"]),
    "failures": within("failures", {"total": 1}),
    "deceptive": within(
        "deceptive", [{"context": 0, "prompt": 9, "beaten_by": 0, "n": 1, "difference": 0.1, "interval": [0.0, 1.0]}]
    ),
    "other text": within("estimates", "plain"),
    "too short": within("estimates", packed([])[:8]),
    "no estimates": within("estimates", packed({})),
    "a shape": estimates(costs="1 2 3"),
    "a layer": estimates(q={"layers": ["1"], "contexts": [0, 0]}),
    "a layer that is not there": estimates(reward={"layers": ["nan " * 12], "contexts": [0, 5]}),
    "an infinite estimate": estimates(q={"layers": ["inf " * 12], "contexts": [0, 0]}),
    "counts": estimates(count="0.5 " * 12),
    "rounds": estimates(rounds=[{"active": "xyz", "pulls": 1, "completions": 1}]),
    "short rounds": estimates(rounds=[{"active": "ff", "pulls": 1, "completions": 1}]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_results_are_refused_with_their_place(
    damage: Callable[[dict[str, Any]], None], saved: tuple[CompiledProgram, Any], tmp_path: Path
) -> None:
    state = json.loads(json.dumps(saved[1]))
    damage(state["policy"]["results"])
    with pytest.raises(StateError, match=r"program\.json cannot be loaded.*damaged at results: .*compile again"):
        loaded(state, tmp_path)


@pytest.mark.parametrize("value", ["", "x", "eJw=", packed([])[:-4], packed([1]), packed({}), packed("x"), 3, None])
def test_damaged_evidence_is_refused_with_its_place(
    value: Any, saved: tuple[CompiledProgram, Any], tmp_path: Path
) -> None:
    state = {"policy": {**saved[1]["policy"], "evidence": value}, "metadata": saved[1]["metadata"]}
    with pytest.raises(StateError, match=r"program\.json cannot be loaded.*damaged at evidence"):
        loaded(state, tmp_path)


def test_text_that_would_unpack_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.program.evidence.columns._LARGEST", 1000)
    assert unpacked(packed("x" * 900)) == "x" * 900
    with pytest.raises(ValueError, match="unpack to more than 1,000 bytes"):
        unpacked(packed("x" * 10_000))


@pytest.mark.parametrize("name", CASES)
def test_a_program_of_an_earlier_version_says_what_its_evidence_says(name: str) -> None:
    case = CASES[name]
    path = FILES / name / "program.json"
    program = program_within(case, load(case, path, "http://127.0.0.1:9/v1"))
    results = program.detailed_results
    assert isinstance(results, CompileResult) and results is program.detailed_results
    assert (results.failures, results.rounds, results.complete) == (None, None, None)
    assert [row.arm for row in results.policy] == [program.solve(p) for p in program.preferences]
    state = next(v for k, v in json.loads(path.read_text()).items() if k.endswith("policy"))
    assert results.spent == Spent.from_dict(state["spent"])
    drawn = [o.pulls.completions for o in program.policy.ready.evidence]
    assert results.count.shape == results.costs.shape == results.tokens.shape == (len(results.labels), state["max_n"])
    assert 0 < sum(drawn) <= results.spent.completions
    for row in results.policy:
        assert row.model == results.models[row.arm.prompt] and 0.0 <= row.reward <= 1.0
    assert str(results)


def test_another_preference_is_solved_alike(saved: tuple[CompiledProgram, Any], tmp_path: Path) -> None:
    program, again = saved[0], loaded(saved[1], tmp_path)
    for cost in (0.0, 0.5, 5.0, 50.0, 500.0):
        preference = Preference(cost=cost)
        assert again.solve(preference) == program.solve(preference)
        assert again.explain(preference=preference) == program.explain(preference=preference)


@pytest.mark.parametrize("unknown", [None, "NaN"])
def test_a_measurement_on_one_query_has_neither_error_nor_interval(
    unknown: Any, saved: tuple[CompiledProgram, Any], tmp_path: Path
) -> None:
    one = {"utility": 0.5, "standard_error": unknown, "interval": [unknown, unknown], "queries": 1}
    program = loaded({**saved[1], "policy": {**saved[1]["policy"], "measured": [one, None]}}, tmp_path)
    explanation = program.explain(preference="quality")
    assert (explanation.chosen.utility, explanation.interval, explanation.standard_error) == (0.5, None, None)
    program.save(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["policy"]["measured"] == [
        {"utility": 0.5, "standard_error": "NaN", "interval": ["NaN", "NaN"], "queries": 1},
        None,
    ]
    with pytest.raises(StateError, match=r"damaged at measured: .*there are 1, for 2 preferences"):
        loaded({**saved[1], "policy": {**saved[1]["policy"], "measured": [one]}}, tmp_path)
