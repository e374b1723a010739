"""Calls of any arm go as `play` says: what a run estimates is what a deployed program does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any
from unittest import mock

import dspy
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from iapo_dspy import Abstention, BestOfN, Cost, MajorityVote, Mixed, Objective, Preference, WeightedVote
from iapo_dspy.bandit.compound.played import Played, play
from iapo_dspy.bandit.compound.sequences import Sequences
from iapo_dspy.errors import AllCompletionsFailed
from iapo_dspy.program.call import Call
from iapo_dspy.program.call_report import CallReport
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.scoring.strategies import Selection
from iapo_dspy.types import Arm, Escalation, Share, Stop
from tests.support.scripted import Scripted, drawables

ANSWERS = "abcd"
PROMPTS, MOST = 3, 24
SHARES = tuple(k / n for n in range(1, 6) for k in range(1, n + 1))  # sureness that really occurs
worth = Objective("worth", lambda example, prediction: prediction.worth)


class Silent:
    """A strategy of a user's own, whose choices tell neither votes nor scores."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def choose(self, read: Any, weights: Any) -> Selection | None:
        found = self._strategy.choose(read, weights)
        return found and dataclasses.replace(found, votes=None, utilities=None)


KINDS: dict[str, Any] = {
    "vote": MajorityVote("answer"),
    "weighted": WeightedVote("answer", weight=worth),
    "best": BestOfN([worth]),
    "mixed": Mixed(MajorityVote("answer"), then=BestOfN([worth])),
}


@st.composite
def stages(draw: Any, kind: str, left: int, alone: bool) -> Arm:
    """An arm of at most `left` stages; `alone`: its completions alone count, so that it may have waves."""
    prompts = draw(st.lists(st.integers(0, PROMPTS - 1), min_size=1, max_size=3, unique=True))
    sizes = [draw(st.integers(1, 5)) for _ in prompts]
    then = None
    if left > 1 and draw(st.booleans()):
        weight = draw(st.integers(0, 2))
        then = Escalation(
            below=draw(st.sampled_from(SHARES) | st.floats(0.05, 1.2)),
            arm=draw(stages(kind, left - 1, weight == 0)),
            weight=weight,
        )
    elif draw(st.booleans()):
        then = Escalation(below=draw(st.sampled_from(SHARES)))
    stop = None
    if alone and kind in ("vote", "best") and draw(st.booleans()):
        prompts, n = prompts[:1], sizes[0]
        ends = (*sorted(draw(st.sets(st.integers(1, n - 1), max_size=n - 1))), n) if n > 1 else (1,)
        rule: dict[str, float] = {}
        if then is None and kind == "best":
            rule = {"threshold": draw(st.sampled_from([0.25, 0.5, 1.0]))}
        elif then is None and draw(st.booleans()):
            rule = {"confidence": draw(st.sampled_from([0.7, 0.9]))}
        stop = Stop(waves=ends, **rule)
    beside = tuple(Share(prompt=p, n=n) for p, n in zip(prompts[1:], sizes[1:], strict=False))
    return Arm(prompts[0], sizes[0], stop, beside=beside, then=then)


@st.composite
def worlds(draw: Any) -> tuple[str, Arm, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A kind of strategy, an arm, and completions of each prompt: answers (-1 fails) and worths [Q, M]."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    arm = draw(stages(kind, 3, True))
    # Where a stage ends early, a call goes on with its next completion of a prompt, and a row with that of the stage.
    early = any(stage.stop is not None for stage in arm.stages[:-1])
    assume(not early or len(arm.prompts) == sum(len(stage.shares) for stage in arm.stages))
    seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.2, 0.9]))
    rng = np.random.default_rng(seed)
    answers = rng.integers(0, draw(st.integers(1, len(ANSWERS))), (PROMPTS, MOST))
    answers[rng.random(answers.shape) < share] = -1
    return kind, arm, answers, rng.integers(0, 5, answers.shape) / 4


def played(kind: str, arm: Arm, answers: Any, worths: Any, right: Any) -> Played:
    """Play the call, where the answers in `right` are worth 1, and the worth counts nothing but for its own ends."""
    metric = np.isin(answers, right).astype(float)
    columns = {"vote": [metric], "weighted": [metric, worths], "best": [worths], "mixed": [metric, worths]}[kind]
    score = np.stack(columns, axis=-1)
    score[answers < 0] = np.nan
    sequences = Sequences(
        prompts=np.arange(PROMPTS),
        label=answers[:, None],
        score=score[:, None],
        query=np.zeros(1, dtype=int),
        n_queries=1,
        aggregator=KINDS[kind].aggregator(),
        weights=np.array({"vote": [1.0], "weighted": [1.0, 0.0], "best": [1.0], "mixed": [1.0, 1.0]}[kind]),
    )
    return play(arm, sequences)


