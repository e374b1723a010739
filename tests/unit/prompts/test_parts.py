"""Prompts that are made of the same instruction, demos, decoding or LM are known to be relatives."""

from __future__ import annotations

from typing import Any, NoReturn

import dspy
import numpy as np
import pytest

from iapo_dspy import Decoding
from iapo_dspy.bandit.baselines.uniform import Uniform
from iapo_dspy.bandit.outcome import Run
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.prompts.combinations import prompt_set
from iapo_dspy.prompts.prompt import PromptState, prompt_states, shared_parts
from iapo_dspy.prompts.student import Student
from tests.support.compiling import optimizers
from tests.support.worlds import TwoSteps, questions, student

PLAIN, COOL, WARM = Decoding(), Decoding(temperature=0.5), Decoding(temperature=1.0)


def parts(program: dspy.Module, candidates: Any, decodings: tuple[Decoding, ...], lms: Any = ()) -> Any:
    states = prompt_states(prompt_set(Student(program), candidates, decodings, 64, lms))
    found = shared_parts(states)
    again = shared_parts([PromptState.from_dict(state.to_dict()) for state in states])
    np.testing.assert_array_equal(found, again)
    return None if found is None else found.tolist()


def test_instructions_decodings_and_lms_are_parts() -> None:
    lms = [dspy.LM("openai/small"), dspy.LM("openai/small", max_tokens=77), dspy.LM("openai/large")]
    found = parts(student(), ["one", "two"], (COOL, WARM), lms)
    assert found == [[i, j, m] for i in range(2) for m in range(3) for j in range(2)]
    assert parts(student(), ["one", "two"], (COOL, WARM)) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_part_that_nothing_or_everything_shares_is_left_out() -> None:
    assert parts(student(), ["one", "two", "three"], (PLAIN,)) is None
    assert parts(student(), ["one"], (COOL, WARM)) is None
    assert parts(student(), ["one"], (COOL,)) is None


def test_every_predictor_has_an_instruction_of_its_own() -> None:
    found = parts(TwoSteps(), {"plan": ["a", "b"], "ask": ["c", "d"]}, (COOL, WARM))
    assert found == [[p, a, t] for p in range(2) for a in range(2) for t in range(2)]


def test_demos_are_a_part_beside_the_instruction() -> None:
    candidates = []
    for text, demo in (("one", "x"), ("one", "y"), ("two", "x")):
        candidates.append(student())
        (predictor,) = candidates[-1].predictors()
        predictor.signature = predictor.signature.with_instructions(text)
        predictor.demos = [dspy.Example(question=demo, answer=demo)]
    assert parts(student(), candidates, (PLAIN,)) == [[0, 0], [0, 1], [1, 0]]


def test_the_program_is_a_part_that_prompts_of_one_class_share() -> None:
    thinker = dspy.ChainOfThought("question -> answer")
    assert parts(student(), [student(), thinker], (COOL, WARM)) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    lms = [dspy.LM("openai/small"), dspy.LM("openai/large")]
    found = parts(student(), [student(), "one", thinker, TwoSteps()], (PLAIN,), lms)
    classes = [0, 0, 0, 0, 1, 1, 2, 2]
    assert any([row[i] for row in found] == classes for i in range(len(found[0])))


class Seen(Exception):
    """Ends a run before its first call."""


class Looking(Uniform):
    """Shows the problem that it is given."""

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        self._refuse(problem)

    def _refuse(self, problem: Problem) -> NoReturn:
        raise Seen(problem)


@pytest.mark.parametrize("decoding", [[COOL, WARM], COOL])
def test_the_problem_of_a_run_has_the_parts_of_its_candidates(decoding: Any) -> None:
    optimizer = optimizers(budget=500, decoding=decoding, algorithm=Looking())()
    with pytest.raises(Seen) as stopped, dspy.context(lm=dspy.LM("openai/small")):
        optimizer.compile(student(), trainset=questions(5))
    (problem,) = stopped.value.args
    if decoding is COOL:
        assert problem.parts is None
    else:
        assert problem.parts.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
