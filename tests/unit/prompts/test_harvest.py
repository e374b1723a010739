"""Candidates in the shapes that users have; tests/integration/prompts has those of the real optimizers."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from iapo_dspy import CompiledProgram, candidates_of
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.bookkeeping import bookkeeping
from iapo_dspy.prompts.harvest import CandidateList
from iapo_dspy.prompts.prompt import Prompt, build_prompts
from iapo_dspy.prompts.student import Student
from iapo_dspy.types import Decoding
from tests.support.worlds import Around, TwoSteps

ONCE = (Decoding(),)


def told(text: str, *demos: int) -> Any:
    program = dspy.Predict(dspy.Signature("question -> answer", text))
    program.demos = [dspy.Example(question=str(d), answer=str(d)) for d in demos]
    return program


def texts(programs: Any) -> list[str]:
    return [p.signature.instructions for p in programs]


def read(given: Any, student: Any = None) -> tuple[Prompt, ...]:
    return build_prompts(Student(student or told("own")), given, ONCE)


def compiled(*scores: float, minibatches: Any = ()) -> Any:
    """A program as MIPROv2 leaves it: the best of those that it scored, with all of them and its logs."""
    pool = [{"score": s, "program": told(f"of {s:g}"), "full_eval": True} for s in scores]
    best = max(pool, key=lambda entry: entry["score"])["program"]
    best.candidate_programs = pool
    best.mb_candidate_programs = [{"score": s, "program": told(f"mini {s:g}"), "full_eval": False} for s in minibatches]
    best.score, best.trial_logs, best.total_calls = max(scores), {1: {"program": told("logged")}}, 7
    return best


GEPA = SimpleNamespace(candidates=[told("a"), told("b"), told("a")], val_aggregate_scores=[0.1, 0.4, 0.1])
RAW = SimpleNamespace(candidates=[{"self": "a"}, {"self": "b"}], val_aggregate_scores=[0.1, 0.4])

SHAPES: dict[str, tuple[Any, list[str]]] = {
    "strings": (["a", "b"], ["a", "b"]),
    "an iterator": ((text for text in "ab"), ["a", "b"]),
    "a dictionary alone": ([{"self": "a"}], ["a"]),
    "a dictionary with a score": ([{"self": "a", "score": 0.5}], ["a"]),
    "a program": (told("a"), ["a"]),
    "entries with programs": ([{"program": told("a"), "score": 3, "seed": 1}, {"program": told("b")}], ["a", "b"]),
    "one entry": ({"program": told("a"), "score": 3}, ["a"]),
    "an entry with instructions": ([{"program": {"self": "a"}, "score": 3}], ["a"]),
    "tuples with scores": ([(0.5, told("a"), 17), (0.7, told("b"), 3)], ["a", "b"]),
    "results of GEPA": (GEPA, ["a", "b"]),
    "results of GEPA without DSPy": (RAW, ["a", "b"]),
    "a compiled program": (compiled(10, 30, 20, minibatches=[50]), ["of 30", "of 20", "of 10", "mini 50"]),
    "a mixture": (["x", compiled(10, 30), [GEPA, told("y")], ["x"]], ["x", "of 30", "of 10", "a", "b", "y"]),
    "students and candidates": ([told("own"), "own", "a"], ["own", "a"]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_candidates_in_every_shape(shape: str) -> None:
    given, expected = SHAPES[shape]
    assert texts(p.program for p in read(given)) == expected


WRONG: dict[str, tuple[Any, str]] = {
    "nothing": ([], "No candidates"),
    "a string": ("Think.", r"Write a list, \['Think.'\], or candidates='auto'"),
    "a number": (3, "candidates is a int; give a list"),
    "a number within": (["a", [3]], r"candidates\[1\]\[0\] is a int"),
    "a set": ({"a", "b"}, "candidates is a set, which has no order"),
    "a type": ([dspy.Predict], r"candidates\[0\] is the class Predict; give"),
    "an empty string": (["a", ["b", " "]], r"candidates\[1\]\[1\]: the instruction of 'self' is ' '"),
    "a predictor that is not there": ([{"score": 0.3, "solve": "a"}], "names the predictor 'solve'"),
    "a score alone": ([{"score": 0.3}], r"candidates\[0\] is an empty dictionary"),
    "an empty compiled program": ([CompiledProgram(told("own"))], "has no policy yet: compile or load it first"),
}


@pytest.mark.parametrize("shape", WRONG)
def test_a_wrong_shape_is_refused(shape: str) -> None:
    given, message = WRONG[shape]
    with pytest.raises(ConfigurationError, match=message):
        read(given)


def test_candidates_of_shows_the_best_first_and_at_most_top() -> None:
    found = candidates_of(compiled(10, 30, 20, minibatches=[50]))
    assert texts(found) == ["of 30", "of 20", "of 10", "mini 50"]
    assert found.candidate_scores == (30, 20, 10, 50)
    assert repr(found[:2]) == "2 candidate programs\n  #0, Predict, score 30: of 30\n  #1, Predict, score 20: of 20"
    assert isinstance(found[:2], CandidateList) and texts(found[1:3]) == ["of 20", "of 10"]
    assert texts(candidates_of(compiled(10, 30), top=1)) == ["of 30"]
    assert texts(candidates_of(GEPA)) == ["b", "a"] and candidates_of(GEPA).candidate_scores == (0.4, 0.1)
    assert texts(candidates_of([compiled(10, 30), GEPA], top=3)) == ["of 30", "b", "of 10"]  # in turn
    assert candidates_of(told("a")).candidate_scores == (None,)
    assert candidates_of([{"program": told("a"), "score": math.nan}]).candidate_scores == (None,)
    assert repr(candidates_of(told("long " * 40, 1, 2))) == (
        "1 candidate program\n  #0, Predict, 2 demos: " + ("long " * 40)[:77] + "..."
    )


def test_programs_are_copies_without_logs() -> None:
    best = compiled(10, 30)
    found = candidates_of(best)
    assert all(not {"candidate_programs", "trial_logs", "score"} & set(vars(p)) for p in found)
    assert found[0] is not best and best.total_calls == 7
    found[0].signature = found[0].signature.with_instructions("changed")
    assert best.signature.instructions == "of 30"


@pytest.mark.parametrize("top", [0, -1, 2.0, True])
def test_top_is_a_whole_number(top: Any) -> None:
    with pytest.raises(ConfigurationError, match="give a whole number >= 1"):
        candidates_of(told("a"), top=top)


@pytest.mark.parametrize("given", ["Think.", ["Think."], [], RAW])
def test_candidates_of_reads_programs(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"reads programs|no programs in it"):
        candidates_of(given)


def test_a_program_brings_its_best_sixteen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "iapo_dspy"):
        found = read([compiled(*range(20)), "own"])
    assert texts(p.program for p in found) == [*(f"of {s}" for s in range(19, 3, -1)), "own"]
    assert [record.getMessage() for record in caplog.records] == [
        "candidates[0] carries 20 candidates; the best 16 are taken. candidates_of(program, top=...) takes more."
    ]
    assert len(read(candidates_of(compiled(*range(20)), top=18))) == 18


def test_results_that_are_not_of_programs_are_not_read() -> None:
    program = told("a")
    program.detailed_results, program.candidate_programs = {"accuracy": 0.5}, [{"self": "b", "score": 1.0}]
    assert texts(candidates_of(program)) == ["a"]


def test_labels_tell_demos_apart() -> None:
    found = read([told("a"), told("a", 1), told("a", 2, 3), told("a", 4, 5), told("b", 1)])
    assert [p.label for p in found] == ["a", "a [1 demo]", "a [#2, 2 demos]", "a [#3, 2 demos]", "b [1 demo]"]


def test_repeats_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "iapo_dspy"):
        found = read([told("own"), "a", " a ", compiled(10), told("of 10")])
    assert [p.candidate for p in found] == [0, 1, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "2 of the candidates are repeats and are left out: candidates[2] is the same as candidates[1]; "
        "candidates[4] is the same as candidates[3]."
    ]


class Hops(dspy.Module):
    """A module that sets attributes by computed names."""

    def __init__(self, n: int = 2, **settings: Any) -> None:
        super().__init__()
        for i in range(n):
            setattr(self, f"hop{i}", dspy.Predict("question -> answer"))
        for name, value in settings.items():
            setattr(self, name, value)


class Threshold(dspy.Module):
    """A module with an attribute that is called as DSPy's optimizers call theirs."""

    def __init__(self, score: float = 0.5) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.score = score

    def forward(self, question: str) -> Any:
        return self.ask(question=question) if self.score else None


