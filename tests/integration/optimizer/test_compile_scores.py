"""Scores of a run: what a metric cannot score, metrics that nothing satisfies, and stored completions scored anew."""

import dataclasses
import datetime
import enum
import json
import random
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.utils.exceptions import AdapterParseError

from iapo_dspy import BestOfN, MajorityVote, Mixed, Objective, WeightedVote
from iapo_dspy.errors import ScoreError
from iapo_dspy.sampling.ledger.export import scored
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.types import FloatArray
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, QUICK, adder, exact, questions, student, total

optimizer = optimizers(max_n=8, budget=300, stopping=None, candidates=[QUICK, CAREFUL])


# -- the procedure that is estimated is the one that is deployed


def shy(body: dict[str, Any], i: int) -> str:
    """Under QUICK, right 1 time out of 3, and else "unknown"; under CAREFUL, right 3 times out of 5."""
    rng, right = body.setdefault("_rng", random.Random(body.get("seed"))), str(total(body))
    if QUICK in body["messages"][0]["content"]:
        return chat(answer=right if rng.random() < 1 / 3 else "unknown")
    return chat(answer=right if rng.random() < 0.6 else str(total(body) + 1))


def near(example: Any, pred: Any, trace: Any = None) -> bool:
    return abs(float(pred.answer) - float(example.answer)) < 1e-6


def silent(example: Any, pred: Any, trace: Any = None) -> Any:
    return None if pred.answer == "unknown" else near(example, pred)


def not_a_number(example: Any, pred: Any, trace: Any = None) -> float:
    return float("nan") if pred.answer == "unknown" else near(example, pred)


def brief(example: Any, pred: Any) -> bool:
    return len(pred.answer) < 5


def measured(strategy: Any, metric: Any, valset: bool = False) -> tuple[FloatArray, Any]:
    with Loopback(shy) as server, dspy.context(lm=server.lm(seed=1)):
        held_out = questions(40)[30:] if valset else None
        compiled = optimizer(strategy=strategy, metric=metric).compile(
            student(), trainset=questions(30), valset=held_out
        )
        return compiled.detailed_results.reward, compiled


@pytest.mark.parametrize("metric", [near, *(pytest.param(m, marks=pytest.mark.slow) for m in (silent, not_a_number))])
def test_an_answer_that_the_metric_cannot_score_votes_while_compiling_too(metric: Any) -> None:
    expected, _ = measured(MajorityVote("answer"), exact)
    reward, compiled = measured(MajorityVote("answer"), metric)
    assert reward == pytest.approx(expected)
    results = compiled.detailed_results
    assert results.labels[results.policy[0].arm.prompt] == CAREFUL
    assert results.failures.total == results.failures.errors > 0 and results.failures.share[1] == 0
    assert 0.5 < results.failures.share[0] < 0.8  # what could not be scored is still shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        WeightedVote("answer", weight=lambda e, p: 0.5),
        Mixed(MajorityVote("answer"), objectives=[Objective("brief", brief)]),
        Mixed(WeightedVote("answer", weight=lambda e, p: 0.5), then=BestOfN([Objective("brief", brief)])),
    ],
)
def test_so_it_does_in_votes_with_weights_and_objectives_and_on_a_valset(strategy: Any) -> None:
    expected, right = measured(strategy, exact, valset=True)
    reward, compiled = measured(strategy, near, valset=True)
    assert reward == pytest.approx(expected)
    for one, other in zip(compiled.detailed_results.policy, right.detailed_results.policy, strict=True):
        assert one.arm == other.arm and one.held_out == other.held_out


# -- stored completions are scored anew as they were


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Plan(pydantic.BaseModel):
    steps: int


@dataclasses.dataclass(frozen=True)
class Note:
    at: datetime.datetime
    plans: tuple[Plan, ...]


