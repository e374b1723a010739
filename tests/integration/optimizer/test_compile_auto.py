"""The default algorithm through `compile`: what is drawn, what is reported, what is saved."""

from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import CompiledProgram, MajorityVote, Preference
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import CAREFUL, QUICK, adder, questions, student

PREFERENCES = [Preference("quality", cost=0.0), Preference("thrifty", cost=3.0)]


optimizer = optimizers(preferences=PREFERENCES, candidates=[QUICK, CAREFUL], max_n=8, budget=600, compound=False)


@pytest.fixture(scope="module")
def compiled() -> CompiledProgram:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        return optimizer().compile(student(), trainset=questions(40), valset=questions(15, start=900))


def test_every_choice_says_how_sure_it_is(compiled: CompiledProgram) -> None:
    result = compiled.detailed_results
    assert result.spent.completions <= 600
    for row in result.policy:
        low, high = row.choice.interval
        assert low <= row.utility <= high
        assert row.choice.measured and row.choice.queries == 15
        assert row.choice.half_width > 1.9 * row.choice.standard_error
        assert row.choice.runner_up.prompt != row.arm.prompt
        assert 0.0 <= row.choice.probability_best <= 1.0
        assert row.evidence >= 8
    best = result.policy[0]
    assert result.labels[best.arm.prompt] == CAREFUL and best.choice.probability_best > 0.9
    assert "best with p" in str(result) and "on the valset" in str(result)


def test_the_curve_of_a_prompt_has_a_band(compiled: CompiledProgram) -> None:
    result = compiled.detailed_results
    careful = result.labels.index(CAREFUL)
    middle, low, high = result.curve(careful, "quality")
    assert middle.shape == low.shape == high.shape == (8,)
    assert (low < middle).all() and (middle < high).all()
    assert middle[-1] > middle[0]  # votes help where slips are independent
    np.testing.assert_allclose(middle, result.reward[0, careful])
    with pytest.raises(ConfigurationError, match="quality"):
        result.curve(careful, "nobody")


def test_held_out_queries_have_no_part_in_the_choice(compiled: CompiledProgram) -> None:
    held_out = [row.held_out for row in compiled.detailed_results.policy]
    assert all(h is not None and h.queries == 15 for h in held_out)  # every one of them, not only as many as N allows
    assert all(0.0 <= h.utility + 1.0 and h.interval[0] <= h.utility <= h.interval[1] for h in held_out if h)
    evidence = compiled.policy.ready.evidence
    assert max(int(batch.pulls.query.max()) for batch in evidence) < 40  # the trainset's


def test_a_fifth_of_the_budget_is_kept_for_the_valset() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer(budget=200).compile(student(), trainset=questions(40), valset=questions(50, start=900))
        assert server.completions <= 200
    result = program.detailed_results
    assert sum(r.completions for r in result.rounds[:-1]) <= 160
    assert result.spent.completions == server.completions
    with pytest.raises(ConfigurationError, match=r"valset\[0\] is a dict"):
        optimizer().compile(student(), trainset=questions(3), valset=[{"question": "1 + 1"}])
    with pytest.raises(ConfigurationError, match="The valset is empty"):
        optimizer().compile(student(), trainset=questions(3), valset=[])


def test_unseen_preferences_are_solved_without_calls_and_after_loading(
    compiled: CompiledProgram, tmp_path: Path
) -> None:
    compiled.save(tmp_path / "program.json")
    loaded = CompiledProgram(student())
    loaded.load(tmp_path / "program.json")
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        for program in (compiled, loaded):
            for cost in (0.0, 0.4, 3.0, 50.0):
                arm = program.solve(Preference(cost=cost))
                assert arm == compiled.solve(Preference(cost=cost))
            assert program.solve(Preference(cost=0.0)) == program.solve("quality")
            assert program.solve(Preference(cost=50.0)).n == 1
        assert server.requests == 0


def test_the_runs_own_preferences_are_solved_to_the_runs_own_arms(compiled: CompiledProgram) -> None:
    outcome = compiled.policy.ready.solve(PREFERENCES, MajorityVote("answer"))
    assert outcome.policy.arms == compiled.policy.ready.arms


def test_a_resumed_run_repeats_no_call_and_ends_alike(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        settings: dict[str, Any] = {"trainset": questions(40), "valset": questions(15, start=900)}
        first = optimizer(log_dir=tmp_path).compile(student(), **settings)
        requests = server.requests
        again = optimizer(log_dir=tmp_path).compile(student(), **settings)
        assert server.requests == requests
    assert [r.arm for r in again.detailed_results.policy] == [r.arm for r in first.detailed_results.policy]
    assert again.detailed_results.policy[0].held_out == first.detailed_results.policy[0].held_out


def test_all_prompts_answer_the_same_queries_in_one_request_each() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer(budget=160).compile(student(), trainset=questions(40))
        pulls = sum(r.pulls for r in program.detailed_results.rounds)
        assert server.requests == pulls + 8  # a twentieth of the budget measures the student, the unit of costs
    first = program.policy.ready.evidence[0].pulls
    assert set(first.query[first.prompt == 0]) == set(first.query[first.prompt == 1])


def test_a_budget_below_one_completion_per_candidate_is_refused() -> None:
    with pytest.raises(BudgetTooSmall, match="at least 2"), dspy.context(lm=dspy.LM("openai/none", cache=False)):
        optimizer(budget=1).compile(student(), trainset=questions(3))


def test_psst_has_no_intervals() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        result = optimizer(algorithm="psst", budget=200).compile(student(), trainset=questions(20)).detailed_results
    assert result.standard_error is None and result.deceptive is None and result.policy[0].choice is None
    assert np.isnan(result.curve(0)[1]).all()


def test_an_algorithm_may_be_an_object(tmp_path: Path) -> None:
    """One of no short name is saved by its name only: compiled preferences are served, others say what to do."""
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        own = optimizer(algorithm=Auto(rounds=3), budget=200)
        assert "rounds=3" in own.get_params()["algorithm"]
        program = own.compile(student(), trainset=questions(20))
        assert program.solve(Preference(cost=0.05)).n >= 1
        program.save(tmp_path / "p.json")
        loaded = CompiledProgram(student())
        loaded.load(tmp_path / "p.json")
        assert loaded.solve("quality") == program.solve("quality")
        with pytest.raises(ConfigurationError, match="Compile again"):
            loaded.solve(Preference(cost=0.07))
        uniform = optimizer(algorithm="uniform", budget=200).compile(student(), trainset=questions(20))
        assert uniform.solve("quality").prompt == uniform.solve(Preference(cost=0.001)).prompt
