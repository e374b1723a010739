"""A saved program of a plain predictor is loaded without its student; others say what they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

import iapo_dspy
from iapo_dspy import MajorityVote
from iapo_dspy.errors import StateError, StorageError
from iapo_dspy.prompts.plain_student import described, student_from
from iapo_dspy.types import Arm
from tests.support.deployed import deploy
from tests.support.loopback import Loopback
from tests.support.worlds import CAREFUL, TwoSteps, adder, after_reasoning, student


class Typed(dspy.Signature):
    """Judge."""

    question: str = dspy.InputField(desc="the question")
    tries: int = dspy.InputField()
    verdict: Literal["yes", "no"] = dspy.OutputField()
    reasons: list[str] = dspy.OutputField()
    share: float | None = dspy.OutputField()
    counts: dict[str, int] = dspy.OutputField()


class Pictured(dspy.Signature):
    """Look."""

    question: str = dspy.InputField()
    answer: dspy.Image = dspy.OutputField()


class Own(dspy.Predict):
    """A class of the user's."""


@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought])
@pytest.mark.parametrize("signature", ["question -> answer", Typed])
def test_a_plain_predictor_is_made_again_from_json(kind: Any, signature: Any) -> None:
    given = kind(signature)
    made = student_from(json.loads(json.dumps(described(given))))
    assert made is not None and type(made) is kind
    fields = [{n: f.annotation for n, f in p.signature.fields.items()} for s in (given, made) for p in s.predictors()]
    assert fields[0] == fields[1]


class Bounded(dspy.Signature):
    """Rate."""

    question: str = dspy.InputField()
    share: float = dspy.OutputField(le=1.0)


class Filled(dspy.Signature):
    """Look."""

    question: str = dspy.InputField(default="why?")
    answer: str = dspy.OutputField()


@pytest.mark.parametrize(
    "module",
    [
        dspy.Predict(Pictured),
        Own("question -> answer"),
        TwoSteps(),
        dspy.Predict("question -> answer", temperature=0.2),
        dspy.ChainOfThought("question -> answer", max_tokens=50),
        dspy.Predict(Bounded),
        dspy.Predict(Filled),
    ],
)
def test_what_plain_text_cannot_describe_is_not_described(module: dspy.Module) -> None:
    assert described(module) is None


@pytest.mark.parametrize("data", [None, {}, {"class": "Own", "signature": "q -> a"}, {"class": "Predict"},
                                  {"class": "Predict", "signature": "q -> a: nonsense"},
                                  {"class": "Predict", "signature": "q, a"}])  # fmt: skip
def test_damaged_data_make_no_student(data: Any) -> None:
    assert student_from(data) is None


def test_a_program_is_loaded_from_its_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "sums.json"
    thinker = dspy.ChainOfThought("question -> answer")
    with Loopback(after_reasoning(adder)) as server, dspy.context(lm=server.lm(seed=3)):
        program = deploy(thinker, MajorityVote("answer"), [{"predict": CAREFUL}], {"quality": Arm(prompt=0, n=3)})
        program.save(path)
        loaded = iapo_dspy.load(path)
        assert loaded.solve() == program.solve() and loaded(question="4 + 4").answer == program(question="4 + 4").answer
        assert CAREFUL in str(server.bodies[-1]["messages"])
        given = iapo_dspy.load(str(path), dspy.ChainOfThought("question -> answer"))
        assert given.solve() == program.solve()
        older = json.loads(path.read_text())
        del older["policy"]["plain_student"]
        path.write_text(json.dumps(older))
        with pytest.raises(StateError, match=r"Give the student: iapo_dspy\.load"):
            iapo_dspy.load(path)
        assert iapo_dspy.load(path, dspy.ChainOfThought("question -> answer")).solve() == program.solve()


def test_a_student_of_the_users_must_be_given(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        deploy(student(), MajorityVote("answer"), [CAREFUL], {"quality": Arm(prompt=0, n=3)}).save(tmp_path / "a.json")
    with pytest.raises(StateError, match="has the fields"):
        iapo_dspy.load(tmp_path / "a.json", dspy.Predict("text -> label"))
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(StateError, match="damaged, or is not a saved"):
        iapo_dspy.load(tmp_path / "b.json")
    with pytest.raises(StorageError, match="cannot be read"):
        iapo_dspy.load(tmp_path / "c.json")