class Typed(dspy.Module):
    """A student whose first predictor is typed, and whose `forward` adds fields that no predictor declares."""

    def __init__(self) -> None:
        super().__init__()
        types = {"Colour": Colour, "Plan": Plan, "Literal": Literal}
        self.first = dspy.Predict(dspy.Signature("question -> colour: Colour, plan: Plan", custom_types=types))
        self.last = dspy.Predict("question -> answer: int")

    def forward(self, question: str) -> dspy.Prediction:
        seen, answer = self.first(question=question), self.last(question=question).answer
        note = Note(datetime.datetime(2024, 1, 2), (seen.plan,))
        return dspy.Prediction(colour=seen.colour, plan=seen.plan, answer=str(answer), note=note, extra={1: {answer}})


def typed_world(body: dict[str, Any], i: int) -> str:
    if "`colour`" in body["messages"][0]["content"]:
        return chat(colour=["red", "blue"][total(body) % 2], plan=json.dumps({"steps": 2}))
    return chat(answer=str(total(body) if i % 3 else 0))


def as_told(example: Any, pred: Any, trace: Any = None) -> bool:
    return str(example.answer) == pred.answer


def all_typed(example: Any, pred: Any, trace: Any = None) -> bool:
    """True for every completion that has the types that `Typed` gave it."""
    return (
        pred.colour is [Colour.RED, Colour.BLUE][int(example.answer) % 2]
        and pred.plan == Plan(steps=2)
        and pred.note == Note(datetime.datetime(2024, 1, 2), (Plan(steps=2),))
        and isinstance(pred.answer, str)
        and pred.extra == {1: {int(pred.answer)}}
    )


