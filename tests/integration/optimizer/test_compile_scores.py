"""Scores of a run: what a metric cannot score, metrics that nothing satisfies, and stored completions scored anew."""

import random
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, MajorityVote, Mixed, Objective, WeightedVote
from iapo_dspy.types import FloatArray
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, QUICK, exact, questions, student, total

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


@pytest.mark.parametrize("metric", [near, silent, not_a_number])
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
