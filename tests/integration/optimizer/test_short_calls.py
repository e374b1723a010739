"""The shortest calls: a metric alone, strategies by name, predictors by the beginning of their names, and typos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, CompiledProgram, Execution, MajorityVote, Objective, WeightedVote
from iapo_dspy.errors import ConfigurationError, LabelRequired
from iapo_dspy.types import Arm
from tests.support.deployed import deploy
from tests.support.loopback import Loopback
from tests.support.worlds import CAREFUL, LAZY, QUICK, TwoSteps, adder, after_reasoning, exact, questions, student

SETTINGS: dict[str, Any] = {"max_n": 3, "budget": 90, "execution": Execution(progress=False)}


def checked(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Check a sum by what it adds: a metric that needs no label."""
    return str(prediction.answer) == str(sum(map(int, example.question.split(" + "))))


def test_a_metric_alone_votes_on_the_field_that_is_not_the_reasoning(tmp_path: Path) -> None:
    thinker = dspy.ChainOfThought("question -> answer")
    with Loopback(after_reasoning(adder)) as server, dspy.context(lm=server.lm(seed=3)):
        chooser = IAPO(metric=exact, candidates={"predict": [CAREFUL, QUICK]}, **SETTINGS)
        assert chooser.quote(thinker, trainset=questions(10)).completions == 90 and server.requests == 0
        program = chooser.compile(thinker, trainset=questions(10))
        program.save(tmp_path / "sums.json")
        assert program.policy.ready.strategy["field"] == "answer"
        for strategy in (None, MajorityVote(), MajorityVote("answer")):
            loaded = CompiledProgram(dspy.ChainOfThought("question -> answer"), strategy)
            loaded.load(tmp_path / "sums.json")
            assert loaded(question="4 + 4").iapo.votes and loaded.policy.strategy.to_dict()["field"] == "answer"


def test_best_of_n_by_name_selects_by_the_metric_when_deployed() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        program = IAPO(metric=checked, strategy="best_of_n", candidates=[CAREFUL, LAZY], **SETTINGS).compile(
            student(), trainset=[dspy.Example(question=f"{a} + {a + 1}").with_inputs("question") for a in range(1, 11)]
        )
        prediction = program(question="31 + 12")
    utilities = prediction.iapo.utilities
    assert utilities is not None and max(u for u in utilities if u is not None) == utilities[prediction.iapo.winner]


@pytest.mark.parametrize(
    ("given", "module", "error", "message"),
    [
        ({"strategy": "best_of_n"}, student(), LabelRequired, "`answer`"),
        ({}, TwoSteps(), ConfigurationError, r"\['idea', 'answer'\]"),
        ({"strategy": WeightedVote(weight=Objective("w", lambda example, prediction: 1.0))}, TwoSteps(),
         ConfigurationError, r"WeightedVote\(\): the student has the output fields"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_refused_before_the_first_call(
    given: dict[str, Any], module: dspy.Module, error: type[Exception], message: str
) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        with pytest.raises(error, match=message):
            IAPO(metric=exact, candidates="auto", **SETTINGS, **given).compile(module, trainset=questions(10))
        assert server.requests == 0


def test_a_typo_in_a_call_is_refused_before_the_first_call() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        chooser = IAPO(metric=exact, candidates=[CAREFUL, QUICK], **SETTINGS)
        with pytest.raises(
            ConfigurationError, match=r"compile has no parameter 'candidtes'. Did you mean 'candidates'"
        ):
            chooser.compile(student(), trainset=questions(10), candidtes=[LAZY])
        with pytest.raises(ConfigurationError, match=r"'max_n'. Settings belong to IAPO"):
            chooser.compile(student(), trainset=questions(10), max_n=3)
        assert server.requests == 0
        program = chooser.compile(student(), trainset=questions(10))
        before = server.requests
        with pytest.raises(ConfigurationError, match=r"no input 'preferense'. Did you mean 'preference'"):
            program(question="1 + 2", preferense="thrifty")
        with pytest.raises(ConfigurationError, match=r"no input 'qestion'. Did you mean 'question'"):
            program(qestion="1 + 2")
        assert server.requests == before
        assert program(question="1 + 2", preference="thrifty").answer


class AnyField(dspy.Module):
    """Takes whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question, reference -> answer")

    def forward(self, **fields: Any) -> dspy.Prediction:
        return self.ask(**fields)


def test_a_student_that_takes_any_field_is_not_told_which_ones_it_has() -> None:
    train = [dspy.Example(question="1 + 1", reference="2", answer="2").with_inputs("question", "reference")]
    arms = {"quality": Arm(prompt=0, n=1)}
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        program = deploy(AnyField(), MajorityVote("answer"), [{"ask": QUICK}], arms, train=train)
        assert program(question="1 + 3", reference="4", preference="quality").answer == "4"
