"""Candidates given predictor by predictor: what is read, how prompts are numbered, and that they are made late."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from iapo_dspy import Decoding
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.optimizer.pipelines import LivePrompts
from iapo_dspy.prompts.combinations import Combinations, prompt_set
from iapo_dspy.prompts.student import Student
from tests.support.worlds import TwoSteps

PLAIN = (Decoding(),)
COOL, WARM = Decoding(temperature=0.5), Decoding(temperature=1.0)


def texts(prompts: Any) -> list[tuple[str, ...]]:
    return [tuple(p.student.instructions.values()) for p in prompts]


def test_every_combination_is_a_prompt_and_the_last_list_changes_fastest() -> None:
    student = TwoSteps()
    prompts = prompt_set(Student(student), {"ask": ["c", "d"], "plan": ["a", "b"]}, (COOL, WARM), 32)
    assert isinstance(prompts, tuple)
    assert texts(prompts) == [(p, a) for p in "ab" for a in "cd" for _ in range(2)]
    assert [p.decoding for p in prompts[:2]] == [COOL, WARM]
    assert [p.candidate for p in prompts] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert prompts[5].options == {"plan": 1, "ask": 0}
    assert student.plan.signature.instructions not in "abcd"


def test_a_predictors_own_instruction_takes_part_where_it_is_asked_for() -> None:
    own = TwoSteps().plan.signature.instructions
    assert texts(prompt_set(Student(TwoSteps()), {"plan": [None, "b"], "ask": ["c"]}, PLAIN, 32)) == [
        (own, "c"),
        ("b", "c"),
    ]
    answer = TwoSteps().ask.signature.instructions
    assert texts(prompt_set(Student(TwoSteps()), {"plan": ["a", "b"]}, PLAIN, 32)) == [("a", answer), ("b", answer)]


def test_a_large_product_is_made_as_far_as_it_is_looked_at() -> None:
    lists = {"plan": [f"p{i}" for i in range(300)], "ask": [f"a{i}" for i in range(300)]}
    prompts = prompt_set(Student(TwoSteps()), lists, (COOL, WARM), 32)
    assert isinstance(prompts, Combinations)
    assert len(prompts) == 180_000 and prompts.shape == (300, 300, 2)
    number = (7 * 300 + 11) * 2 + 1
    prompt = prompts[number]
    assert texts([prompt]) == [("p7", "a11")] and prompt.decoding == WARM and prompt.candidate == 7 * 300 + 11
    assert prompts[number] is prompt and prompts[-1] is prompts[179_999]
    assert len(prompts._made) == 2
    shown = prompts.shown
    assert len(shown) == 1 + 299 + 299 + 1 and shown[0] is prompts[0] and shown[-1] is prompts[1]
    live = LivePrompts(prompts)
    assert len(live) == 180_000 and live[number].program is prompt.program and live[number] is live[number]
    with pytest.raises(IndexError):
        prompts[180_000]


def test_one_list_alone_is_looked_at_as_a_whole() -> None:
    prompts = prompt_set(Student(TwoSteps()), {"plan": [f"p{i}" for i in range(50)], "ask": ["a"]}, PLAIN, 32)
    assert isinstance(prompts, tuple) and len(prompts) == 50


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        ({}, "empty dictionary.*'plan', 'ask'"),
        ({"plan": ["a"], "nobody": ["b"]}, r"predictor 'nobody'; the student has \['plan', 'ask'\]"),
        ({"plan": []}, r"candidates\['plan'\] is empty.*leave the predictor out"),
        ({"plan": "think"}, r"candidates\['plan'\] is one string.*candidates=\[\{'plan': 'think'"),
        ({"plan": {"a", "b"}}, r"candidates\['plan'\] is a set; give a list"),
        ({"plan": 3}, "is a int; give a list"),
        ({"plan": ["a", 3]}, r"candidates\['plan'\]\[1\] is 3"),
        ({"plan": ["a", " "]}, r"candidates\['plan'\]\[1\] is ' '"),
        ({"plan": ["a", "b", " a"]}, r"candidates\['plan'\]\[2\] is the same instruction as candidates\['plan'\]\[0\]"),
        ({"plan": [None, TwoSteps().plan.signature.instructions]}, "the same instruction"),
        (
            {"plan": [str(i) for i in range(2000)], "ask": [str(i) for i in range(2000)]},
            "2000 x 2000 x 1 = 4,000,000 combinations",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(candidates: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        prompt_set(Student(TwoSteps()), candidates, PLAIN, 32)


def test_a_dictionary_in_a_list_is_one_candidate_as_before() -> None:
    prompts = prompt_set(Student(TwoSteps()), [{"plan": "a"}, {"plan": "b", "ask": "c"}], PLAIN, 32)
    assert len(prompts) == 2 and prompts[0].options is None and isinstance(prompts[0].program, dspy.Module)
