"""Results of runs whose preferences get cascades and mixtures: plain data, tables, explanations, reports, saved files.

In most tests the arms and their expected calls are given by hand, so that every number can be worked out; `made` is a
run that finds its cascade.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import CompiledProgram, CompileResult, Cost, Preference
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.outcome import Considered, Outcome, Reliability, StoppedArm
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.program.reporting.page_content import views_and_axes
from iapo_dspy.program.results.compile_result import make_result
from iapo_dspy.program.results.saved_results import read_result, result_to_dict
from iapo_dspy.types import Arm, Escalation, Policy, Share
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, INSTRUCTIONS, LAZY, QUICK, adder, questions, student, total

CASCADE = Arm(1, 2, then=Escalation(below=0.75, arm=Arm(2, 4, then=Escalation(below=0.625))))
MIXTURE = Arm(1, 1, beside=(Share(prompt=2, n=2),))
WORDS = "2 of prompt 1; 4 of prompt 2 instead where not all 2 agree; no answer where fewer than 3 of 4 agree"


def compound(policy: CompiledPolicy, outcome: Outcome) -> tuple[CompiledPolicy, Outcome]:
    """Give the first preference a cascade and the second one a mixture, with expected calls of the test's choice."""
    assert outcome.detail is not None
    by_query = np.linspace(0.7, 1.0, outcome.detail.n_visited)
    stops = (
        StoppedArm(
            arm=CASCADE, reward=0.85, gain=0.0, completions=3.2, waves=1.3, cost=40.0, utility=0.8, by_query=by_query,
            by_prompt=((1, 2.0, 1.0), (2, 1.2, 0.3)), abstains=0.05,
        ),
        StoppedArm(
            arm=MIXTURE, reward=0.75, gain=0.0, completions=3.0, waves=2.0, cost=60.0, utility=0.6, by_query=by_query,
            by_prompt=((1, 1.0, 1.0), (2, 2.0, 1.0)),
        ),
    )  # fmt: skip
    considered = (
        (
            Considered(
                kind="cascade", arm=CASCADE, beside=Arm(2, 4), gain=0.031, standard_error=0.01, chosen=True
            ),
            Considered(
                kind="mixture", arm=MIXTURE, beside=Arm(2, 3), gain=-0.01, standard_error=0.01, chosen=False
            ),
        ),
        (Considered(kind="cascade", arm=CASCADE, beside=Arm(1, 1), gain=0.012, standard_error=0.02, chosen=False),),
    )  # fmt: skip
    arms = CASCADE, MIXTURE
    return dataclasses.replace(policy, arms=arms, measured=None), dataclasses.replace(
        outcome, policy=Policy(arms), stops=stops, considered=considered, measured=None
    )


@pytest.fixture(scope="module")
def plain() -> CompileResult:
    run = optimizers(budget=300, cost_unit=Cost(usd_per_million=(1.0, 4.0)), compound=False)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        found: Any = run(candidates=INSTRUCTIONS).compile(student(), trainset=questions(30)).detailed_results
    assert isinstance(found, CompileResult)
    return found


@pytest.fixture(scope="module")
def result(plain: CompileResult) -> CompileResult:
    policy, outcome = compound(plain.compiled, plain.compiled.outcome(plain.strategy))
    return make_result(
        policy, plain.strategy, outcome, plain.tokens[:, 0], ("small", "small", ("large", "judge")), plain.programs,
        failures=plain.failures,
    )  # fmt: skip


def test_a_call_takes_what_is_drawn_of_each_prompt(result: CompileResult) -> None:
    row, mixed = result.policy
    one, two = result.tokens[:, 0][1:]
    assert row.tokens == pytest.approx(2.0 * one + 1.2 * two)
    fixed, each = 2 * result.usd[:, 0] - result.usd[:, 1], result.usd[:, 1] - result.usd[:, 0]
    assert row.usd == pytest.approx(fixed[1] + 2.0 * each[1] + 0.3 * fixed[2] + 1.2 * each[2])
    fixed, each = 2 * result.seconds[:, 0] - result.seconds[:, 1], result.seconds[:, 1] - result.seconds[:, 0]
    assert row.seconds == pytest.approx(fixed[1] + 2.0 * each[1] + 0.3 * fixed[2] + 1.2 * each[2])
    # the prompts of a mixture are drawn at the same time
    assert mixed.seconds == pytest.approx(max(fixed[1] + each[1], fixed[2] + 2.0 * each[2]))
    assert (row.completions, row.waves, row.cost, row.abstains) == (3.2, 1.3, 40.0, 0.05)
    assert row.model == ("small", "large", "judge") and row.label == f"{QUICK}; {CAREFUL}"


def test_the_best_arm_of_one_prompt_stands_beside_a_compound_arm(result: CompileResult) -> None:
    for row in result.policy:
        assert row.baselines[-1].name == "best single arm" and not row.baselines[-1].estimate.arm.compound
        assert row.baselines[-1].interval is not None
    assert [b.name for b in result.policy[0].baselines] == ["best prompt", "best prompt, N tuned", "best single arm"]


