"""Votes whose weights or styles are raw scores: learnt while compiling, and the same when deployed."""

from __future__ import annotations

import json

import dspy
import numpy as np
import pytest

from iapo_dspy import BestOfN, MajorityVote, Mixed, Objective, WeightedVote
from iapo_dspy.errors import StateError
from iapo_dspy.scoring.strategies import Calibrates, Strategy
from tests.support.selecting import select

LOGIT = Objective("logit", lambda example, prediction: prediction.logit, calibrate="minmax")
BRIEF = Objective("brief", lambda example, prediction: prediction.brief)
ROWS: dict[str, list[tuple[float, ...]]] = {
    "weighted": [(1.0, -4.0), (0.0, 0.0), (1.0, 4.0)],
    "mixed": [(1.0, -4.0, 0.5), (0.0, 0.0, 0.1), (1.0, 4.0, 0.0)],
    "both": [(1.0, -4.0, -4.0), (0.0, 0.0, 0.0), (1.0, 4.0, 4.0)],
}
STRATEGIES: dict[str, Strategy] = {
    "weighted": WeightedVote("answer", weight=LOGIT),
    "mixed": Mixed(MajorityVote("answer"), objectives=[LOGIT, BRIEF]),
    "both": Mixed(WeightedVote("answer", weight=LOGIT), objectives=[LOGIT]),
}


def drawn(*rows: tuple[str, float]) -> list[dspy.Prediction]:
    return [dspy.Prediction(answer=a, logit=logit, brief=0.0) for a, logit in rows]


@pytest.mark.parametrize("name", STRATEGIES)
def test_raw_scores_are_placed_column_by_column_and_the_metric_stays(name: str) -> None:
    strategy = STRATEGIES[name]
    assert isinstance(strategy, Calibrates) and not strategy.calibrated
    learnt = strategy.calibrate(ROWS[name])
    assert isinstance(learnt, Calibrates) and learnt.calibrated and not strategy.calibrated
    placed = [learnt.place(row) for row in ROWS[name]]
    assert [p[0] for p in placed] == [1.0, 0.0, 1.0]
    assert [p[1] for p in placed] == [0.0, 0.5, 1.0]  # -4, 0, 4 between the lowest and the highest
    if name == "mixed":
        assert [p[2] for p in placed] == [0.5, 0.1, 0.0]  # bounded as it is
    if name == "both":
        assert [p[2] for p in placed] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_scales_are_saved_and_restored_and_a_strategy_without_them_refuses_to_choose(name: str) -> None:
    learnt = STRATEGIES[name].calibrate(ROWS[name])  # type: ignore[attr-defined]
    saved = json.loads(json.dumps(learnt.to_dict()))
    again = STRATEGIES[name].restore(saved["calibration"])  # type: ignore[attr-defined]
    assert [again.place(row) for row in ROWS[name]] == [learnt.place(row) for row in ROWS[name]]
    assert "calibration" not in STRATEGIES[name].to_dict()
    weights = np.full(len(STRATEGIES[name].objectives), 0.5)
    with pytest.raises(StateError, match="calibrated"):
        select(STRATEGIES[name], {}, drawn(("a", 1.0)), weights)


def test_a_calibrated_weight_decides_the_vote() -> None:
    learnt = STRATEGIES["weighted"].calibrate(ROWS["weighted"])  # type: ignore[attr-defined]
    # a: .25 + .25 = .5 against b: 1; unweighted, a would win.
    chosen = select(learnt, {}, drawn(("a", -2.0), ("a", -2.0), ("b", 4.0)), np.ones(1))
    assert chosen is not None and chosen.index == 2
    assert chosen.votes == pytest.approx({"b": 1.0, "a": 0.5})


def test_a_calibrated_style_chooses_among_those_that_agree() -> None:
    learnt = STRATEGIES["mixed"].calibrate(ROWS["mixed"])  # type: ignore[attr-defined]
    chosen = select(learnt, {}, drawn(("a", -2.0), ("b", 4.0), ("a", 3.0)), np.array([0.5, 0.5, 0.0]))
    assert chosen is not None and chosen.index == 2
    same = BestOfN([LOGIT]).calibrate([(row[1],) for row in ROWS["mixed"]])
    assert same.place((3.0,)) == learnt.place((0.0, 3.0, 0.0))[1:2]