def test_bookkeeping_is_what_optimizers_hang_on_programs() -> None:
    for module in (TwoSteps(), Around(), told("a"), dspy.ChainOfThought("question -> answer"), Threshold(), Hops()):
        assert bookkeeping(module) == []
        module.trial_logs, module.total_calls, module.anything, module.score = {}, 3, 4, 0.7
        hung = ["trial_logs", "total_calls"]
        assert bookkeeping(module) == (hung if isinstance(module, Threshold) else [*hung, "score"])


def test_attributes_of_a_class_must_be_equal() -> None:
    for student, other in ((Threshold(), Threshold(0.6)), (Hops(depth=1), Hops(depth=2))):
        with pytest.raises(
            ConfigurationError, match=r"candidates\[0\] differs from the student in \['self\.(score|depth)"
        ):
            read([other], student)
    assert len(read([Hops(2), Hops(3), TwoSteps()], Hops(2))) == 3  # of other predictors: other kinds
    with pytest.raises(ConfigurationError, match=r"candidates\[1\] differs from candidates\[0\] in \['self\.score'\]"):
        read([Threshold(), Threshold(0.6)])


def test_two_classes_of_one_name_are_refused() -> None:
    def made() -> Any:
        class Inner(Around):
            pass

        return Inner()

    with pytest.raises(ConfigurationError, match=r"candidates\[1\] and candidates\[0\] are programs of two classes"):
        read([made(), made()])