def test_the_table_says_arms_in_words(result: CompileResult) -> None:
    text = str(result)
    assert f"quality: {WORDS}" in text and "thrifty: 1 of prompt 1 and 2 of prompt 2 together" in text
    assert "prompts 1 and 2" in text
    assert "2+4" in text and "1+2" in text and "5.0%" in text and "best arm of one prompt" in text
    assert f"prompt 1: {QUICK}" in text and f"prompt 2: {CAREFUL}" in text and f"prompt 0: {LAZY}" not in text
    assert "quality: the cascade gains +0.031 (s.e. 0.010) over the best arm of one prompt, 4 of prompt 2." in text
    assert "would gain" not in text and "no mixture gains" not in text  # that stands in `considered`
    unused = [
        dataclasses.replace(row, considered=tuple(c for c in row.considered if not c.chosen)) for row in result.policy
    ]
    none = str(dataclasses.replace(result, policy=tuple(unused)))
    assert none.count("No cascade and no mixture is surely better than the best arm of one prompt.") == 1


def test_rows_have_every_stage(result: CompileResult) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    row, mixed = (row for row in data["rows"] if row["row"] == "chosen")
    assert (row["prompt"], row["n"], row["words"], row["abstains"]) == (1, 2, WORDS, 0.05)
    assert row["arm"] == [
        {"draws": {"1": 2}, "waves": None, "below": 0.75, "then": "next stage", "weight": 0},
        {"draws": {"2": 4}, "waves": None, "below": 0.625, "then": "no answer", "weight": 0},
    ]
    assert mixed["arm"] == [{"draws": {"1": 1, "2": 2}, "waves": None, "below": None, "then": None, "weight": 0}]
    first = data["considered"][0]
    assert (first["preference"], first["kind"], first["gain"], first["chosen"]) == ("quality", "cascade", 0.031, True)
    assert first["beside"] == [{"draws": {"2": 4}, "waves": None, "below": None, "then": None, "weight": 0}]
    pytest.importorskip("pandas")
    assert result.to_pandas()["arm"][0] == row["arm"]


def test_the_reliability_of_confidence_is_told(result: CompileResult) -> None:
    sure = Reliability(confidence=(0.5, 0.9), right=(0.4, 0.95), count=(10, 30))
    row = dataclasses.replace(result.policy[0], reliability=sure)
    found = dataclasses.replace(result, policy=(row, result.policy[1]))
    (told,) = found.to_dict()["reliability"]
    assert told.pop("error") == pytest.approx(0.0625)
    assert told == {"preference": "quality", "confidence": [0.5, 0.9], "right": [0.4, 0.95], "count": [10, 30]}
    assert "quality: confidence is off by 0.062 on 40 real calls; by chance by" in str(found)
    assert result.to_dict()["reliability"] == []


def test_what_was_saved_is_read_back(result: CompileResult) -> None:
    data = json.loads(json.dumps(result_to_dict(result)))
    again = read_result(data, result.compiled, result.strategy, result.programs)
    assert again.policy == result.policy and str(again) == str(result)
    for row in data["policy"]:  # of a version before compound arms
        for name in ("considered", "abstains", "of_prompts"):
            del row[name]
        for baseline in row["baselines"]:
            for name in ("words", "abstains", "of_prompts"):
                del baseline["estimate"][name]
    older = read_result(data, result.compiled, result.strategy, result.programs)
    assert [row.considered for row in older.policy] == [(), ()]
    assert older.policy[0].baselines == result.policy[0].baselines


def test_a_run_without_compound_arms_says_nothing_of_them(plain: CompileResult) -> None:
    assert plain.to_dict()["considered"] == [] and "cascade" not in str(plain) and "together" not in str(plain)
    assert all(b.name != "best single arm" for row in plain.policy for b in row.baselines)
    row = plain.policy[0]
    assert row.words.endswith(f"{row.arm.n} of prompt {row.arm.prompt}") and row.of_prompts == ()


