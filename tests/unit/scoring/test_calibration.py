"""Calibration: maps worked out by hand, their laws, and strategies that keep them."""

import json
import math
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.errors import ConfigurationError, ScoreError, StateError
from iapo_dspy.scoring.calibration import KINDS, Calibration, Kind, Scales, fit
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import BestOfN, Calibrates, MajorityVote, Objective

FINITE = st.floats(-1e9, 1e9, allow_nan=False)
SAMPLES = st.lists(FINITE, min_size=1, max_size=300)


def logit(example: Any, prediction: Any) -> float:
    return float(prediction.answer)


def raw(name: str = "reward", kind: Kind = "minmax") -> Objective:
    return Objective(name, logit, calibrate=kind)


def predictions(*values: float) -> list[dspy.Prediction]:
    return [dspy.Prediction(answer=v) for v in values]


# -- the maps


def test_minmax_is_linear_and_clipped() -> None:
    to = fit("minmax", [3.0, -1.0, 1.0, 1.0])
    assert [to(v) for v in (-1.0, 0.0, 1.0, 3.0)] == [0.0, 0.25, 0.5, 1.0]
    assert (to(-100.0), to(100.0), to.highest) == (0.0, 1.0, 1.0)


def test_rank_is_the_mid_distribution_function_and_linear_between_its_knots() -> None:
    to = fit("rank", [10.0, 10.0, 20.0, 40.0])  # below 10: 0 of 4, and half of the two that are equal: 1/4
    assert [to(v) for v in (10.0, 20.0, 40.0)] == [0.25, 0.625, 0.875]
    assert to(30.0) == 0.75 and to(15.0) == 0.4375
    assert (to(-5.0), to(99.0), to.highest) == (0.25, 0.875, 0.875)


def test_scores_that_differ_by_less_than_any_slope_can_say_keep_their_order() -> None:
    to = fit("minmax", [5e-324, -2.225073858507e-311])
    assert (to(-1.0), to(-2.225073858507e-311), to(5e-324), to(1.0)) == (0.0, 0.0, 1.0, 1.0)
    assert 0.0 <= to(-1e-311) <= 1.0


@given(kind=st.sampled_from(KINDS), scores=SAMPLES, probes=st.lists(FINITE, min_size=2, max_size=20))
def test_a_map_is_monotone_bounded_and_comes_back_from_json_exactly(
    kind: Kind, scores: list[float], probes: list[float]
) -> None:
    to = fit(kind, scores)
    levels = [to(v) for v in sorted([*probes, *scores])]
    assert all(0 <= v <= 1 for v in levels) and levels == sorted(levels)
    again = Calibration.from_dict(json.loads(json.dumps(to.to_dict())))
    assert again == to
    assert fit(kind, scores[::-1]) == to  # the order does not matter, so a resumed run learns the same


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=200).filter(lambda v: len(set(v)) > 1))
def test_ranks_of_the_first_batch_are_one_half_on_average(scores: list[int]) -> None:
    to = fit("rank", [float(v) for v in scores])
    assert np.mean([to(float(v)) for v in scores]) == pytest.approx(0.5, abs=1e-9)


def test_ranks_keep_few_knots_and_stay_close_to_the_distribution() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=5_000), np.full(1_000, 0.3)])  # an atom of one sixth
    to = fit("rank", scores.tolist())
    assert len(to.raw) <= 101
    for v in [*rng.choice(scores, 200).tolist(), 0.3]:
        true = (np.sum(scores < v) + np.sum(scores == v) / 2) / len(scores)
        # Beside the atom the piecewise linear map cuts the corner of the step, by less than its half.
        assert abs(to(v) - true) <= (0.012 if abs(v - 0.3) > 0.05 or v == 0.3 else 1 / 12 + 0.012)
    rest = fit("rank", rng.normal(size=5_000).tolist())
    uniform = [rest(v) for v in rng.normal(size=5_000).tolist()]
    assert np.quantile(uniform, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("value", "step"), [(0.0, 1.0), (-0.5, 1.0), (8.0, 8.0)])
def test_one_value_alone_becomes_one_half_and_still_tells_better_from_worse(
    kind: Kind, value: float, step: float, caplog: pytest.LogCaptureFixture
) -> None:
    to = fit(kind, [value] * 5, what="Objective 'reward'")
    assert [to(value + d * step) for d in (-2, -1, -0.5, 0, 0.5, 1, 2)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert "Objective 'reward' scored all 5" in caplog.text


def test_scores_that_are_not_finite_have_no_part_in_it() -> None:
    assert fit("minmax", [math.nan, 1.0, math.inf, 3.0, -math.inf]) == fit("minmax", [1.0, 3.0])
    with pytest.raises(ConfigurationError, match="no finite score"):
        fit("rank", [math.nan])
    with pytest.raises(ConfigurationError, match="give one of"):
        fit("zscore", [1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "minmax", "raw": "1 1", "level": "0 1"},
        {"kind": "minmax", "raw": "1 2", "level": "0 1.5"},
        {"kind": "rank", "raw": "1 2", "level": "1 0"},
        {"kind": "rank", "raw": "1 nan", "level": "0 1"},
        {"kind": "rank", "raw": "1", "level": "0"},
        {"kind": "other", "raw": "1 2", "level": "0 1"},
    ],
)
def test_damaged_maps_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="damaged"):
        Calibration.from_dict(data)