class Outer(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Typed()

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(**self.inner(question=question).toDict() | {"around": (question,)})


@pytest.mark.parametrize("inner", [None, pytest.param("inner", marks=pytest.mark.slow)])
def test_a_new_metric_sees_stored_completions_with_their_types(tmp_path: Path, inner: str | None) -> None:
    candidates = [{"last": QUICK}, {"last": CAREFUL}]
    run = optimizers(max_n=4, budget=60, stopping=None, candidates=candidates, log_dir=tmp_path)
    whole: dspy.Module = Typed() if inner is None else Outer()

    def typed(example: Any, pred: Any, trace: Any = None) -> bool:
        return all_typed(example, pred) if inner is None else pred.around == (example.question,)

    with Loopback(typed_world) as server, dspy.context(lm=server.lm()):
        run(metric=as_told).compile(whole, trainset=questions(10), inner=inner)
        asked = server.requests
        results = run(metric=typed).compile(whole, trainset=questions(10), inner=inner).detailed_results
        # Another metric may ask for other pulls, and choose another arm, which has to be measured then.
        assert server.requests < 2 * asked
    assert results.policy[0].reward == pytest.approx(1.0) and results.failures.total == 0


# -- the validation set has no part in the choice


@pytest.mark.slow
def test_validation_examples_that_are_training_examples_too_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    everything = questions(24)
    train, shared, own = everything[:12], everything[8:12], everything[12:16]
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        plain = optimizer(budget=400).compile(student(), trainset=train, valset=own).detailed_results
        assert "valset" not in caplog.text
        twin = [dspy.Example(question=e.question, answer="none").with_inputs("question") for e in shared]
        mixed = optimizer(budget=400).compile(student(), trainset=train, valset=[*twin, *own, own[0]])
        assert "4 of the 8 examples" not in caplog.text
        assert "4 of the 9 examples of the valset" in caplog.text and "valset[0]" in caplog.text
        assert "Repeated queries of the valset are left out: 1" in caplog.text
        row = mixed.detailed_results.policy[0]
        assert row.held_out == plain.policy[0].held_out and row.held_out is not None and row.held_out.queries <= 4
        caplog.clear()
        none = optimizer(budget=400).compile(student(), trainset=train, valset=shared).detailed_results
        assert "as without a valset" in caplog.text and none.policy[0].held_out is None


# -- metrics that nothing satisfies


def wordy(body: dict[str, Any], i: int) -> str:
    return chat(answer=f"it is {total(body)}")


def nothing(example: Any, pred: Any, trace: Any = None) -> float:
    return 0.0


def indifferent(example: Any, pred: Any, trace: Any = None) -> float:
    return 0.5


@pytest.mark.parametrize("metric", [exact, nothing, pytest.param(indifferent, marks=pytest.mark.slow)])
def test_a_run_whose_scores_are_all_equal_ends_after_a_round(metric: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(wordy) as server, dspy.context(lm=server.lm()):
        results = optimizer(metric=metric, budget=400).compile(student(), trainset=questions(30)).detailed_results
        assert server.completions == results.spent.completions <= 2 * 320 // 8 + 20  # two rounds, and the unit of costs
    assert not results.complete
    assert caplog.text.count("prediction (answer='it is ") == caplog.text.count("'), labels (answer='") == 3
    assert ("nothing scores 0" in caplog.text) is (metric is nothing)


@pytest.mark.slow
def test_a_mended_metric_goes_on_with_what_was_drawn(tmp_path: Path) -> None:
    def mended(example: Any, pred: Any, trace: Any = None) -> bool:
        return (
            str(example.answer) == pred.answer.removeprefix("it is ")
            and total({"messages": [{"content": example.question}]}) % 3 > 0
        )

    with Loopback(wordy) as server, dspy.context(lm=server.lm()):
        first = optimizer(budget=400, log_dir=tmp_path).compile(student(), trainset=questions(30)).detailed_results
        drawn = server.completions
        again = optimizer(budget=400, log_dir=tmp_path).compile(student(), trainset=questions(30)).detailed_results
        assert server.completions == drawn and again.spent.completions == first.spent.completions
        run = optimizer(metric=mended, budget=400, log_dir=tmp_path)
        results = run.compile(student(), trainset=questions(30)).detailed_results
        assert results.complete and server.completions <= 400
        # What measured the student for the first run is not drawn again, and no part of this one.
        assert drawn < results.spent.completions <= server.completions < results.spent.completions + 20


@pytest.mark.slow
def test_labels_of_another_type_than_the_field_are_refused_before_any_call() -> None:
    def same(example: Any, pred: Any, trace: Any = None) -> bool:
        return bool(example.answer == pred.answer)

    numbers = [dspy.Example(question=e.question, answer=int(e.answer)).with_inputs("question") for e in questions(9)]
    for program in (student(), dspy.ChainOfThought("question -> answer")):
        with Loopback(adder) as server, dspy.context(lm=server.lm()):
            with pytest.raises(ScoreError, match=r"because of its type"):
                optimizer(metric=same).compile(program, trainset=numbers)
            assert server.requests == 0
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        optimizer(metric=same, budget=60).compile(dspy.Predict("question -> answer: int"), trainset=numbers)


class Stubborn(dspy.Module):
    """A pipeline that makes an answer of its own where its inner module fails."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        try:
            return self.inner(question=question)
        except AdapterParseError:
            return dspy.Prediction(answer="0")


@pytest.mark.slow
def test_an_inner_module_that_fails_has_no_vote_whatever_the_pipeline_says_instead(tmp_path: Path) -> None:
    def sometimes(body: dict[str, Any], i: int) -> str:
        rng = body.setdefault("_rng", random.Random(body.get("seed")))
        return "no fields" if rng.random() < 0.6 else chat(answer=str(total(body)))

    with Loopback(sometimes) as server, dspy.context(lm=server.lm(seed=1)):
        run = optimizer(budget=100, log_dir=tmp_path)
        results = run.compile(Stubborn(), trainset=questions(10), inner="inner").detailed_results
    assert 0.4 < results.failures.total / results.failures.completions < 0.8
    assert results.failures.causes[0][0] == "the inner module failed"
    assert results.reward[0, :, -1].max() > 0.95  # the few that can be read are right
    assert all(s.known for s in scored(contents_of(tmp_path)))