def test_compound_arms_are_among_those_that_are_searched(
    result: CompileResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, outcome = compound(result.compiled, result.compiled.outcome(result.strategy))
    monkeypatch.setitem(result.__dict__, "_outcome", outcome)  # as solved again from the evidence
    found = result.cheapest(0.0)
    best = float(np.nanmax(result.reward[0]))
    assert (found.arm == CASCADE) == (best < 0.85)
    arms = {found.arm: found for found in result._arms(result.compiled.preferences[1])}
    assert {CASCADE, MIXTURE} <= arms.keys()
    # priced by the preference that is asked, not by the one that they were compiled for
    price = result.compiled.preferences[1].cost * result.cost_scale
    fixed, each = (2 * result.costs[:, 0] - result.costs[:, 1], result.costs[:, 1] - result.costs[:, 0])
    cost = fixed[1] + 2.0 * each[1] + 0.3 * fixed[2] + 1.2 * each[2]
    assert arms[CASCADE].utility == pytest.approx(0.85 - price * cost, abs=1e-4)
    assert arms[CASCADE].words == WORDS and arms[CASCADE].interval is not None


def test_the_frontier_has_compound_arms(result: CompileResult, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    _, outcome = compound(result.compiled, result.compiled.outcome(result.strategy))
    monkeypatch.setitem(result.__dict__, "_outcome", outcome)
    points = result.plot_frontier("tokens").collections[0].get_offsets()
    assert any(np.allclose(point, (result.policy[0].tokens, 0.85)) for point in points)
    matplotlib.pyplot.close("all")


def guesser(body: dict[str, Any], i: int) -> str:
    """Guesses are right on even sums and differ on odd ones, in few tokens; thinking is nearly always right."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    correct = total(body)
    if "Think." in body["messages"][0]["content"]:
        return "step " * 150 + "\n\n" + chat(answer=str(correct if rng.random() < 0.98 else correct + 1))
    return chat(answer=str(correct if correct % 2 == 0 else correct + rng.randint(1, 60)))


@pytest.fixture(scope="module")
def made() -> CompiledProgram:
    run = optimizers(budget=700, preferences=[Preference("thrifty", cost=4.0), Preference("cheap", cost=100.0)])
    with Loopback(guesser) as server, dspy.context(lm=server.lm(seed=1)):
        found = run(candidates=["Guess.", "Think."]).compile(student(), trainset=questions(80))
    assert isinstance(found, CompiledProgram)
    return found


def test_a_run_that_finds_a_cascade_says_so(made: CompiledProgram) -> None:
    row, other = made.detailed_results.policy
    assert row.arm.compound and [stage.prompt for stage in row.arm.stages] == [0, 1]
    (cascade,) = (found for found in row.considered if found.kind == "cascade")
    assert cascade.chosen and cascade.arm == row.arm and cascade.gain > cascade.standard_error > 0
    assert row.choice is not None and row.choice.probability_best > 0.5 and row.choice.runner_up is not None
    single = {b.name: b for b in row.baselines}["best single arm"]
    assert single.interval is not None and single.interval[0] < cascade.gain < single.interval[1]
    assert row.tokens < 170 * 0.8  # about half of all questions are thought about
    assert row.completions == pytest.approx(sum(n for _, n, _ in row.of_prompts)) and row.waves > 1.0
    assert not other.arm.compound and "the cascade gains" in str(made.detailed_results)


def test_its_explanation_says_what_the_cascade_is_compared_with(made: CompiledProgram) -> None:
    row = made.detailed_results.policy[0]
    told = made.explain(preference="thrifty")
    assert told.chosen.utility == pytest.approx(row.utility, abs=1e-6) and told.chosen.words == row.words
    assert told.interval == pytest.approx(row.interval, abs=1e-6) and told.prompts == {0: "Guess.", 1: "Think."}
    assert (
        told.probability_best == pytest.approx(row.choice.probability_best, abs=1e-6) and told.evidence == row.evidence
    )
    text = str(told)
    assert f"Arm: {row.words}.\nPrompt 0: 'Guess.'.\nPrompt 1: 'Think.'.\nExpected: utility" in text
    assert "it is better than any arm of one prompt with p=" in text and "Instead: best arm of one prompt, N=" in text
    assert "Considered: the cascade gains +" in text and "best other prompt" not in text
    assert row.words in told._repr_html_()
    assert json.loads(json.dumps(told.to_dict()))["chosen"]["words"] == row.words
    with Loopback(guesser) as server, dspy.context(lm=server.lm(seed=2)):
        call = made(question=questions(1)[0].question)
    assert made.explain(call).chosen == told.chosen


@pytest.mark.slow
def test_its_slider_gets_what_the_program_solves(made: CompiledProgram) -> None:
    (view,) = views_and_axes(made.policy.ready, made.policy.strategy)[0]
    scale, known = made.detailed_results.cost_scale, {p.wishes for p in made.preferences}
    words = 0
    for weight, position in list(zip(view.weights, view.chosen, strict=True))[::24]:
        preference, arm = Preference(cost=weight), view.arms[position]
        solved = made.solve(preference)
        assert arm.words == (arm_in_words(solved, made.policy.strategy.aggregator()) if solved.compound else "")
        assert (arm.prompt, arm.n, arm.prompts) == (solved.prompt, solved.n, solved.prompts)
        words += bool(arm.words)
        if preference.wishes not in known:
            utility = made.explain(preference=preference).chosen.utility
            assert arm.reward - weight * scale * arm.use["cost"] == pytest.approx(utility, abs=1e-9)
    assert words


def test_it_is_read_back_as_it_was(made: CompiledProgram, tmp_path: Path) -> None:
    made.save(tmp_path / "program.json")
    again = CompiledProgram(student())
    again.load(tmp_path / "program.json")
    mine, theirs = made.detailed_results, again.detailed_results
    assert theirs.policy == mine.policy and str(theirs) == str(mine)
    assert theirs.cheapest(0.02) == mine.cheapest(0.02) and theirs.to_dict() == mine.to_dict()
    fixed = again.with_arm(mine.policy[0].estimate)
    assert fixed.solve() == mine.policy[0].arm