# -- objectives and strategies


def test_a_calibrated_objective_takes_any_finite_number_and_no_bounds() -> None:
    assert raw()(dspy.Example().with_inputs(), predictions(-37.5)[0]) == -37.5
    for bad in (math.nan, math.inf):
        with pytest.raises(ScoreError, match="finite number"):
            raw()(dspy.Example().with_inputs(), predictions(bad)[0])
    with pytest.raises(ConfigurationError, match="without bounds"):
        Objective("reward", logit, (-5.0, 5.0), calibrate="minmax")
    with pytest.raises(ConfigurationError, match="minmax"):
        Objective("reward", logit, calibrate="zscore")  # type: ignore[arg-type]


def test_best_of_n_reads_raw_scores_and_chooses_by_calibrated_ones() -> None:
    bounded = Objective("short", lambda e, p: 1.0 if p.answer < 0 else 0.0)
    given = BestOfN([raw(), bounded])
    read = [given.read({}, p) for p in predictions(-10.0, 0.0, 10.0, math.nan)]
    assert [s.scores for s in read] == [(-10.0, 1.0), (0.0, 0.0), (10.0, 0.0), None]
    assert "finite number" in str(read[3].failure)
    weights = np.array([0.5, 0.5])
    assert isinstance(given, Calibrates) and not given.calibrated
    with pytest.raises(StateError, match=r"\['reward'\] are calibrated while compiling"):
        given.choose(read, weights)
    learnt = given.calibrate([(-10.0, 1.0), (30.0, 0.0)])
    assert learnt.calibrated and not given.calibrated  # who gave it keeps what was given
    found = learnt.choose(read, weights)
    assert found is not None and found.index == 0
    assert found.utilities == (0.5, 0.125, 0.25, None)
    assert learnt.digest(None) == given.digest(None)  # raw scores in a ledger stay good
    assert learnt.calibrate([(99.0, 1.0), (100.0, 0.0)]) is learnt  # frozen


def test_nothing_more_is_drawn_once_no_score_can_be_better() -> None:
    by_rank = BestOfN([raw(kind="rank")]).calibrate([(1.0,), (2.0,), (2.0,)])
    top = by_rank.place((2.0,))[0]
    assert top < 1.0  # two thirds: no raw score gets further, so it need not be waited for
    weights = np.array([1.0])
    assert by_rank.settled([Scored(scores=(2.0,))], weights, 3) and by_rank.settled([Scored(scores=(9.0,))], weights, 3)
    assert not by_rank.settled([Scored(scores=(1.9,))], weights, 3)


def test_what_was_learnt_is_saved_and_restored_beside_the_functions() -> None:
    given = BestOfN([raw("a"), raw("b", "rank"), Objective("c", logit, (0.0, 9.0))])
    learnt = given.calibrate([(0.0, 5.0, 1.0), (2.0, 6.0, 1.0)])
    data = json.loads(json.dumps(learnt.to_dict()))
    assert set(data["calibration"]) == {"a", "b"} and "calibration" not in given.to_dict()
    restored = given.restore(data["calibration"])
    assert restored.place((1.0, 5.5, 7.0)) == learnt.place((1.0, 5.5, 7.0)) == (0.5, 0.5, 7.0)
    assert Scales.of_saved(data).place((1.0, 5.5, 7.0)) == (0.5, 0.5, 7.0)
    with pytest.raises(StateError, match="no 'minmax' calibration of objective 'b'"):
        BestOfN([raw("a"), raw("b")]).restore(data["calibration"])
    with pytest.raises(StateError, match="no 'minmax' calibration of objective 'z'"):
        BestOfN([raw("z")]).restore(data["calibration"])


def test_without_a_need_for_calibration_there_is_none() -> None:
    bounded = BestOfN([Objective("c", logit, (0.0, 9.0))])
    assert bounded.calibrated and bounded.calibrate([(1.0,)]) is bounded and bounded.place((4.0,)) == (4.0,)
    assert "calibrate" not in json.dumps(bounded.to_dict())  # ledgers of older versions go on
    assert not isinstance(MajorityVote("answer"), Calibrates)
