"""Algorithms tell their rounds while they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.auto import Auto, Ranking
from iapo_dspy.bandit.algorithms.coordinate import Coordinate
from iapo_dspy.bandit.algorithms.generations import Generations
from iapo_dspy.bandit.named import named
from iapo_dspy.bandit.outcome import Outcome, Wish
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
from iapo_dspy.types import Arm, Contexts, Interim, Observations, Policy, Pulls

RECORDING = synthetic_bernoulli(0, n_prompts=6, n_queries=40)
PROBLEM = RECORDING.problem(max_n=4)
Told = list[tuple[Interim | None, tuple[Observations, ...]]]


def followed(run: Any, told: Told) -> Any:
    """Pass a run through, and note before each batch what it tells and what it has seen."""
    seen: list[Observations] = []
    answer = None
    while True:
        try:
            asked = run.send(answer)
        except StopIteration as stop:
            return stop.value
        if isinstance(asked, Pulls):
            told.append((asked.interim, tuple(seen)))
        answer = yield asked
        if isinstance(answer, Observations):
            seen.append(answer)


def run_of(algorithm: Any, budget: int = 600, problem: Any = PROBLEM) -> tuple[Outcome, Told]:
    told: Told = []
    more: Callable[[Wish], Any] = lambda wish: problem  # noqa: E731
    run = algorithm.start(problem, budget=budget, seed=0)
    return drive(followed(run, told), RECORDING.environment(0), more=more), told


@pytest.mark.parametrize("name", ["auto", "psst", "psst+k4", "triple", "uniform"])
def test_each_round_tells_what_the_algorithm_would_choose_by_what_it_has_seen(name: str) -> None:
    algorithm = named(name)
    outcome, told = run_of(algorithm)
    assert told[0][0] is None
    assert len(told) > 2 or name == "uniform"
    for interim, seen in told[1:]:
        assert interim is not None
        before = algorithm.solve(PROBLEM, seen)
        assert interim.policy == before.policy
        expected = [before.q[c, arm.prompt, arm.n - 1] for c, arm in enumerate(before.policy.arms)]
        np.testing.assert_allclose(interim.utility, expected)
    assert outcome.interim.policy == outcome.policy and outcome.interim.rounds_left == 0


def test_rounds_that_are_left_count_down_to_the_last_one() -> None:
    _, told = run_of(named("psst"))
    assert [interim.rounds_left for interim, _ in told[1:] if interim] == list(range(len(told) - 1, 0, -1))


def test_auto_tells_standard_errors_and_block_estimates_have_none() -> None:
    (known, seen), (blocks, _) = run_of(Auto())[1][1], run_of(named("psst"))[1][1]
    assert known is not None and blocks is not None
    error = Auto().solve(PROBLEM, seen).estimates.standard_error
    assert error is not None
    expected = [error[c, arm.prompt, arm.n - 1] for c, arm in enumerate(known.policy.arms)]
    np.testing.assert_allclose(known.standard_error, expected)
    assert np.isnan(blocks.standard_error).all()


def test_generations_tell_their_rounds_and_a_wish_says_what_is_known() -> None:
    outcome, told = run_of(Generations(size=2, most=1))
    assert told[0][0] is None and len(told) > 2
    assert all(interim is not None and len(interim.policy) == PROBLEM.n_contexts for interim, _ in told[1:])
    assert outcome.interim.policy == outcome.policy


def test_combinations_are_told_by_their_own_numbers() -> None:
    outcome, told = run_of(Coordinate(shape=(2, 3)), budget=300)
    assert outcome.prompts is not None
    for interim, seen in told[1:]:
        assert interim is not None and interim.rounds_left is not None
        drawn = set(np.concatenate([o.pulls.prompt for o in seen]).tolist())
        assert {arm.prompt for arm in interim.policy.arms} <= drawn
    chosen = [int(outcome.prompts[arm.prompt]) for arm in outcome.policy.arms]
    assert [arm.prompt for arm in outcome.interim.policy.arms] == chosen
    assert [i.rounds_left for i, _ in told[1:] if i][-1] == 1


def test_steps_of_a_sequential_baseline_are_told_as_ten_rounds() -> None:
    _, told = run_of(named("ucb"))
    rounds = [interim for interim, _ in told if interim is not None]
    assert len(told) > 100 and [r.rounds_left for r in rounds] == list(range(9, 0, -1))


def test_nothing_is_told_of_contexts_where_a_run_looks_at_some_of_them_only() -> None:
    few = replace(PROBLEM, contexts=Contexts(PROBLEM.contexts.weights[:1], PROBLEM.contexts.cost[:1]))
    ranking = Ranking(few)
    assert ranking.interim(PROBLEM, rounds_left=3) is None
    ranking.observe(run_of(Auto())[0].observations[0], np.arange(6))
    known, rest = ranking.interim(few, rounds_left=3), ranking.interim(PROBLEM, rounds_left=3)
    assert known is not None and len(known.policy) == 1
    assert rest is not None and (len(rest.policy), len(rest.utility), rest.rounds_left) == (0, 0, 3)


def test_an_arm_beyond_the_estimates_has_none() -> None:
    """TRIPLE with random scales estimates single completions only."""
    outcome, _ = run_of(named("triple"))
    wide = Outcome(**{**vars(outcome), "policy": Policy((Arm(0, 4),) * PROBLEM.n_contexts)})
    assert np.isnan(wide.interim.utility).all()