def called(
    kind: str, arm: Arm, answers: Any, worths: Any, question: str = "?", strategy: Any = None
) -> tuple[Any, Scripted, Any]:
    """Return the prediction or the error of a deployed call, its sampler and what it has drawn."""
    predictions = {
        p: [dspy.Prediction(answer=ANSWERS[a], worth=float(w)) if a >= 0 else None for a, w in zip(*row, strict=True)]
        for p, row in enumerate(zip(answers, worths, strict=True))
    }
    sampler = Scripted(predictions)
    call = Call(
        preference=Preference("x", cost=0.0),
        arm=arm,
        drawables=drawables(arm.prompts),
        inputs={"question": question},
        outputs=("answer", "worth"),
        strategy=strategy or KINDS[kind],
        cost=Cost(),
    )
    with mock.patch("iapo_dspy.program.call._sampler", return_value=sampler):
        drawn = run_on_loop(call.draw())
    try:
        return call.conclude(drawn), sampler, drawn
    except AllCompletionsFailed as error:
        return error, sampler, drawn


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_a_call_goes_as_it_is_played(world: Any) -> None:
    kind, arm, answers, worths = world
    prediction, sampler, drawn = called(kind, arm, answers, worths)
    found = played(kind, arm, answers, worths, list(range(len(ANSWERS))))
    for prompt in range(PROMPTS):
        mine = [n for p, n, _ in sampler.requests if p == prompt]
        assert (sum(mine), len(mine)) == (found.completions[0, prompt], found.waves[0, prompt])
    assert len(drawn.stages) - 1 == found.stage[0]
    keys = [json.dumps(key) for *_, key in sampler.requests]
    assert len(set(keys)) == len(keys)
    if isinstance(prediction, AllCompletionsFailed):
        assert found.answered[0] and found.reward[0] == 0.0 and found.sureness[0] == 0.0
        return
    report: CallReport = prediction.iapo
    assert isinstance(prediction, Abstention) == report.abstained == (not found.answered[0])
    assert (report.sureness is None and report.abstained) or report.sureness == pytest.approx(found.sureness[0])
    assert (report.n, report.planned) == (found.completions.sum(), arm.most)
    assert [sum(p.n for p in stage.prompts) for stage in report.stages] == [stage.n for stage in report.stages]
    if report.abstained:
        assert list(prediction.values()) == [None] * len(prediction.keys())
        return
    assert drawn.prompt_of(report.winner) == report.prompt
    if kind == "best":
        assert prediction.worth == found.reward[0]
        return
    alone = played(kind, arm, answers, 0 * worths if kind == "mixed" else worths, [ANSWERS.index(prediction.answer)])
    if kind == "mixed":  # the style decides among equals, so only the vote is compared
        return
    assert alone.reward[0] > 0  # one of the tied answers; the only one where there is not a tie
    if found.reward[0] == alone.reward[0]:
        assert alone.reward[0] == 1.0


@pytest.mark.parametrize("kind", ["vote", "best"])
def test_a_strategy_that_does_not_tell_goes_on_as_it_is_played(kind: str) -> None:
    rng = np.random.default_rng(4)
    ended = set()
    for _ in range(60):
        arm = Arm(0, 3, then=Escalation(below=0.6, arm=Arm(1, 2, then=Escalation(below=0.9))))
        answers, worths = rng.integers(-1, 3, (PROMPTS, MOST)), rng.integers(0, 5, (PROMPTS, MOST)) / 4
        answers[:2, 0] = 0  # no stage without an answer
        found = played(kind, arm, answers, worths, [0])
        prediction, _, drawn = called(kind, arm, answers, worths, strategy=Silent(KINDS[kind]))
        assert prediction.iapo.sureness == pytest.approx(found.sureness[0])
        assert (len(drawn.stages) - 1, prediction.iapo.abstained) == (found.stage[0], not found.answered[0])
        ended.add((len(drawn.stages), prediction.iapo.abstained))
    assert ended == {(1, False), (2, False), (2, True)}


@pytest.mark.parametrize(
    "arm",
    [Arm(0, 1, beside=(Share(prompt=1, n=1),)), Arm(0, 2, then=Escalation(below=1.5, arm=Arm(1, 1), weight=2))],
    ids=["mixture", "carried over"],
)
def test_a_tie_goes_to_each_answer_as_often_whatever_was_drawn_first(arm: Arm) -> None:
    answers = np.array([[0] * MOST, [1] * MOST, [2] * MOST])  # prompt 0 always says "a", and prompt 1 "b"
    asked = [called("vote", arm, answers, answers * 0.0, question=str(i))[0].answer for i in range(200)]
    assert 70 < asked.count("a") < 130 and asked.count("a") + asked.count("b") == 200
    again = [called("vote", arm, answers, answers * 0.0, question=str(i))[0].answer for i in range(20)]
    assert again == asked[:20]
